"""Verdicts on closed answers (`strict`): by the answer's own yes or no, or read against its question."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from mmedpo.data.choices import Asserted, asserted, offered
from mmedpo.data.text import Said, folded, said, stated_words, words
from mmedpo.data.yes_no import is_negated, read, stated

Verdict = Literal["correct", "wrong", "both", "neither", "refused", "empty"]
UNREAD = ("both", "neither", "refused", "empty")  # verdicts without a readable answer, which count as wrong


def asked_verdict(
    prediction: str, reference: str, question: str | None, options: Sequence[str] | None = None
) -> Verdict:
    """Return the verdict of `strict@4`, which reads an answer against its question and the options.

    A gold answer that names one of the options, of the list or of the question ("left or right?"), is compared with the
    one that the prediction asserts (`asserted`). A gold yes or no is compared with the one that the prediction says to
    the question (`read`); to a negated question ("Is no lesion present?"), what both state. Any other gets `verdict`.

    Args:
        prediction: answer without thoughts; it may be empty.
        reference: gold answer.
        question: text of the question.
        options: texts that the question offered with letters, if it did.
    """
    if question is None and options is None:
        return verdict(prediction, reference)
    if not words(prediction):
        return "empty"
    shown = tuple(options) if options else offered(question or "")
    chosen = gold_option(reference, shown, lettered=bool(options))
    if chosen is not None:
        answer = asserted(prediction, shown, question, lettered=bool(options))
        if answer == chosen:
            return "correct"
        if answer not in ("neither", "both") or _read_reference(reference)[0] not in ("yes", "no"):
            return "wrong" if isinstance(answer, int) else answer
    gold, needle = _read_reference(reference)
    if len(needle) == 1 and len(needle[0]) == 1 and needle[0].isalpha():  # "A" is no article
        return "correct" if words(prediction) == needle else "wrong"
    if gold not in ("yes", "no") or question is None:
        return verdict(prediction, reference)
    if is_negated(question):
        senses = {stated(text, question) for text in (prediction, reference)}
        if senses <= {"yes", "no"}:
            return "correct" if len(senses) == 1 else "wrong"
    said_to_it = read(prediction, question)
    if said_to_it == "yes" or said_to_it == "no":
        return "correct" if said_to_it == gold else "wrong"
    return said_to_it


@lru_cache(maxsize=4096)
def gold_option(reference: str, options: tuple[str, ...], lettered: bool) -> Asserted | None:
    """Return the index of the option that a gold answer names, "both" for several, or None."""
    if not options:
        return None
    same = [i for i, option in enumerate(options) if folded(option) == folded(reference)]
    if len(same) == 1:
        return same[0]
    found = asserted(reference, options, lettered=lettered)
    return None if found in ("neither", "refused", "empty") else found


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
