"""Options of multiple-choice questions: read from a source's row, and shown in prompts (`asked`).

A model is asked the same text in curation, training and evaluation: the question, then a line for each option.

    Which lobe is affected?
    A. upper lobe
    B. lower lobe
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from string import ascii_uppercase as LETTERS
from typing import Any

from mmedpo.data import placeholders
from mmedpo.data.tables import as_text, parsed
from mmedpo.data.text import folded, number_of

LETTERED = ("option", "choice", "")  # beginnings of columns with one option each: option_a, "Choice A", A
_LETTER = re.compile(r"(?:option|answer)?\s*[(\[]?([a-z])[)\].:]*", re.IGNORECASE)
_LETTER_AND_TEXT = re.compile(r"(?:option|answer)?\s*[(\[]?([a-z])(?:[)\].:]+\s*|\s+)(\S.*)", re.IGNORECASE | re.DOTALL)
_MARKED = re.compile(r"[(\[]?([A-Za-z])\s*[)\].:]+\s*")


def asked(question: str, options: Sequence[str] | None) -> str:
    """Return the text that a model is asked: the question, and a line "A. ..." for each option."""
    return question + _lines(options or ())


def bare(text: str, options: Sequence[str] | None) -> str:
    """Return the question of an `asked` text."""
    return text.removesuffix(_lines(options or ()))


def _lines(options: Sequence[str]) -> str:
    return "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def columns(keys: Collection[str]) -> list[str]:
    """Return the columns (`columns.key`) that hold an option each, in order: at least two, from the letter a."""
    for beginning in LETTERED:
        found = [beginning + letter for letter in LETTERS.lower()]
        count = next((place for place, name in enumerate(found) if name not in keys), len(found))
        if count > 1:
            return found[:count]
    return []


def gathered(cells: Mapping[str, Any], keys: Collection[str]) -> list[Any] | None:
    """Return the options of a row with one column each, without missing ones at the end; None without any."""
    found = [cells.get(name) for name in columns(keys)]
    while found and found[-1] is None:
        found.pop()
    return found or None


def read(cell: Any) -> tuple[tuple[str, ...], tuple[str, str] | None]:
    """Return the options of a row (a list, an object by letter, or one of them in a CSV cell), and a fault or None.

    A letter that each option begins with ("A: lung") is removed, since prompts show it.
    """
    listed = [] if cell is None else parsed(cell)
    if isinstance(listed, dict) and [*map(str.upper, listed)] == [*LETTERS[: len(listed)]]:
        listed = [*listed.values()]
    if cell is None:
        return (), None
    if not isinstance(listed, list) or any(isinstance(one, (bool, list, dict)) for one in listed):
        return (), ("are a list of texts, or columns option_a, option_b and so on", repr(cell))
    texts = ["" if one is None or one != one else " ".join(as_text(one).split()) for one in listed]
    marks = [_MARKED.match(text) for text in texts]
    if all(mark and mark[1].upper() == letter for mark, letter in zip(marks, LETTERS, strict=False)):
        unmarked = [text[mark.end() :] for text, mark in zip(texts, marks, strict=True) if mark]
        texts = unmarked if any(unmarked) else texts  # "A.", "B.": panels of a figure
    sentence = fault(texts) or next(filter(None, map(placeholders.fault, texts)), None)
    return ((), (sentence, repr(cell))) if sentence else (tuple(texts), None)


def fault(options: Sequence[str]) -> str | None:
    """Return why texts cannot be the options of a question, or None."""
    if not 2 <= len(options) <= len(LETTERS):
        return f"are {len(options)}; a question has 2 to {len(LETTERS)} options"
    if not all(map(folded, options)):
        return "hold an empty one; write its text or remove it"
    return "hold one twice; each must differ" if len({*map(folded, options)}) < len(options) else None


def of_row(cell: Any, answer: str) -> tuple[tuple[str, ...], str, list[tuple[str, str, str]]]:
    """Return the options of a row, its gold answer as the text of one, and faults: column, sentence and value."""
    found, wrong = read(cell)
    if wrong:
        return found, answer, [("options", *wrong)]
    named = gold(answer, found) if found and answer else answer
    if named is None:
        return found, answer, [("answer", "is none of the options; write the text or the letter of one", repr(answer))]
    return found, named, []


def gold(answer: str, options: Sequence[str]) -> str | None:
    """Return the option that a gold answer names: by its text, its letter ("B", "(b)", "B.") or both; else None.

    The text counts before the letter.
    """
    known = {_form(option): option for option in options}
    if found := known.get(_form(answer)):
        return found
    if (match := _LETTER.fullmatch(answer.strip())) and (place := LETTERS.index(match[1].upper())) < len(options):
        return options[place]
    if (match := _LETTER_AND_TEXT.fullmatch(answer.strip())) and (found := known.get(_form(match[2]))):
        return found if options.index(found) == LETTERS.index(match[1].upper()) else None
    return None


def _form(text: str) -> str:
    return folded(text).rstrip(" .") or folded(text)


def task_fault(task: str, options: Sequence[str]) -> str | None:
    """Return why a question of this task cannot have these options, or None."""
    if task == "choice_vqa" and not options:
        return "is choice, which needs options: a list, or columns option_a, option_b and so on"
    return "has options; use choice or closed" if options and task not in ("choice_vqa", "closed_vqa") else None


def notice(name: str, rewritten: int) -> str | None:
    """Return a notice about the gold answers of the source `name` that were rewritten as their options, or None."""
    if not rewritten:
        return None
    count = number_of(rewritten, "gold answers")
    return f"{name}: {count} given by letter or in another spelling, written as the text of the option."
