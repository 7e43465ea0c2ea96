"""Names of options in an answer: words in any inflection, heads that options share left out, letters."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from mmedpo.data import choice_words as known
from mmedpo.data.statements import content
from mmedpo.data.text import CLAUSE_STARTS, plain

Item = str | int  # a word, or the index of an option that is named

_PREFIX = re.compile(r"\b(sub|supra|infra|intra|extra|peri|para|trans|retro|epi|endo|iso|multi|hyper|hypo)-(?=\w)")
_TOKEN = re.compile(
    r"§\d+|x[- ]?rays?\b|vs\b\.?|(?:small|large) (?:bowel|intestine)s?\b|(?:hyper|hypo|non|multi(?!pl))(?=[^\W\d_]{3})"
    r"|[^\W_]+(?:(?<=\d)\.\d+)*(?:'[^\W_]+)?|[,.;:!?()\n/—]"
)
ENDS = frozenset(".;!?\n()—")  # of clauses

_LETTER = re.compile(r"(?<![\w'’/§-])[A-Za-z](?![\w'’/-]|\.\w)")
_NO_LETTER = frozenset(("hepatitis", "vitamin", "group", "type", "stage", "class", "grade", "zone", "level", "phase",
                        "figure", "panel", "image", "part", "segment", "fig", "patient", "case"))  # fmt: skip
_NAMES_LETTER = frozenset(("option", "choice", "letter", "options", "choices"))
_AFTER_LETTER = re.compile(
    r"\s*(?:$|[.):,;\]!?\n—]|-\s|(?:is|was|because|since|as|and|or|but|not|due|with|rather|instead|than)\b)"
)
_NEGATED = re.compile(r"(?:non|not|no|without|with|un|in|ir|im|il|ab|a|dis)?[ -]?(.+)")
_GROUPED = frozenset(word for group in known.GROUPS for word in group)


class Names(NamedTuple):
    """The ways to name each of several options."""

    texts: tuple[str, ...]  # in small letters, without marks
    phrases: dict[str, list[tuple[list[str], int]]]  # by their first form, the longest first
    forms: tuple[frozenset[str], ...]  # of each option
    names: frozenset[str]  # forms of all options
    firsts: tuple[str, ...]  # first word of each
    both: int | None  # the option that says "both"
    opposite: bool  # one of two options is the other denied


def tokens_of(text: str) -> list[str]:
    """Return the words and marks of a `plain` text, with prefixes joined ("sub-cortical") and " > " as words."""
    if " > " in text or " < " in text:
        text = text.replace(" > ", " larger than ").replace(" < ", " smaller than ")
    return _TOKEN.findall(_PREFIX.sub(r"\1", text.casefold()) if "-" in text else text.casefold())


@lru_cache(maxsize=65536)
def form(word: str) -> str:
    """Return what inflections and spellings of a word share."""
    if word[0] == "§":
        return word
    word = known.SPELLINGS.get(word, word).removesuffix("'s")
    if word[:-1] in _GROUPED and word[-1] == "s":
        word = word[:-1]
    if " " in word:  # "small bowel", "x ray"
        return "x-ray" if word[0] == "x" else word.removesuffix("s")
    if word in known.NUMBERS:
        return known.NUMBERS[word]
    if word.endswith(("ical", "ically", "erous")):
        word = word[: word.rindex("ic") + 2] if "ic" in word else word[:-3]
    bare = word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word
    return (content(word) or [bare])[0] or word  # no stem is left of "iii"


@lru_cache(maxsize=4096)
def names_of(options: tuple[str, ...]) -> Names:
    """Return the phrases that name each option, without those that could name two."""
    raw = [tokens_of(plain(option)) for option in options]
    texts = [[word for word in text if word not in ENDS] for text in raw]
    plainly = tuple(map(" ".join, texts))
    texts = [text[1:] if len(text) > 1 and text[0] in known.ARTICLES else text for text in texts]
    counted = all(text and (text[0] in known.QUANTITIES or text[0][0].isdigit()) for text in texts)
    owners: dict[tuple[str, ...], set[int]] = {}
    spelt = [tuple(map(form, text)) for text in texts]
    whole = {forms: i if spelt.count(forms) == 1 else -1 for i, forms in enumerate(spelt)}
    for i, text in enumerate(texts):
        for phrase in [raw[i], *_variants(text, texts[:i] + texts[i + 1 :]), *([text[:1]] if counted else [])]:
            forms = tuple(map(form, phrase))
            if forms and (whole.get(forms, i) == i) and (counted or forms not in (("1",), ("2",)) or forms in whole):
                owners.setdefault(forms, set()).add(i)
        owners.setdefault((f"§{i}",), set()).add(i)
    phrases: dict[str, list[tuple[list[str], int]]] = {}
    for forms, found in sorted(owners.items(), key=lambda pair: -len(pair[0])):
        if len(found) == 1:
            phrases.setdefault(forms[0], []).append((list(forms), min(found)))
    names = tuple(frozenset(map(form, text)) for text in texts)
    joined = [" ".join(text) for text in texts]
    both = next((i for i, text in enumerate(texts) if "both" in text or "bilateral" in text), None)
    firsts = tuple(text[0] if text else "" for text in texts)
    return Names(
        plainly, phrases, names, frozenset().union(*names), firsts, both, len(options) == 2 and _opposite(*joined)
    )


def _opposite(one: str, other: str) -> bool:
    cores = [match[1] for name in (one, other) if (match := _NEGATED.fullmatch(name))]
    return len(cores) == 2 and (cores[0] in (other, cores[1]) or cores[1] == one)


def _variants(text: list[str], others: list[list[str]]) -> list[list[str]]:
    """Return the ways to name an option: without a head that others share, with the other names of its modality."""
    if not text:
        return []
    found = [text]
    for other in others:  # "left" of "left lung" beside "right lung"
        shared = 0
        while shared < min(len(text), len(other)) - 1 and form(text[-1 - shared]) == form(other[-1 - shared]):
            shared += 1
        found += [text[:-shared]] if shared else []
        if text[:1] == other[:1] and len(text) > 1 < len(text[1]) and text[0] not in known.DENIALS | {"no", "non"}:
            found.append(text[1:])  # "upper lobe" of "right upper lobe" beside "right middle lobe"
    if known.modifies(text[0]) and len(text) > 2 and text[1] in ("in", "to", "on"):
        found.append(text[:1])  # "superior to the diaphragm"
    for phrase in list(found):
        while len(phrase) > 1 and phrase[-1] in known.CARRIERS:
            phrase = phrase[:-1]
            found.append(phrase)
    if text[:1] in (["with"], ["without"]) and len(text) > 1:
        found += [text[1:]] if text[0] == "with" else [["non", *text[1:]], ["no", *text[1:]]]
    if text[:1] == ["non"]:
        found.append(["un" + text[1], *text[2:]])
    if "/" in text:
        found += [text[: text.index("/")], text[text.index("/") + 1 :]]
    if "both" in text:
        found += [["both"], ["bilateral"]]
    if text[:1] == ["more"] and len(text) == 2:
        found.append([text[1].rstrip("e") + "er"])
    for phrase in list(found):
        for names in known.MODALITIES:
            for name in names:
                words = name.split()
                if phrase[: len(words)] == words or (len(words) == 1 and words[0] in phrase):
                    at = phrase.index(words[0])
                    found += [[*phrase[:at], *o.split(), *phrase[at + len(words) :]] for o in names]
    weak = (["more"], ["less"], ["with"], ["without"], ["no"], ["non"], ["one"], ["not"], ["in"], ["us"], ["of"])
    return [phrase for phrase in found if phrase and (phrase == text or phrase not in weak)]


def items_in(tokens: list[str], table: Names) -> list[Item]:
    """Return the tokens with every named option as its index."""
    forms = list(map(form, tokens))
    items: list[Item] = []
    i, size = 0, len(tokens)
    while i < size:
        for phrase, option in table.phrases.get(forms[i], ()):
            length = len(phrase)
            if forms[i : i + length] == phrase and not (phrase == ["no"] and determines(tokens, i)):
                items.append(option)
                i += length
                break
        else:
            items.append(tokens[i])
            i += 1
    return items


def determines(tokens: list[Item] | list[str], at: int) -> bool:
    """Return True for a "no" that belongs to the noun after it."""
    following = tokens[at + 1] if at + 1 < len(tokens) else "."
    return isinstance(following, int) or (following[0].isalnum() and following not in CLAUSE_STARTS)


def mark_letters(text: str, options: tuple[str, ...]) -> str:
    """Return the text with "§1" for each letter that names the second option, except in the words of an option."""
    size, shown = len(options), f" {' '.join(options)} "
    bare = text.strip(" \t\n.,:;()[]\"'")
    if len(bare) == 1 and 0 <= (index := ord(bare.upper()) - 65) < size:
        return f"§{index}"

    def mark(match: re.Match[str]) -> str:
        letter, start, end = match[0], match.start(), match.end()
        index = ord(letter.upper()) - 65
        before, after = text[max(start - 40, 0) : start].rstrip(), text[end : end + 40]
        last = re.search(r"(\w+)[\s:*(\[\"']*$", before)
        previous = last[1].casefold() if last else ""
        small, following = letter.casefold(), re.match(r"\s*(\w+)", after)
        spelt = f" {previous} {small} " in shown or (following and f" {small} {following[1].casefold()} " in shown)
        if not 0 <= index < size or previous in _NO_LETTER or spelt:
            return letter
        bracketed = before[-1:] in ("(", "[") and after.lstrip()[:1] in (")", "]")
        leads = not before.strip(" (\"'") and re.match(r"\s*[.):\]]", after) is not None
        named = previous in _NAMES_LETTER
        ends = _AFTER_LETTER.match(after) is not None
        if bracketed or leads or named or (letter.isupper() and ends and not _is_article(letter, after)):
            return f" §{index} "
        if letter.isupper() and letter not in "AI" and not before:  # "B liver"
            return f" §{index} "
        if previous in ("is", "answer", "for", "with", "choose", "pick", "select", "be") and re.match(
            r"\s*[.)]?\s*$", after
        ):
            return f" §{index} "
        return letter

    return re.sub(r"[(\[]\s*(§\d+)\s*[)\]]", r" \1 ", _LETTER.sub(mark, text))


def _is_article(letter: str, after: str) -> bool:
    return letter == "A" and re.match(r"\s+(?:with|as|not|due)\b", after) is not None
