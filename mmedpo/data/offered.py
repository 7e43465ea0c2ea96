"""Options that a question itself offers ("Is this a CT or an MRI?"); rules only, in English."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from mmedpo.data.choice_words import (
    ANY,
    ARTICLES,
    ASKED_ILL,
    ASKS,
    BIG,
    COMPARATIVES,
    ENDS,
    GROUPS,
    LEADING,
    OBJECT_VERBS,
    PREDICATES,
    PREFIXES,
    SMALL,
    STARTS,
    WH,
    modifies,
)
from mmedpo.data.option_names import items_in, names_of, tokens_of
from mmedpo.data.statements import content
from mmedpo.data.text import plain

LONGEST_OPTION = 8  # words

_TOKEN = re.compile(r"(?:vs|e\.g|i\.e)\b\.?|[^\W_]+(?:[/.'-][^\W_]+)*|(?<=\s)-(?=\s)|-(?=\s)|[,.;:!?()\n—]")
# "hypo- or hyperdense"
_SUSPENDED = re.compile(
    r"\b(hyp[eo]r?|intra|extra|supra|infra|uni|bi|mono|multi|sub|epi|pre|post|iso|homo|hetero)- (or|vs\.?) "
    r"(hyp[eo]r?|intra|extra|supra|infra|uni|bi|mono|multi|sub|epi|pre|post|iso|homo|hetero)(-?)(\w+)",
    re.IGNORECASE,
)
_ORS = frozenset(("or", "vs", "vs.", "versus"))
_NEGATED = re.compile(r"(?:non|not|no|without|with|un|in|ir|im|il|ab|a|dis)?[ -]?(.+)")


@lru_cache(maxsize=4096)
def offered(question: str) -> tuple[str, ...]:
    """Return the options that a question offers, in its order; none where yes or no answers it in spite of an "or".

    A head that options share is given to each, and articles are left out. "Is there any A or B?", "Does it show A or
    B?" and "A or not?" ask for yes or no, unless A and B exclude each other.

    Example:
        >>> offered("Is this a CT or an MRI?"), offered("Is the mass in the left or right lung?")
        (('CT', 'MRI'), ('left lung', 'right lung'))
        >>> offered("Which is bigger, the liver, the spleen or the kidney?"), offered("Is there any mass or lesion?")
        (('liver', 'spleen', 'kidney'), ())
    """
    if not re.search(r"\b(?:or|vs|versus)\b", question, re.IGNORECASE):
        return ()
    sentences: list[list[str]] = [[]]
    for token in _TOKEN.findall(_SUSPENDED.sub(r"\1\4\5 \2 \3\4\5", plain(question))):
        if token in ".;!?\n":
            sentences.append([])
        else:
            sentences[-1].append(token)
    for sentence in sentences:
        if any(token.casefold() in _ORS for token in sentence):
            found = _options(sentence)
            if len({option.casefold() for option in found}) > 1:
                return found
    return ()


def _options(sentence: list[str]) -> tuple[str, ...]:
    low = [token.casefold() for token in sentence]
    ors = [i for i, token in enumerate(low) if token in _ORS]
    last = ors[-1]
    after = low[last + 1 : last + 3]
    if after and after[0] in ASKS and {"it", "this", "they"}.isdisjoint(after):
        return ()  # "..., or is one larger?"
    right, predicate = _right(sentence[last + 1 :])
    if not right or (right[0].casefold() in ("not", "no", "more", "other") and len(right) == len(ors) == 1):
        return ()
    pieces, first = _pieces(sentence[:last], low[:last])
    item, boundary = _left(pieces[0], [*pieces[1:], right][0], first, predicate)
    items = [item, *(_lead(piece) for piece in pieces[1:]), right]
    if not all(0 < len(one) <= LONGEST_OPTION for one in items) or items[-1][0].casefold() == "not":
        return ()
    if low[0] in WH and boundary not in (",", ":", "(", "-", "—", "as") and boundary not in COMPARATIVES:
        return ()  # "What test or procedure ..."
    if any("there" in one for one in items):
        return ()
    items = _shared(items, own_article=low[last + 1] in ARTICLES)
    options = tuple(" ".join(one) for one in items)
    names = [option.casefold() for option in options]
    if {"yes", "no"} & set(names) or _asks_yes_no(low, names, last):
        return ()
    return options


def _pieces(left: list[str], low: list[str]) -> tuple[list[list[str]], str | None]:
    """Return the items of the list that ends at the last "or", and the mark before the first."""
    pieces: list[list[str]] = [[]]
    mark = None
    for token, word in zip(reversed(left), reversed(low), strict=True):
        if word in _ORS or word == ",":
            if pieces[0]:
                if word == "," and not _whole(pieces[0]):
                    mark = word
                    break
                pieces.insert(0, [])
        elif word in (":", "(", "-", "—"):
            mark = word
            break
        elif word != ")":
            pieces[0].insert(0, token)
    if len(pieces) > 1 and (not pieces[0] or {token.casefold() for token in pieces[0]} & WH):
        pieces.pop(0)
        mark = ","
    return pieces, mark


def _whole(piece: list[str]) -> bool:
    """Return True if all of a piece between commas may be one option."""
    return bool(piece) and not {token.casefold() for token in piece} & (ASKS | WH | {"this", "there"})


def _lead(piece: list[str]) -> list[str]:
    while piece and piece[0].casefold() in LEADING:
        piece = piece[1:]
    return piece


def _right(rest: list[str]) -> tuple[list[str], bool]:
    """Return the last option, and True where a predicate follows it ("seen", "affected")."""
    rest = _lead(rest)
    for i, token in enumerate(rest):
        word = token.casefold()
        ends = word in ENDS or word in COMPARATIVES or token in ",:()-—"
        if i and (ends or (word == "of" and rest[i + 1 : i + 2] and rest[i + 1].casefold() in ("this", "that"))):
            return rest[:i], word in PREDICATES or word in COMPARATIVES
    return rest, False


def _left(piece: list[str], right: list[str], mark: str | None, predicate: bool) -> tuple[list[str], str | None]:
    """Return the first option and the word or mark before it."""
    if mark:
        piece = _lead(piece)
    start = next((i for i in range(len(piece), 0, -1) if _starts(piece[i - 1])), 0)
    boundary = piece[start - 1].casefold() if start else mark
    if (
        boundary in ARTICLES
        and start > 1
        and piece[start - 2].casefold() in COMPARATIVES | {"of"}
        and piece[0].casefold() in WH
    ):
        boundary = "as"
    window = piece[start:]
    if not window:  # "with or without contrast"
        return piece[-1:], boundary
    before = {token.casefold() for token in piece[:start]}
    placed = boundary in ARTICLES and start > 2 and piece[start - 2].casefold() in ("in", "on")
    if placed and right[0].casefold().endswith("ed") and len(right) > 1:
        return piece[start - 3 :], None  # "diffuse in the chest or lateralized to one side"
    noun = (
        boundary in ARTICLES and start > 1 and not (modifies(window[-1].casefold()) and modifies(right[0].casefold()))
    )
    noun = noun and not (boundary == "the" and piece[start - 2].casefold() in ASKS)
    if start and not predicate and not noun and before & ASKS:
        size = _units(right)
        if _opposed([window[-1].casefold(), right[0].casefold()]) or window[-1][-3:] == right[0][-3:]:
            size = 1
        keep, kept = 0, len(window)
        while kept and keep < size:
            kept -= 2 if kept > 1 and window[kept - 2].casefold() in PREFIXES else 1
            keep += 1
        if kept > 1 and window[kept - 1].casefold() == "and":  # "regular and uniform"
            kept -= 2
        elif kept and window[kept - 1].casefold() == "normal":  # "normal sized"
            kept -= 1
        window = window[kept:]
    return window, boundary


def _starts(token: str) -> bool:
    word = token.casefold()
    return word in STARTS or word in COMPARATIVES or word in WH or word.endswith(("'s", "s'"))


def _units(option: list[str]) -> int:
    """Return the words of an option before "of" or "to", with "hypo dense" as one."""
    words = [token.casefold() for token in option]
    end = next((i for i, word in enumerate(words) if word in ("of", "to")), len(words))
    return max(end - sum(word in PREFIXES for word in words[: end - 1]), 1)


def _shared(items: list[list[str]], own_article: bool) -> list[list[str]]:
    """Return the options with the head that the last one gives to all ("left or right lung")."""
    *others, last = items
    low = [word.casefold() for word in last]
    head = last[2 if low[0] in PREFIXES and len(last) > 1 else 1 :]
    if not head or any(one[-1].casefold() == low[-1] for one in others):  # "left, top or upper left"
        return items
    alike = modifies(low[0]) and not (head[0] in ("to", "down") and low[0].endswith(("ed", "ing")))
    single = [re.sub(r"(?<=ss)es$|(?<!s)s$", "", head[0]), *head[1:]]  # "one or both sides"

    def whole(one: list[str]) -> list[str]:
        word = one[0].casefold()
        shares = (alike and modifies(word)) or (head[0] == "of" and not own_article)
        if len(one) > 1 or not shares:
            return one
        return one + (single if low[0] == "both" or word in ("one", "1", "single") else head)

    return [*map(whole, others), last]


def _opposed(names: list[str]) -> bool:
    """Return True if options exclude each other by one of their words or by a negation."""
    found = [set(re.split(r"[\s-]+", name)) for name in names]
    if any(all(words & set(group) for words in found) and len(found) > 1 for group in GROUPS):
        return len(set.union(*found)) > 1
    cores = [match[1] for name in names if (match := _NEGATED.fullmatch(name))]
    return len(cores) > 1 and names[0] != names[1] and (cores[0] == names[1] or cores[1] == names[0])


def _asks_yes_no(low: list[str], names: list[str], last: int) -> bool:
    """Return True if yes or no answers the question in spite of its "or"."""
    if low[0] not in ASKS or {"whether", "if"} & set(low[:last]):
        return False
    if ANY & set(low):
        return True
    if _opposed(names):
        return False
    article = last + 1 < len(low) and low[last + 1] in ARTICLES
    if "there" in low[:3] or (low[0] in ("can", "could", "did", "do", "does") and OBJECT_VERBS & set(low)):
        return True
    if low[0] in ("are", "were") and {"seen", "visible", "present", "identified", "noted"} & set(low[last:]):
        return not article
    return all((name.endswith("ed") and " " not in name) or name == "shrunk" for name in names)


class Asked(NamedTuple):
    """A question as answers are read against it."""

    size: int  # number of options
    sign: int  # 1 for "bigger", -1 for "smaller", 0 where nothing is compared
    ill: bool  # asks for what is abnormal
    content: frozenset[str]  # stems of its words


@lru_cache(maxsize=4096)
def asked_of(question: str | None, options: tuple[str, ...]) -> Asked:
    """Return what a question with these options asks for."""
    if not question:
        return Asked(len(options), 0, False, frozenset())
    items = items_in(tokens_of(plain(question)), names_of(options))
    words = {item for item in items if isinstance(item, str)}
    sign = (1 if words & BIG else -1) if words & COMPARATIVES else 0
    if sign and words & SMALL & COMPARATIVES:
        sign = -1
    if sign and "less" in words:
        sign = -sign
    return Asked(len(options), sign, bool(words & ASKED_ILL), frozenset(content(question)))
