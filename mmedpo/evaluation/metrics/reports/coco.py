"""Protocol `coco`: corpus BLEU and ROUGE-L as in pycocoevalcap, on cleaned text.

Implemented here, since pycocoevalcap is a download of 104 MB; tests compare the values with that package.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mmedpo.evaluation.metrics.base import Floats, Metric, Protocol, Scores, Text, mean_of

ORDERS = (1, 2, 3, 4)
ROUGE_BETA = 1.2
# pycocoevalcap's guards against division by zero, which decide the value of very short texts.
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9

_ENUMERATOR = re.compile(r"(?<!\S)[1-5]\.(?=\s)")
_PUNCTUATION = re.compile(r"[^\w\s-]|_")


def clean(text: str) -> list[str]:
    """Return the words of a report: lower case, without list numbers and punctuation.

    In this order: lower-case; drop free-standing "1." to "5."; delete characters other than letters, digits, hyphens
    and white space ("3.5" becomes "35", "and/or" "andor", as in R2Gen); split at white space; drop words of hyphens
    only. Protocol `r2gen` keeps full stops as words.

    Example:
        >>> clean("1. Heart size normal. 2. No T2-weighted change!")
        ['heart', 'size', 'normal', 'no', 't2-weighted', 'change']
    """
    text = _PUNCTUATION.sub("", _ENUMERATOR.sub(" ", text.lower()))
    return [word for word in text.split() if word.strip("-")]


def score(prediction: Text, reference: Text) -> dict[str, Any]:
    """Return one report's summands: those of `ngram_counts`, and rouge_l."""
    return {
        **ngram_counts(prediction.words, reference.words),
        "rouge_l": rouge_l(prediction.words, reference.words),
    }


def ngram_counts(prediction: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """Return ngram_matches (clipped) and ngram_totals of the prediction for orders 1 to 4, and both lengths."""
    return {
        "ngram_matches": [ngram_matches(prediction, reference, n) for n in ORDERS],
        "ngram_totals": [max(0, len(prediction) - n + 1) for n in ORDERS],
        "prediction_length": len(prediction),
        "reference_length": len(reference),
    }


def bleu_statistics(scores: Scores) -> list[float]:
    """Return the 10 summands of BLEU in a `score` result: 4 matches, 4 totals, prediction and reference length."""
    lengths = [scores["prediction_length"], scores["reference_length"]]
    return [*scores["ngram_matches"], *scores["ngram_totals"], *lengths]


def bleu(sums: Floats) -> Floats:
    """Return cumulative corpus BLEU-1 to BLEU-4 as in pycocoevalcap.

    BLEU-n = BP * (prod over k <= n of (matches_k + tiny) / (totals_k + small)) ** (1 / n), with
    BP = exp(1 - 1 / r) where r = (prediction length + tiny) / (reference length + small) is below 1, else 1.

    Args:
        sums: [..., 10], sums of `bleu_statistics`.

    Returns:
        [..., 4], values in [0, 1].
    """
    precisions = (sums[..., :4] + BLEU_TINY) / (sums[..., 4:8] + BLEU_SMALL)
    ratio = (sums[..., 8:9] + BLEU_TINY) / (sums[..., 9:10] + BLEU_SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return brevity * np.cumprod(precisions, axis=-1) ** (1 / np.array(ORDERS))


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE-L of two word sequences in [0, 1].

    (1 + b²) P R / (R + b² P) with b = 1.2; P and R are the longest common subsequence's shares of prediction and
    reference. 0 without a common word.
    """
    common = longest_common(prediction, reference)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def ngram_matches(a: Sequence[str], b: Sequence[str], n: int) -> int:
    """Return the number of n-grams in common, each counted as often as it occurs in both."""
    some, others = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, b))
    return sum(min(count, others[ngram]) for ngram, count in some.items() if ngram in others)


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    return len(a) - common_rows(a, b)[-1].bit_count()


def common_rows(a: Sequence[str], b: Sequence[str]) -> list[int]:
    """Return len(b) + 1 bit rows; the longest common subsequence of a[:i] and b[:j] has the zeros of row j below i."""
    # Bit-parallel (Hyyrö 2004): a zero at bit i of a row means that the length grows at a[i].
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    rows = [row]
    for word in b:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
        rows.append(row)
    return rows


def bleu_metrics(value: Callable[[int, Floats], Floats]) -> list[Metric]:
    """Return BLEU-1 to BLEU-4 as `value` (order, sums of `bleu_statistics`)."""
    return [Metric(f"bleu_{n}", lambda one: "ngram_matches" in one, bleu_statistics, partial(value, n)) for n in ORDERS]


PROTOCOL = Protocol(
    definition="coco@1",
    words=clean,
    score=score,
    metrics=(*bleu_metrics(lambda order, sums: bleu(sums)[..., order - 1]), mean_of("rouge_l")),
    meteor_variant="meteor_1.5",
)
