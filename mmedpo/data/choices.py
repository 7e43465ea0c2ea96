"""Which of several options an answer asserts, by letter or text; rules only, in English, conservative where in doubt.

Options are found as whole words, the longest first. Those that are only compared with, denied, hedged or listed as
offered do not count. `offered` finds the options in a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mmedpo.data import choice_words as known
from mmedpo.data.offered import Asked, asked_of, offered
from mmedpo.data.option_names import ENDS, Item, Names, determines, form, items_in, mark_letters, names_of, tokens_of
from mmedpo.data.statements import content
from mmedpo.data.text import plain

__all__ = ["Asserted", "asserted", "offered"]

Asserted = int | Literal["both", "neither", "refused", "empty"]

_TAGS = re.compile(r"</?[a-z_]+>|<\|[^|<>]*\|>|\\boxed\b|[*_`#{}$§]+|\\text\b", re.IGNORECASE)
_ROLE = re.compile(r"\s*(?:(?:assistant|answer|response|model|ai|gpt|final answer|system|a)\s*:\s*)+", re.IGNORECASE)
_DENIALS = frozenset(content(" ".join(known.DENIALS)))
_SIZES = frozenset(content(" ".join(known.SIZES | known.CUTS)))
_GLUE = frozenset(("or", "and", "/", ",", "a", "an", "the", "in", "on", "vs", "vs.", "versus", "nor", "either", ":"))


def asserted(answer: str, options: Sequence[str], question: str | None = None, lettered: bool = False) -> Asserted:
    """Return the index of the option that an answer asserts.

    Several asserted options are "both", also where a letter disagrees with the text beside it. None is "neither", or
    "refused" where the answer declines to choose. An answer that does nothing but say that it is "not" one of two
    options asserts the other.

    Args:
        answer: without thoughts.
        options: at least two texts.
        question: the question, by which "smaller" is read ("Which is bigger, the heart or the liver?").
        lettered: the options were shown with letters, so that "B" and "(b)" name the second.

    Example:
        >>> asserted("The liver is larger than the spleen.", ("spleen", "liver"))
        1
        >>> asserted("Not the left, but the right.", ("left lung", "right lung")), asserted("CT or MRI", ("CT", "MRI"))
        (1, 'neither')
        >>> asserted("A CT scan", ("MRI", "CT"), lettered=True), asserted("A.", ("MRI", "CT"), lettered=True)
        (1, 0)
    """
    table = names_of(tuple(options))
    text = _TAGS.sub(" ", plain(answer)) if not (answer.isascii() and answer.isalnum()) else answer
    if lettered:
        text = mark_letters(text, table.texts)
    elif role := _ROLE.match(text):
        text = text[role.end() :]
    tokens = tokens_of(text.replace("?", " ") if "?" in "".join(options) else text)
    if not any(token[0].isalnum() or token[0] == "§" for token in tokens):
        return "empty"
    exact = " ".join(token for token in tokens if token not in ENDS)
    if table.texts.count(exact) == 1 and "?" not in tokens:
        return table.texts.index(exact)
    items = items_in(tokens, table)
    asked = asked_of(question, tuple(options))
    found: list[tuple[list[Item], set[int]]] = []
    denied: set[int] = set()
    by_not = True
    clauses = _clauses(items)
    if asked.sign and not known.COMPARATIVES.isdisjoint(items):  # "both are visible, but the liver is larger"
        clauses = [clause for clause in clauses if _names(clause) == 1 or not known.SIZES.isdisjoint(clause)]
    for clause in clauses:
        stated, refuted, plainly = _statement(clause, table, asked)
        if stated:
            found.append((clause, stated))
        denied |= refuted
        by_not = by_not and (plainly or not refuted)
    choice = _decide(found, asked, "also" in tokens)
    if isinstance(choice, int):
        return choice
    if known.DECLINES.search(" ".join(tokens)):
        return "refused"
    if choice == "neither" and not found and "?" not in tokens:
        if denied:
            return _eliminated(denied, tokens, table, asked, by_not)
        return _fallback(tokens, table, asked)
    return choice


def _clauses(items: list[Item]) -> list[list[Item]]:
    """Return the clauses that name an option; those that end with "?" are questions and left out."""
    found: list[list[Item]] = [[]]
    glossed, sentence = -1, 0
    for i, item in enumerate(items):
        if i <= glossed:
            continue
        if isinstance(item, int):
            found[-1].append(item)
        elif item == "(" and i and items[i + 1 : i + 3] == [items[i - 1], ")"]:
            glossed = i + 2  # "CT (computed tomography)"
        elif item in ENDS:
            if item == "?":
                del found[sentence:]
            sentence = len(found)
            found.append([])
        elif item in known.BREAKS:
            if item != "as" or _restarts(items, i + 1):
                found.append([])
            found[-1].append(item)
        elif (item == "," or (item == "and" and not known.VERBS.isdisjoint(found[-1]))) and _restarts(items, i + 1):
            found.append([])
        else:
            found[-1].append(item)
    return [clause for clause in found if _names(clause)]


def _names(clause: list[Item]) -> int:
    return len({item for item in clause if isinstance(item, int)})


def _restarts(items: list[Item], start: int) -> bool:
    """Return True if a clause of its own begins there: a verb follows before the next comma or end."""
    for item in items[start : start + 12]:
        if isinstance(item, str):
            if item in known.VERBS or item in known.HEALTHY:
                return True
            if item in ENDS or item in (",", "and", "or", "than"):
                return False
    return False


def _statement(clause: list[Item], table: Names, asked: Asked) -> tuple[set[int], set[int], bool]:
    """Return the stated and the denied options of a clause, and True if only a "not" denies."""
    stated: list[int] = []
    compared: list[int] = []
    denied: set[int] = set()
    negated = cut = False
    plainly = True
    words = {item for item in clause if isinstance(item, str)}
    for i, item in enumerate(clause):
        if isinstance(item, int):
            if negated or (i and clause[i - 1] == "non"):
                denied.add(item)
            elif cut:
                compared.append(item)
            else:
                stated.append(item)
        elif item in known.CUTS or (item == "as" and not words.isdisjoint(known.AS_BIG)):
            cut = True
        elif item in known.BESIDE:
            cut = cut or bool(stated) or clause[0] in known.VERBS
        elif item == "no":
            if determines(clause, i):
                if _denies_before(clause[i:], asked):
                    denied |= set(stated)
                    stated = []
                negated, plainly = True, False
        elif item in known.DENIALS or item.endswith("n't") or (item == "free" and clause[i + 1 : i + 2] == ["of"]):
            ahead = clause[i + 1 : i + 3]
            if ahead and ahead[0] in known.LIMITS:
                continue
            last = not any(isinstance(later, int) for later in clause[i:])
            if (last and not known.AFFIRMED.isdisjoint(ahead or ["it"])) or _denies_before(clause[i:], asked):
                denied |= set(stated)
                stated = []
                plainly = plainly and (not ahead or _asks(ahead, asked))
            negated = True
            plainly = plainly and (item in ("not", "cannot", "unlikely") or item.endswith("n't"))
        elif item == "," and {"or", "nor", "and"}.isdisjoint(clause[i:]):  # not within "not CT, MRI or X-ray"
            negated = cut = False
    if not words.isdisjoint(known.HEDGES) or (clause[0] == "of" and words.isdisjoint(known.VERBS)):
        return set(), set(), False
    if stated and (not words.isdisjoint(known.DENIED) or (asked.ill and _is_healthy(clause))):
        return set(), denied | set(stated), False
    if asked.sign:
        return (*_by_size(clause, words, stated, compared, denied, asked), plainly)
    if len(set(stated)) > 1:
        stated = _without_lists(clause, stated, len(table.forms))
    return set(stated), denied, plainly


def _is_healthy(clause: list[Item]) -> bool:
    """Return True for "a normal lung", "lung clear", "the lung appears normal", not for "lung with normal vessels"."""
    last, verb = -9, False
    for i, item in enumerate(clause):
        if isinstance(item, int):
            last, verb = i, False
        elif item in known.HEALTHY:
            before = item != "clear" and isinstance((clause[i + 1 :] or [""])[0], int)
            if before or (last >= 0 and verb) or last == i - 1:
                return True
        else:
            verb = verb or item in known.VERBS
    return False


def _denies_before(rest: list[Item], asked: Asked) -> bool:
    """Return True if what a negation denies is what the question asks for ("the left lung has no lesion")."""
    ahead = rest[1:5]
    if any(isinstance(later, int) for later in rest) or not known.OTHERS.isdisjoint(ahead):
        return False
    return _asks(ahead, asked) or (asked.ill and any(form(one) == "abnormal" for one in ahead if isinstance(one, str)))


def _asks(words: list[Item], asked: Asked) -> bool:
    return any(isinstance(word, str) and form(word) in asked.content for word in words)


def _by_size(
    clause: list[Item], words: set[str], stated: list[int], compared: list[int], denied: set[int], asked: Asked
) -> tuple[set[int], set[int]]:
    """Return the stated and denied options where the question asks for the bigger or smaller one."""
    sign = -1 if words & known.SMALL else 1 if words & known.BIG else 0
    for i, item in enumerate(clause):
        turns = isinstance(item, str) and (item in ("not", "never") or item.endswith("n't"))
        if turns and not known.SIZES.isdisjoint(clause[i + 1 : i + 4]):
            sign, compared, denied = -sign, [*compared, *denied], set()  # "not larger than"
    if "same" in words or "equal" in words or "similar" in words:
        return set(), set()
    if not sign:
        return set(_without_lists(clause, stated, asked.size)), denied
    if "less" in words and words & (known.BIG - {"more"}):
        sign = -1
    subjects = set(_without_lists(clause, stated, asked.size)) or denied
    agrees = (sign == asked.sign) == (bool(stated) or not denied)  # "not larger" is smaller
    if subjects and agrees:
        return subjects, set()
    if subjects:  # "the heart is smaller than the liver", and of two also "the heart is smaller"
        left = set(compared) - subjects
        if not left and asked.size == 2 and len(subjects) == 1:
            left = {0, 1} - subjects
        return (left if len(left) == 1 else set()), subjects
    if not agrees:
        return set(compared), set()
    alone = set(content(" ".join(words))) <= asked.content | _SIZES
    return ({0, 1} - set(compared) if alone and asked.size == 2 and len(compared) == 1 else set()), set()


def _without_lists(clause: list[Item], stated: list[int], size: int) -> list[int]:
    """Return the stated options without those that a list only offers: "A or B", or all of them beside one of them."""
    groups: list[tuple[list[int], set[str]]] = []
    glue: set[str] | None = None
    for item in clause:
        if isinstance(item, int):
            if item not in stated:
                glue = None
            elif glue is not None and groups and glue <= _GLUE:
                groups[-1][0].append(item)
                groups[-1][1].update(glue)
            else:
                groups.append(([item], set()))
            glue = set()
        elif glue is not None:
            glue.add(item)
    kept = []
    for options, joined in groups:
        several = len(set(options)) > 1
        offers = several and bool(joined & {"or", "/", "vs", "vs.", "versus", "nor"})
        whole = len(set(options)) == size and (len(groups) > 1 or joined <= {",", "/", ":", "a", "an", "the"})
        if not offers and not (several and whole):
            kept += options
    return kept


def _decide(found: list[tuple[list[Item], set[int]]], asked: Asked, also: bool) -> Asserted:
    """Return the option that the statements of all clauses amount to."""
    found = [pair for pair in found if "would" not in pair[0]] or found  # "MRI, since CT would show bone"
    stated = set().union(*(options for _, options in found)) if found else set()
    if len(stated) == 1:
        return next(iter(stated))
    if not stated:
        return "neither"
    concluded = [some for clause, some in found if not known.CONCLUDES.isdisjoint(clause)]
    if concluded and len(concluded[-1]) == 1:
        return next(iter(concluded[-1]))
    if len(found[0][1]) == 1 and not also:
        about = [some for clause, some in found if _about(clause, asked)]
        together = set().union(*about) if about else stated
        if len(together) == 1:
            return next(iter(together))
    return "both"


def _about(clause: list[Item], asked: Asked) -> bool:
    """Return True if a clause has no subject of its own, or one that the question names."""
    subject = content(" ".join(item for item in clause if isinstance(item, str)))
    return not subject or not {"this", "it", "it's"}.isdisjoint(clause) or not asked.content.isdisjoint(subject)


def _eliminated(denied: set[int], tokens: list[str], table: Names, asked: Asked, by_not: bool) -> Asserted:
    """Return the other of two options where the answer only says that it is not one of them."""
    if len(table.forms) != 2 or len(denied) != 1:
        return "neither"
    others = set(content(" ".join(tokens))) - table.names - asked.content - _DENIALS
    if table.opposite or (by_not and not others):
        return 1 - next(iter(denied))
    return "neither"


def _fallback(tokens: list[str], table: Names, asked: Asked) -> Asserted:
    """Return the option of an answer that names none in full: a part of one only, "both" or "bilateral"."""
    bare = [token for token in tokens if token[0].isalnum()]
    opened = [i for i, first in enumerate(table.firsts) if [first] == bare]  # "Without", "Less"
    if len(opened) == 1:
        return opened[0]
    if not known.DENIALS.isdisjoint(tokens) or not known.HEDGES.isdisjoint(tokens) or "no" in tokens:
        return "neither"
    forms = {form(token) for token in tokens if content(token)}
    fits = [i for i, option in enumerate(table.forms) if forms and forms <= option]
    if len(fits) == 1:
        return fits[0]
    if (
        table.both is None
        and not (asked.ill and not known.HEALTHY.isdisjoint(tokens))
        and ("both" in tokens or ("bilateral" in map(form, tokens) and {"left", "right"} <= table.names))
    ):
        return "both"
    return "neither"
