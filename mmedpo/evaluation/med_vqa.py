"""Strict scores of short answers to questions about medical images.

Closed questions get one verdict by whole words, open questions multiset overlap and exact match. The lenient
scores of published work (substrings, unclipped counts) are what this module avoids.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import require_known, require_texts
from mmedpo.evaluation.metric import Metric, Scores, mean_of, values
from mmedpo.text import carries, polarity, words

Verdict = Literal["correct", "wrong", "both", "neither"]

PROTOCOLS = ("strict",)
ANSWER_TYPES = ("closed", "open")
OVERLAPS = ("recall", "precision", "f1", "exact_match")


def normalize(text: str) -> str:
    """`text` with one spelling of each character (NFKC) and of the apostrophe, so that look-alikes are equal."""
    return unicodedata.normalize("NFKC", text).replace("’", "'")


def tokens(text: str) -> list[str]:
    """Lower-cased words of the normalised text, punctuation off; articles and numbers stay as they are."""
    return words(normalize(text))


def verdict(prediction: str, reference: str) -> Verdict:
    """The one verdict on a closed answer, by whole words.

    A reference that opens with "yes" or "no" is a yes/no question. The prediction says what it opens with, else
    whichever of the two words occurs in it; "both" and "neither" say why no verdict could be read, and are wrong.
    Any other reference is a choice ("left", "axial"): correct if its words occur in the prediction, in order and
    next to each other. The other choices are not known here, so "left or right" is correct for "left"; negation
    is not read either.

    Example:
        >>> verdict("The answer is yes.", "yes"), verdict("abnormal", "no"), verdict("It is axial.", "Axial")
        ('correct', 'neither', 'correct')
    """
    prediction, reference = normalize(prediction), normalize(reference)
    opening = words(reference)[:1]
    if opening not in (["yes"], ["no"]):
        return "correct" if carries(prediction, reference) else "wrong"
    said = polarity(prediction)
    if said is None:
        return "both" if "yes" in words(prediction) else "neither"
    return "correct" if [said] == opening else "wrong"


def overlap(prediction: str, reference: str) -> dict[str, float]:
    """Clipped word overlap of an open answer with its reference, each value in [0, 1].

    With P and R the multisets of words of prediction and reference, and |P & R| = sum over words of
    min(count in P, count in R), so that a repeated word counts no more often than the reference has it:

        recall = |P & R| / |R|        precision = |P & R| / |P|  (0 for an empty prediction)
        f1 = 2 |P & R| / (|P| + |R|)  exact_match = 1 if both are the same sequence of words, else 0
    """
    said, gold = tokens(prediction), tokens(reference)
    shared = (Counter(said) & Counter(gold)).total()
    return {
        "recall": shared / len(gold),
        "precision": shared / len(said) if said else 0.0,
        "f1": 2 * shared / (len(said) + len(gold)),
        "exact_match": float(said == gold),
    }


def score(prediction: str, reference: str, answer_type: str, protocol: str = "strict") -> dict[str, float | str]:
    """Scores of one answer: {"verdict", "correct"} if closed; recall, precision, f1, exact_match, "correct" if open.

    "correct" is 1.0 or 0.0: the verdict "correct" of a closed answer, the exact match of an open one.

    Raises:
        InputError: an unknown protocol or answer type, a text that is no string, a reference without words.
    """
    _require([prediction], [reference], [answer_type], protocol)
    return _score(prediction, reference, answer_type)


def compute(
    predictions: Sequence[str], references: Sequence[str], answer_types: Sequence[str], protocol: str = "strict"
) -> dict[str, Any]:
    """Scores of n answers, as described in `aggregate`.

    Args:
        predictions: n answers of the model.
        references: n gold answers.
        answer_types: n of "closed" and "open".
        protocol: "strict", the only one.

    Raises:
        InputError: an unknown protocol, columns of different length, or texts that cannot be scored (all named).
    """
    _require(predictions, references, answer_types, protocol)
    return aggregate([_score(*sample) for sample in zip(predictions, references, answer_types, strict=True)])


def metrics(protocol: str = "strict") -> tuple[Metric, ...]:
    """The metrics of `score` results: means in [0, 1], higher is better."""
    require_known("protocol", protocol, PROTOCOLS)
    return (
        mean_of("correct", "overall_accuracy", _is_answer),
        mean_of("correct", "closed_accuracy", _is_closed),
        *(mean_of(name, f"open_{name}") for name in OVERLAPS),
    )


def aggregate(scores: Sequence[Scores], protocol: str = "strict") -> dict[str, Any]:
    """Means of `score` results, each in [0, 1], higher is better; a mean over no question is absent.

    Returns:
        overall_accuracy (mean of "correct" over all questions), closed_accuracy, open_recall, open_precision,
        open_f1, open_exact_match, and the counts n_closed, n_open, n_closed_both, n_closed_neither.
    """
    verdicts = Counter(sample["verdict"] for sample in scores if _is_closed(sample))
    return values(metrics(protocol), scores) | {
        "n_closed": verdicts.total(),
        "n_open": len(scores) - verdicts.total(),
        "n_closed_both": verdicts["both"],
        "n_closed_neither": verdicts["neither"],
    }


def _is_closed(scores: Scores) -> bool:
    return "verdict" in scores


def _is_answer(scores: Scores) -> bool:
    return "correct" in scores


def _score(prediction: str, reference: str, answer_type: str) -> dict[str, float | str]:
    if answer_type == "closed":
        reading = verdict(prediction, reference)
        return {"verdict": reading, "correct": float(reading == "correct")}
    overlaps = overlap(prediction, reference)
    return {**overlaps, "correct": overlaps["exact_match"]}


def _require(predictions: Sequence[str], references: Sequence[str], answer_types: Sequence[str], protocol: str) -> None:
    require_known("protocol", protocol, PROTOCOLS)
    require_texts(predictions, references, tokens, answer_types=answer_types)
    faults = [
        Fault(f"index {i}", "answer_types", f"is {kind!r}; choose 'closed' or 'open'")
        for i, kind in enumerate(answer_types)
        if kind not in ANSWER_TYPES
    ]
    if faults:
        raise InputError(f"{len(faults)} unknown answer types:", faults)
