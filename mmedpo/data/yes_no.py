"""Yes or no that an answer says, read against its question; rules only, in English, conservative where in doubt.

A plain yes or no counts first ("Yes, ..."). Without one the statements are read: words of the question that are stated
mean yes, negated ones no, and what excludes them (normal and abnormal, left and right) no.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

from mmedpo.data.text import CLAUSE_STARTS, Polarity, clauses, plain, said, words
from mmedpo.data.yes_no_words import (
    A_SCAN,
    ABOUT,
    ASKS,
    BACKWARD,
    BREAKS,
    CLEAR,
    COMPARED,
    DECLINES,
    EMPTY,
    ENDINGS,
    EXCLUDES,
    FORWARD,
    HEDGES,
    IN_SCAN,
    LESIONS,
    LIMITS,
    LONG,
    MEANINGS,
    OTHERS,
    PART,
    PLACES,
    PRESENCE,
    RESTARTS,
    SCANS,
    SILENT,
    STATES,
    VERBS,
)

LONGEST_ITEM = 16  # words of an item in a list after "no"


def says(answer: str, question: str) -> Polarity | None:
    """Return the yes or no that an answer says to its question; None if it says neither, both, or declines to say.

    Example:
        >>> says("There is no sign of a fracture.", "Is there a fracture?")
        'no'
        >>> says("It appears normal.", "Does the brain look abnormal?"), says("Is it?", "Is there a fracture?")
        ('no', None)
    """
    opening = re.match(r"\W*(?:yes|no)\b[^.\n]*", plain(answer).casefold())  # what follows may well be undecided
    if DECLINES.search(opening.group() if opening else plain(answer).casefold()):
        return None
    word, statement = said(answer), _statement(answer, question)
    if word == "neither":
        return statement
    if word == "both" or (statement is not None and statement != word):
        return None  # "Yes, there is no fracture."
    return "yes" if word == "yes" else "no"


def asks_yes_no(question: str) -> bool:
    """Return True for a question that yes or no answers, by the first word of one of its clauses."""
    return any(clause[0] in ASKS for clause in clauses(question))


def is_echo(answer: str, question: str) -> bool:
    """Return True if an answer of several words is a piece of the question, word for word."""
    found = words(answer)
    return len(found) > 1 and f" {' '.join(found)} " in f" {' '.join(words(question))} "


def is_choice(question: str) -> bool:
    """Return True for a question that names its answers ("left or right?")."""
    return "or" in words(question)


def content(text: str) -> list[str]:
    """Return the stems of a text's words that have content of their own, in order; negations have none."""
    return [_stem(part) for word in words(text) for part in _parts(word) if part not in SILENT]


def denies(text: str) -> bool:
    """Return True where a text holds a negation."""
    return any(word in FORWARD | BACKWARD or word.endswith("n't") for word in words(text))


def _statement(answer: str, question: str) -> Polarity | None:
    """Return the yes or no of an answer's statements without its plain yes and no."""
    asked, core, health, choice = _asked(question)
    if not asked or is_echo(answer, question) or plain(answer).rstrip().endswith("?"):
        return None
    votes: set[str] = set()
    stated: set[str] = set()
    denied: set[str] = set()
    empty = True
    for segment in _segments(answer, asked):
        if HEDGES & {word for word, _ in segment}:
            empty = False
            continue
        content = {_stem(word): negated for word, negated in segment if word not in SILENT}
        empty = empty and not content
        vote = _by_meaning(content, asked, health)
        if vote:
            votes.add(vote)
        elif not _holds(segment, PART, asked):
            stated |= {word for word, negated in content.items() if not negated} & asked
            if not _holds(segment, OTHERS, asked):
                denied |= {word for word, negated in content.items() if negated} & asked
    if empty:
        return _brief(answer)
    if choice:
        return "no" if asked <= denied - stated and "yes" not in votes else None
    if denied & core:
        votes.add("no")
    if asked <= stated:
        votes.add("yes")
    if len(votes) != 1:
        return None
    return "yes" if "yes" in votes else "no"


def _holds(segment: list[tuple[str, bool]], known: frozenset[str], asked: frozenset[str]) -> bool:
    return any(word in known and _stem(word) not in asked for word, _ in segment)


def _by_meaning(content: dict[str, bool], asked: frozenset[str], health: str | None) -> str | None:
    """Return the vote of words that stand for or exclude what is asked: normal and abnormal, left and right."""
    about, subject = content.keys() - {"normal", "abnormal"}, asked - {"normal", "abnormal"}
    shared = not about or not subject or bool(about & subject)  # the same thing is spoken of
    for word in content.keys() & {"normal", "abnormal"}:
        found = word if not content[word] else ("abnormal" if word == "normal" else "normal")
        if health and shared:
            return "yes" if found == health else "no"
        if found == "normal" and shared and asked & _stems(STATES):
            return "no"
    if health and shared and any(word in _stems(STATES) and not negated for word, negated in content.items()):
        return "yes" if health == "abnormal" else "no"
    if health and not subject and any(word in _stems(LESIONS) and not negated for word, negated in content.items()):
        return "yes" if health == "abnormal" else "no"
    for word, negated in content.items():
        rivals = {_stem(rival) for rival in EXCLUDES.get(word, ())} & asked
        if (
            rivals
            and not negated
            and not rivals & content.keys()
            and (about & asked or about <= {word, *_stems(SCANS)})
        ):
            return "no"
    return None


def _brief(answer: str) -> Polarity | None:
    """Return the yes or no of an answer without content words: "It is not.", "None seen", "There is."."""
    found = set(words(answer))
    if found & (FORWARD | BACKWARD) or any(word.endswith("n't") for word in found):
        return "no" if found & (PRESENCE | ASKS | BACKWARD | {"none", "true", "correct"}) else None
    pairs = {" ".join(pair) for pair in zip(words(answer), words(answer)[1:], strict=False)}
    subjects = ("it is", "they are", "there is", "there are", "it does", "they do", "it was")
    return "yes" if pairs & set(subjects) or words(answer) in (["present"], ["correct"], ["true"], ["seen"]) else None


@lru_cache(maxsize=4096)
def _asked(question: str) -> tuple[frozenset[str], frozenset[str], str | None, bool]:
    """Return the stems of what a yes/no question asks for, those before a place, "normal" or "abnormal" where it asks
    whether something is, and True for a choice ("A or B").

    There are no stems where statements cannot be read: no yes/no question, or a negated one.
    """
    text = CLEAR.sub("", COMPARED.sub(" ", IN_SCAN.sub(" ", _short(question))))
    found = [part for clause in clauses(text) for word in clause for part in _parts(word)]
    if not asks_yes_no(question) or any(word in FORWARD or word.endswith("n't") for word in found):
        return frozenset(), frozenset(), None, False
    place = next((i for i, word in enumerate(found) if word in PLACES), len(found))
    asked, core = ([_stem(word) for word in part if word not in EMPTY] for part in (found, found[:place]))
    health = core[-1] if core and core[-1] in ("normal", "abnormal") else None
    return frozenset(asked), frozenset(core or asked), health, "or" in found


def _short(text: str) -> str:
    """Return the plain form in lower case, with modalities by their short names."""
    text = plain(text).casefold()
    for name, short in LONG:
        text = name.sub(short, text)
    return text


def _segments(answer: str, asked: frozenset[str]) -> list[list[tuple[str, bool]]]:
    """Return the words of each statement with True for negated ones; a list after "no" is one statement."""
    text = CLEAR.sub("", COMPARED.sub(" ", _short(answer)))
    if not asked & _stems(SCANS):
        text = A_SCAN.sub("image", text)
    tokens = re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*|[,.;:!?()\n—]", text)
    segments: list[list[str]] = [[]]
    for i, token in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        if token in ("yes", "no") and i == 0 and not (token == "no" and following not in CLAUSE_STARTS | {",", "."}):
            continue
        if token == ",":
            ahead = re.split(r" [,.;:!?()\n—] ", f" {' '.join(tokens[i + 1 : i + LONGEST_ITEM])} ")[0].split()
            if VERBS & set(ahead):
                segments.append([])
        elif (
            not token[0].isalnum()
            or token in BREAKS
            or (token == "and" and following in RESTARTS)
            or (token == "that" and following in ("is", "are", "was", "were"))
        ):
            segments.append([token] if token == "which" and following not in ABOUT else [])
        else:
            segments[-1] += _parts(token)
    return [_negated(segment) for segment in segments if segment and segment[0] != "which"]


def _negated(segment: list[str]) -> list[tuple[str, bool]]:
    found, negated, last = [], False, -9
    whole = bool(BACKWARD & set(segment)) or "ruled out" in " ".join(segment)
    for i, word in enumerate(segment):
        found.append((word, negated))
        if word == "nor":
            negated = True
        elif (
            word in FORWARD or word.endswith("n't") or (word == "free" and segment[i + 1 : i + 2] == ["of"])
        ) and not LIMITS & set(segment[i + 1 : i + 2]):
            negated, last = not (negated and i - last < 3), i  # "not without"
            ahead = segment[i + 1 : i + 4]
            whole = whole or (word != "no" and bool(PRESENCE & set(ahead)))
            whole = whole or (ahead[:1] in (["appear"], ["appears"]) and ahead[1:2] in ([], ["in"], ["on"], ["at"]))
    return [(word, negated or whole) for word, negated in found]


def _parts(word: str) -> list[str]:
    return [word] if word in MEANINGS or word in EXCLUDES or word.endswith("n't") else word.split("-")


@cache
def _stems(known: frozenset[str]) -> frozenset[str]:
    return frozenset(map(_stem, known))


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    """Return the form that a word's inflections share ("enlarged", "enlargement"), or its one meaning."""
    if word in MEANINGS or word in EXCLUDES or word in ("normal", "abnormal"):
        return MEANINGS.get(word, word)
    if not word.endswith("ss"):
        ending = next((one for one in ENDINGS if word.endswith(one) and len(word) - len(one) >= 3), "")
        word = word.removesuffix(ending)
    return word.rstrip("eiy")
