"""Scores of generated reports as the R2Gen lineage computes them: BLEU, ROUGE-L, METEOR.

BLEU is a corpus metric: it is a function of sums over reports, so `score` keeps each report's summands and
`bleu` turns sums into values, for the corpus as for a bootstrap resample of it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from mmedpo.errors import InputError
from mmedpo.evaluation import require_known, require_texts
from mmedpo.evaluation.metric import Floats, Metric, Scores, mean_of, values

PROTOCOLS = ("coco",)
METEOR_VARIANTS = ("nltk_exact_stem", "nltk_wordnet")
ORDERS = (1, 2, 3, 4)

ROUGE_BETA = 1.2
# pycocoevalcap's guards against division by zero; kept, since they decide the value on very short texts.
BLEU_TINY, BLEU_SMALL = 1e-15, 1e-9

_ENUMERATOR = re.compile(r"(?<!\S)[1-5]\.(?=\s)")
_PUNCTUATION = re.compile(r"[^\w\s-]|_")


def clean(text: str) -> list[str]:
    """Words of a report: lower case, list numbers and punctuation off, split at white space.

    In this order: lower-case; drop free-standing "1." to "5."; delete every character that is neither letter,
    digit, hyphen nor white space, joining what it parted ("3.5" is "35", "and/or" is "andor", as in R2Gen); split;
    drop words of hyphens alone. R2Gen itself keeps " . " between sentences as a word, and so scores higher.

    Example:
        >>> clean("1. Heart size normal. 2. No T2-weighted change!")
        ['heart', 'size', 'normal', 'no', 't2-weighted', 'change']
    """
    text = _PUNCTUATION.sub("", _ENUMERATOR.sub(" ", text.lower()))
    return [word for word in text.split() if word.strip("-")]


def score(
    prediction: str, reference: str, protocol: str = "coco", meteor_variant: str = "nltk_exact_stem"
) -> dict[str, Any]:
    """Sufficient statistics of one report.

    Returns:
        ngram_matches, ngram_totals: 4 integers each, for orders 1 to 4: n-grams of the prediction that the
            reference has too (clipped), and all n-grams of the prediction;
        prediction_length, reference_length: in words;
        rouge_l, meteor: in [0, 1].

    Raises:
        InputError: unknown protocol or variant, a text that is no string, a reference without words, or
            `nltk_wordnet` without the WordNet data.
    """
    _require([prediction], [reference], protocol, meteor_variant)
    return _score(prediction, reference, meteor_variant)


def compute(
    predictions: Sequence[str],
    references: Sequence[str],
    protocol: str = "coco",
    meteor_variant: str = "nltk_exact_stem",
) -> dict[str, Any]:
    """Scores of n reports, as described in `aggregate`; an empty prediction scores 0.

    Args:
        predictions: n reports of the model.
        references: n gold reports.
        protocol: "coco", the only one.
        meteor_variant: "nltk_exact_stem" needs no data; "nltk_wordnet" matches synonyms too.

    Raises:
        InputError: as `score`; columns of different length; all faulty texts are named.
    """
    _require(predictions, references, protocol, meteor_variant)
    scores = [_score(*texts, meteor_variant) for texts in zip(predictions, references, strict=True)]
    return aggregate(scores, meteor_variant)


def metrics(protocol: str = "coco") -> tuple[Metric, ...]:
    """The metrics of `score` results: BLEU of the corpus, means of the others, each in [0, 1], higher is better."""
    require_known("protocol", protocol, PROTOCOLS)
    return (
        *(Metric(f"bleu_{n}", _is_report, bleu_statistics, partial(_bleu_at, n)) for n in ORDERS),
        mean_of("rouge_l"),
        mean_of("meteor"),
    )


def aggregate(scores: Sequence[Scores], meteor_variant: str, protocol: str = "coco") -> dict[str, Any]:
    """bleu_1 to bleu_4 of the corpus, mean rouge_l and meteor, each in [0, 1], higher is better; absent if n is 0.

    `meteor_variant` and the count `n_report` are always returned.
    """
    return values(metrics(protocol), scores) | {"meteor_variant": meteor_variant, "n_report": len(scores)}


def _is_report(scores: Scores) -> bool:
    return "ngram_matches" in scores


def _bleu_at(order: int, sums: Floats) -> Floats:
    return bleu(sums)[..., order - 1]


def bleu_statistics(sample: Scores) -> list[float]:
    """The 10 summands of BLEU in a `score` result: 4 matches, 4 totals, prediction and reference length."""
    lengths = [sample["prediction_length"], sample["reference_length"]]
    return [*sample["ngram_matches"], *sample["ngram_totals"], *lengths]


def bleu(sums: Floats) -> Floats:
    """Cumulative corpus BLEU-1 to BLEU-4 as in pycocoevalcap.

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
    """ROUGE-L of two word sequences: (1 + b²) P R / (R + b² P), b = 1.2, P and R the shares of the longest
    common subsequence in prediction and reference; 0 where nothing is shared."""
    common = _longest_common(prediction, reference)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


def meteor(prediction: Sequence[str], reference: Sequence[str], variant: str = "nltk_exact_stem") -> float:
    """NLTK's METEOR of two word sequences; see `METEOR_VARIANTS`. Its values exceed METEOR 1.5's on the same text.

    Raises:
        InputError: `nltk_wordnet` without the WordNet data.
    """
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, prediction, wordnet=_synonyms(variant)))


class _NoSynonyms:
    """Stands in for WordNet, so that METEOR matches equal words and equal stems only."""

    def synsets(self, word: str) -> list[Any]:
        return []


@cache
def _synonyms(variant: str) -> Any:
    if variant == "nltk_exact_stem":
        return _NoSynonyms()
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise InputError(
            "meteor_variant 'nltk_wordnet' needs the WordNet data, which is not installed here. "
            "Run `python -m nltk.downloader wordnet`, or choose 'nltk_exact_stem', which needs none."
        ) from None
    return wordnet


def _score(prediction: str, reference: str, meteor_variant: str) -> dict[str, Any]:
    said, gold = clean(prediction), clean(reference)
    return {
        "ngram_matches": [(_ngrams(said, n) & _ngrams(gold, n)).total() for n in ORDERS],
        "ngram_totals": [max(0, len(said) - n + 1) for n in ORDERS],
        "prediction_length": len(said),
        "reference_length": len(gold),
        "rouge_l": rouge_l(said, gold),
        "meteor": meteor(said, gold, meteor_variant),
    }


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    # lengths[j] is the answer for the words of `a` read so far and the first j words of `b`.
    lengths = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if x == y else max(lengths[j], lengths[j - 1])
    return lengths[-1]


def _require(predictions: Sequence[str], references: Sequence[str], protocol: str, meteor_variant: str) -> None:
    require_known("protocol", protocol, PROTOCOLS)
    require_known("meteor_variant", meteor_variant, METEOR_VARIANTS)
    require_texts(predictions, references, clean)
