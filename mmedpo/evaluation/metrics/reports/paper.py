"""Protocol `paper`, the MMedPO authors' scores of reports, quirks included; for comparison with their table only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmedpo.evaluation.metrics.base import Protocol, Text, mean_of
from mmedpo.evaluation.metrics.reports.coco import common_rows
from mmedpo.evaluation.metrics.vqa_v2 import normalize

SINGLE_ORDERS = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")


def words(text: str) -> list[str]:
    """Return the words of the normalised text."""
    return normalize(text).split()


def score(prediction: Text, reference: Text) -> dict[str, Any]:
    """Return bleu_1 to bleu_4, each in [0, 4/3]; bleu, their mean; rouge_l in [0, 1].

    BLEU-n is NLTK's sentence BLEU with all weight on order n and smoothing method 7. That method averages neighbouring
    orders and adds 1 below the first, so that a perfect report has 4/3, 10/9, 28/27, 82/81.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    said, gold = prediction.words, reference.words
    bleus = sentence_bleu([gold], said, SINGLE_ORDERS, SmoothingFunction().method7)
    return {
        **{name: float(value) for name, value in zip(BLEUS, bleus, strict=True)},
        "bleu": float(sum(bleus) / len(BLEUS)),
        "rouge_l": rouge_l(" ".join(said), " ".join(gold)),
    }


def rouge_l(prediction: str, reference: str) -> float:
    """Return ROUGE-L F of the `rouge` package: over word sets and the union of the sentences' common subsequences.

    The package raises for empty texts and texts of full stops only; they score 0 here.
    """
    said, gold = (
        [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]
        for text in (prediction, reference)
    )
    if not said or not gold:
        return 0.0
    common = set().union(*(_common(ours, theirs) for theirs in gold for ours in said))
    precision, recall = (len(common) / len(set().union(*sentences)) for sentences in (said, gold))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _common(prediction: Sequence[str], reference: Sequence[str]) -> set[str]:
    """Return the words of that longest common subsequence which the package takes of several."""
    rows, found = common_rows(reference, prediction), set()
    i, j = len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            found.add(reference[i])
        elif _length(rows[j], i - 1) > _length(rows[j - 1], i):
            i -= 1
        else:
            j -= 1
    return found


def _length(row: int, i: int) -> int:
    return i - (row & (1 << i) - 1).bit_count()


PROTOCOL = Protocol(
    definition="paper@1",
    words=words,
    score=score,
    metrics=tuple(mean_of(name) for name in ("bleu", *BLEUS, "rouge_l")),
    meteor_variant="nltk_wordnet",
)
