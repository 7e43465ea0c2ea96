"""Form of rejected responses, and the checks that make one unusable: sampled and written ones pass the same."""

from __future__ import annotations

import re
from functools import lru_cache

from mmedpo.data import placeholders
from mmedpo.data.statements import content, denies
from mmedpo.data.text import Polarity, plain, said, words
from mmedpo.data.yes_no import is_choice, is_echo, says
from mmedpo.schema import text_fault

STYLES = ("match", "minimal", "free")
FULL_STOPS = ".。।۔"
RUN = 4  # words in a row that count as copied
COPIED = 0.6  # share of copied words from which a text repeats another one
# Words that no answer ends with, in small letters: "a" may be the name of something (vitamin A).
_OPEN_ENDS = frozenset((
    "is", "are", "was", "were", "be", "been", "the", "a", "an", "and", "or", "with", "of", "to", "from", "by", "for",
    "between", "into", "than", "which", "because", "due", "its", "their", "has", "have", "may", "will",
))  # fmt: skip
_REMARK = re.compile(
    r"\b(?:correct|incorrect|wrong|gold|true|false) (?:answer|response|option|choice|statement|one)\b"
    r"|\b(?:is|are|was) (?:not )?(?:correct|incorrect|wrong|true|false)\b"
)
_VERDICTS = frozenset(("correct", "incorrect", "wrong", "true", "false", "answer"))  # they name no finding
_COMPLETE = re.compile(
    r"\b(?:it|there|they|he|she|we|i) (?:is|are|was|were|does|do|has|have|may|will)$"
)  # "Yes, it is."


def in_case_of(pattern: str, word: str) -> str:
    """Return the lower-case `word` in upper case, capitalised or unchanged, as `pattern` is."""
    if pattern.isupper() and len(pattern) > 1:
        return word.upper()
    return word.capitalize() if pattern[:1].isupper() else word


def in_form_of(gold: str, text: str) -> str:
    """Return `text` in the form of `gold`.

    The form is the surrounding white space, the case of the first letter (acronyms keep theirs) and the final full
    stop. Runs of spaces become one space unless `gold` has such runs.
    """
    before, answer, stop, after = _parts(gold)
    body = _parts(text)[1]
    if not re.search(r"[^\S\n]{2}", answer):
        body = re.sub(r"[^\S\n]+", " ", body)
    first = body.split(maxsplit=1)[0] if body else ""
    if answer[:1].isupper():
        body = body[:1].upper() + body[1:]
    elif answer[:1].islower() and not (first.isupper() and len(first) > 1):
        body = body[:1].lower() + body[1:]
    return before + body + stop + after


def _parts(text: str) -> tuple[str, str, str, str]:
    """Return leading white space, the answer, its final full stops and trailing white space."""
    head = text.lstrip()
    answer = head.rstrip()
    body = answer.rstrip(FULL_STOPS)
    return text[: len(text) - len(head)], body, answer[len(body) :], head[len(answer) :]


def length_range(gold: str) -> tuple[int, int]:
    """Return the fewest and most words of a rejected response: within a factor of 2, or 2 words, of `gold`.

    Example: (1, 4) for a gold answer of 2 words, (5, 20) for one of 10.
    """
    count = len(words(gold))
    return max(1, min(count - 2, -(-count // 2))), max(count + 2, 2 * count)


def lines(text: str) -> int:
    """Return the number of lines of `text`, blank lines between others included."""
    return 1 + text.strip().count("\n")


def most_changes(gold: str) -> int:
    """Return the most words that a minimal edit of `gold` changes: a quarter of them, but at least 2."""
    return max(2, len(words(gold)) // 4)


def changes(gold: str, text: str) -> int:
    """Return the word-level edit distance between `gold` and `text`; 0 if at most the form differs."""
    from nltk.metrics.distance import edit_distance

    return edit_distance(words(gold), words(text))


def longest(gold: str, lengths: tuple[int, int], style: str) -> int:
    """Return the most characters of a written response, for the schema of the reply: generous, so that none is cut.

    Args:
        lengths: of the gold answer (`length_range`).
    """
    return 200 + 4 * len(gold) if style == "free" else max(64, 16 * lengths[1])


def gold_says(question: str, gold: str, task: str) -> Polarity | None:
    """Return the yes or no of a gold answer; None for a report, a choice, a name and the like."""
    if task == "report" or (task != "closed_vqa" and said(gold) == "neither"):
        return None
    return says(gold, question)


def answer_fault(question: str, gold: str, text: str, task: str, style: str, instructions: str = "") -> str | None:
    """Return why `text` cannot be the rejected response to `gold` in this style, or None if it can.

    Args:
        instructions: words of the prompt that asked for it, which it must not repeat.
    """
    held = placeholders.fault(text)
    fault = f"the rejected answer {held}" if held else text_fault(gold, text, task)
    fault = fault or _meaning_fault(question, gold, text, task) or copy_fault(gold, text, instructions)
    if fault or style == "free":
        return fault
    (low, high), count = length_range(gold), len(words(text))
    if not low <= count <= high:
        return f"it has {count} words, and an answer in the style of the gold answer has {low} to {high}"
    if lines(text) != lines(gold):
        return f"it has {lines(text)} lines, and the gold answer has {lines(gold)}"
    if style == "minimal" and (changed := changes(gold, text)) > most_changes(gold):
        return f"it changes {changed} words of the gold answer, and at most {most_changes(gold)} may change"
    return None


def _meaning_fault(question: str, gold: str, text: str, task: str) -> str | None:
    """Return why a text does not contradict the gold answer, as far as words show it."""
    if task == "report":
        return None
    if right := gold_says(question, gold, task):
        found = says(text, question)
        if found is None:
            return f"the gold answer says {right} to the question, and this says neither yes nor no"
        return f"the gold answer says {right} to the question, and so does this" if found == right else None
    if _repeats(text, question) and not (is_choice(question) or _repeats(gold, question)):
        return "it repeats the question"
    return "it says nothing beyond question and gold answer" if _adds_nothing(question, gold, text) else None


def _repeats(text: str, question: str) -> bool:
    return is_echo(text, question) or _copied(text, question)


def _adds_nothing(question: str, gold: str, text: str) -> bool:
    """Return True where words of the gold answer were only left out, so that the rest may be true."""
    asked = set() if is_choice(question) else {*content(question)}
    body = " ".join(word for word in words(text) if word not in _VERDICTS)
    new = [word for word in content(body) if word not in asked]
    rest = iter(content(gold))
    left_out = all(word in rest for word in new) and bool(content(text) or content(gold))
    return left_out and denies(text) == denies(gold)


def copy_fault(gold: str, text: str, instructions: str) -> str | None:
    """Return the fault of a text that was copied from its instructions or breaks off."""
    if _copied(text, instructions) and not _copied(gold, instructions):
        return "it repeats the instructions"
    if _REMARK.search(plain(text).casefold()) and not _REMARK.search(plain(gold).casefold()):
        return "it speaks of the task and not of the image"
    if not words(text) and words(gold):
        return "it has no words"
    body, last = plain(text).rstrip(FULL_STOPS + " \n"), (plain(text).split() or [""])[-1].strip(FULL_STOPS + "\"'")
    breaks_off = last in _OPEN_ENDS and not _COMPLETE.search(body.casefold()) and len(words(text)) > 1
    if (breaks_off or body.endswith((",", ":", ";", "(", "-", "/"))) and words(gold)[-1:] != words(text)[-1:]:
        return "it breaks off in the middle of a phrase"
    return None


def _copied(text: str, source: str) -> bool:
    """Return True where most of a text are runs of another one's words; a short text is one run of at least two."""
    said_words = words(text)
    size = min(RUN, len(said_words))
    if size < 2:
        return False
    runs = _runs(source, size)
    starts = [i for i in range(len(said_words) - size + 1) if tuple(said_words[i : i + size]) in runs]
    return len({i + n for i in starts for n in range(size)}) >= COPIED * len(said_words)


@lru_cache(maxsize=256)  # instructions are the same for many answers
def _runs(source: str, size: int) -> frozenset[tuple[str, ...]]:
    known = words(source)
    return frozenset(tuple(known[i : i + size]) for i in range(len(known) - size + 1))
