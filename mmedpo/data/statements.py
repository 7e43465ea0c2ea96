"""What a yes/no question asks for, and what the sentences of an answer state or deny, as stems of words."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

from mmedpo.data import yes_no_words as known
from mmedpo.data.text import CLAUSE_STARTS, clauses, plain, words

Segment = list[tuple[str, bool]]  # words of a statement with True for negated ones
LONGEST_ITEM = 16  # words of an item in a list after "no"
HEALTH = frozenset(("normal", "abnormal"))
_SCAN_NAME = re.compile(r"x-?ray|\bct|\bmr|cxr|ultras|radiog|scan|image|view")
_NEGATING = (
    known.FORWARD
    | known.BACKWARD
    | known.FALSE
    | known.EXCEPT
    | {"nor", "other", "ruled", *(one for one, _ in known.PAIRS)}
)
_DENYING = known.FORWARD | known.BACKWARD
_SPLITTING = known.BREAKS | {*"?.,:;!()\n—", "yes", "no", "and", "that"}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_YES_OR_NO = re.compile(r"^yes or no\W+|\W{1,4}(?:please )?(?:answer )?(?:with )?\W?\b(?:yes or no|yes/no)\b")
_LONG = re.compile("|".join(re.escape(part) for part, _, _ in known.LONG))
_TOKEN = re.compile(r"[^\W_]+(?:['.-][^\W_]+)*|[,.;:!?()\n—]")


class Asked(NamedTuple):
    """Stems of what a yes/no question asks for."""

    stems: frozenset[str] = frozenset()
    order: tuple[str, ...] = ()  # the same in order
    core: frozenset[str] = frozenset()  # those before a place
    heads: frozenset[str] = frozenset()  # of them a denial names one
    health: str | None = None  # "normal" or "abnormal" where it asks whether something is
    words: tuple[str, ...] = ()
    choice: frozenset[str] = frozenset()  # "A or B"
    presence: bool = False  # "Is there ...?"
    without: frozenset[str] = frozenset()  # "without contrast"
    negated: bool = False  # "Is no lesion present?": yes and no are ambiguous


@lru_cache(maxsize=4096)
def asked_by(question: str) -> Asked:
    """Return what a yes/no question asks for; no stems for a question that yes or no does not answer."""
    question = _question(plain(question).casefold())
    text = known.OF_SCAN.sub(r"\1 ", known.IN_SCAN.sub(" ", _short(question)))
    text = known.CLEAR.sub("", known.COMPARED.sub(" ", text))
    listed = [word for clause in clauses(text) for word in clause]
    if known.WH_WORDS & set(listed[:1] if asks_yes_no(question) else listed):
        return Asked()
    listed[:1] = [word.removesuffix("n't") for word in listed[:1]]  # "Isn't it fractured?"
    found = [part for word in listed for part in parts_of(word)]
    without = {stem_of(word) for before, word in pairwise(found) if before == "non"}
    if "without" in found:
        without |= {stem_of(word) for word in found[found.index("without") + 1 :]}
    negated = any(word in known.FORWARD - {"without", "non"} or word.endswith("n't") for word in found)
    place = next((i for i, word in enumerate(found) if word in known.PLACES), len(found))
    stems, core = ([stem_of(word) for word in part if word not in known.MUTE] for part in (found, found[:place]))
    presence = bool({"there", "evidence", "see", "any", "sign", "signs"} & set(found)) or not asks_yes_no(question)
    first = [stem_of(noun) for noun, of in pairwise(found[:place]) if of == "of" and noun not in known.MUTE][:1]
    heads = {*(first if presence and first else (core or stems)[-1:] + first)}
    states = {stem for stem in core if stem in stems_of(known.STATES) - stems_of(known.LESIONS)}
    heads = states if states and not presence else heads | states
    if not presence and (found[0] == "can" or not known.PRESENCE & set(found)):
        heads |= {stem for stem in stems if stem not in core}
    called = core[-1:] if re.search(r"\bthe (?:ab)?normal", text) else [*core[-1:], *core[:1]]
    health = next((stem for stem in (*called, *([] if presence else stems[-1:])) if stem in HEALTH), None)
    choice = {stem_of(found[found.index("or") - 1]), (core or stems)[-1]} if "or" in found[1:] and stems else ()
    return Asked(
        frozenset(stems), tuple(dict.fromkeys(stems)), frozenset(core or stems), frozenset(heads), health,
        tuple(found), frozenset(choice), presence, frozenset(without), negated,
    )  # fmt: skip


def asks_yes_no(question: str) -> bool:
    """Return True for a question that yes or no answers, by the first word of one of its clauses."""
    return any(clause[0] in known.ASKS for clause in clauses(question))


def content(text: str) -> list[str]:
    """Return the stems of a text's words that have content of their own, in order; negations have none."""
    return [stem_of(part) for word in words(text) for part in parts_of(word) if part not in known.SILENT]


def denies(text: str) -> bool:
    """Return True where a text holds a negation."""
    return any(word in _DENYING or word.endswith("n't") for word in words(text))


def _question(text: str) -> str:
    """Return the first sentence that ends with a question mark, if there is one, without the options yes and no."""
    asked = [sentence for sentence in _SENTENCE.split(text) if sentence.endswith("?")]
    return _YES_OR_NO.sub("", asked[0] if asked else text).strip()


def _short(text: str) -> str:
    """Return a text with modalities, and other things of several words, by one short name."""
    if _LONG.search(text):
        for part, name, short in known.LONG:
            if part in text:
                text = name.sub(short, text)
    return text


def statements(text: str, asked: Asked) -> list[Segment]:
    """Return the words of each statement with True for negated ones; a list after "no" is one statement."""
    text = _short(text)
    if "normal" in text:
        text = known.COMPARED.sub(" ", text)
    if "clear" in text:
        text = known.CLEAR.sub("", text)
    if not asked.stems & stems_of(known.SCANS) and _SCAN_NAME.search(text):
        text = known.A_SCAN.sub(lambda scan: scan[0] if _names(scan[0], asked) else "image", text)
    if "not only" in text or "noted" in text or "would" in text or "doubt" in text:
        text = known.NOISE.sub(" ", text)
    tokens = _TOKEN.findall(text)
    segments: list[list[str]] = [[]]
    sentence = 0  # first segment of the current sentence
    for i, token in enumerate(tokens):
        if token not in _SPLITTING:
            segments[-1] += parts_of(token)
            continue
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if token in ("yes", "no"):
            if i or (token == "no" and following not in CLAUSE_STARTS | {",", "."}):
                segments[-1].append(token)
        elif token == "?":  # a question states nothing
            segments[sentence:] = [[]]
        elif token == ",":
            if _begins_statement(segments[-1], tokens[i + 1 : i + LONGEST_ITEM]):
                segments.append([])
        elif token == ":" and len(segments[-1]) < 5 and not known.VERBS & set(segments[-1]):
            continue  # "Fracture: none"
        elif token == "which" and following not in known.ABOUT:
            segments.append([token])
        elif (token == "and" and not _joins(segments[-1], tokens[i + 1 : i + 5])) or (
            token == "that" and following not in ("is", "are", "was", "were")
        ):
            segments[-1].append(token)
        else:
            segments.append([])
        if token in ".?!\n;":
            sentence = len(segments) - 1
    kept = [one for one in segments if one and one[0] != "which"]
    if known.UNSAID.search(text) and "can" not in asked.words[:1] and not known.UNSAID.search(" ".join(asked.words)):
        kept = [one for one in kept if not known.UNSAID.search(" ".join(one))]
    return [found for found in (_negated(one, asked) for one in kept) if found]


def _names(text: str, asked: Asked) -> bool:
    """Return True where a text holds a word that is asked for, or one that excludes it."""
    return any(stem in asked.stems or rivals_of(stem) & asked.stems for stem in map(stem_of, text.split()))


def _begins_statement(before: list[str], ahead: list[str]) -> bool:
    """Return True where a comma ends a statement and not an item of a list."""
    end = next((i for i, token in enumerate(ahead) if not token[0].isalnum()), len(ahead))
    ahead = ahead[:end]
    if not known.VERBS & set(ahead) or ahead[0] in ("or", "nor"):
        return False
    first = ahead[1:2] if ahead[0] == "and" else ahead[:1]
    in_list = before[:1] in (["no"], ["neither"]) and not known.VERBS & set(before)
    return not (in_list and known.PRESENCE & set(ahead) and not known.RESTARTS & set(first))


def _joins(before: list[str], ahead: list[str]) -> bool:
    """Return True where "and" joins two statements and not two things."""
    if known.HEDGES & set(before):
        return False
    verbs = {"is", "are", "was", "were", "appears", "appear"} & set(ahead)
    return bool(known.RESTARTS & set(ahead[:1]) or (verbs and known.VERBS & set(before)))


def _negated(segment: list[str], asked: Asked) -> Segment:
    triggers = {word for word in segment if word in _NEGATING or word.endswith("n't")}
    if not triggers:
        return [(word, False) for word in segment]
    whole = bool((known.BACKWARD | known.FALSE) & triggers) or (
        "ruled" in triggers and "ruled out" in " ".join(segment)
    )
    found: list[tuple[str, bool]] = []
    denied: list[str] = []  # words with content since the last negation
    negated, noun, last = False, False, -9
    before = 0  # words that a later negation denies ("a fracture is not seen")
    content_end = max((i for i, word in enumerate(segment) if word not in known.MUTE), default=0)
    for i, word in enumerate(segment):
        if negated:
            if noun and word in known.VERBS:
                negated = noun = False
            elif word in known.OF and denied and not (asked.stems | HEALTH) & {*map(stem_of, denied)}:
                break  # "no change in the nodule" does not deny it
            elif word not in known.MUTE:
                denied.append(word)
        found.append((word, negated))
        if word not in triggers:
            continue
        ahead = segment[i + 1 : i + 4]
        if word == "nor":
            negated = True
        elif (word in known.EXCEPT and word not in asked.words) or (word == "other" and ahead[:1] == ["than"]):
            negated = not negated
        elif (word in known.FORWARD or word.endswith("n't") or (word, *ahead[:1]) in known.PAIRS) and not (
            known.LIMITS & set(ahead[:1]) or "doubt" in ahead
        ):
            if whole:
                return []  # "no evidence that it is absent"
            negated, last, noun = not (negated and i - last < 3), i, word in known.NOUNS  # "not without"
            denied = []
            if word == "free":
                found[-1] = ("of", negated)
            direct = word not in ("no", "without", "non") and not known.PRESENCE.isdisjoint(ahead)
            shown = ahead[:1] in (["appear"], ["appears"]) and ahead[1:2] in ([], ["in"], ["on"], ["at"])
            if direct or shown or i >= content_end:
                before = len(found)
    return [(word, negated or whole or i < before) for i, (word, negated) in enumerate(found)]


@lru_cache(maxsize=65536)
def parts_of(word: str) -> list[str]:
    if word in known.MEANINGS or word in known.EXCLUDES or word.endswith("n't"):
        return [word]
    if word.startswith("non") and len(word) > 7 and "-" not in word:
        return ["non", word[3:]]
    return word.split("-")


@cache
def stems_of(group: frozenset[str]) -> frozenset[str]:
    return frozenset(map(stem_of, group))


@lru_cache(maxsize=65536)
def stem_of(word: str) -> str:
    """Return the form that a word's inflections share ("enlarged", "enlargement"), or its one meaning."""
    if word in known.MEANINGS or word in known.EXCLUDES or word in HEALTH:
        return known.MEANINGS.get(word, word)
    word = re.sub("otic$", "osis", word)  # "stenotic"
    if not word.endswith("ss"):
        ending = next((one for one in known.ENDINGS if word.endswith(one) and len(word) - len(one) >= _left(one)), "")
        word = word.removesuffix(ending)
    word = word.rstrip("eiya")
    if len(word) > 5:
        word = word.removesuffix("at").rstrip("eiya")
    return known.MEANINGS.get(word, word)


def _left(ending: str) -> int:
    """Return the fewest letters before an ending."""
    return 4 if ending in ("ation", "al", "ic", "ive", "um") else 3


@lru_cache(maxsize=4096)
def rivals_of(stem: str) -> frozenset[str]:
    return frozenset(map(stem_of, known.EXCLUDES.get(stem, ())))
