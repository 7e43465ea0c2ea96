"""Verdicts on closed answers (`strict`): by the answer's own yes or no, or read against its question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from mmedpo.data.text import Said, said, stated_words, words
from mmedpo.data.yes_no import says

Verdict = Literal["correct", "wrong", "both", "neither", "refused", "empty"]
UNREAD = ("both", "neither", "refused", "empty")  # verdicts without a readable answer, which count as wrong


def asked_verdict(
    prediction: str, reference: str, question: str | None, options: Sequence[str] | None = None
) -> Verdict:
    """Return the verdict of `strict@4`, which reads answers without a plain yes or no against their question.

    Args:
        prediction: answer without thoughts; it may be empty.
        reference: gold answer.
        question: text of the question.
        options: texts that the question offered with letters, if it did.
    """
    found = verdict(prediction, reference)
    gold, _ = _read_reference(reference)
    if gold not in ("yes", "no") or found != "neither" or question is None:
        return found
    if not words(prediction):
        return "empty"
    answer = says(prediction, question)
    return found if answer is None else "correct" if answer == gold else "wrong"


def verdict(prediction: str, reference: str) -> Verdict:
    """Return the verdict of `strict@3` on a closed answer, which does not know the question.

    If the reference is a yes or no (`said`), the prediction's must be the same; "both" and "neither" have no readable
    verdict and are wrong. Any other reference is a choice ("left", "axial"). It is correct if its words occur whole and
    in sequence in the prediction, with no negation before them in their clause. The other choices are unknown here, so
    that "left or right" is correct for "left".

    Example:
        >>> verdict("The answer is yes.", "yes"), verdict("abnormal", "no"), verdict("It is axial.", "Axial")
        ('correct', 'neither', 'correct')
        >>> verdict("It is not the left, but the right side.", "left")
        'wrong'
    """
    gold, needle = _read_reference(reference)
    if gold in ("yes", "no"):
        answer = said(prediction)
        return answer if answer in ("both", "neither") else "correct" if answer == gold else "wrong"
    hay = stated_words(prediction, determiners=True)
    starts = [i for i, (word, plain) in enumerate(hay) if plain and word == needle[0]]
    matches = ([word for word, _ in hay[i : i + len(needle)]] == needle for i in starts)
    return "correct" if any(matches) else "wrong"


@lru_cache(maxsize=4096)
def _read_reference(reference: str) -> tuple[Said, list[str]]:
    return said(reference), words(reference)
