"""Protocol `huggingface`, the metrics of the Hub: sacrebleu's corpus BLEU and rouge_score's ROUGE on raw text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from mmedpo.evaluation.metrics.base import Floats, Protocol, Text, mean_of
from mmedpo.evaluation.metrics.reports.coco import bleu_metrics, longest_common

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def words(text: str) -> list[str]:
    """Return NLTK's word tokens (Treebank rules) of each sentence.

    Sentences end at ".", "!" or "?" before white space. `nltk.word_tokenize`, which `evaluate`'s METEOR uses, needs a
    downloaded model for that; the two differ at abbreviations and list numbers.

    Example:
        >>> words("Heart normal. No effusion (left).")
        ['Heart', 'normal', '.', 'No', 'effusion', '(', 'left', ')', '.']
    """
    sentences = _SENTENCE_END.split(text.strip())
    return [token for sentence in sentences for token in _tokenizer().tokenize(sentence)]


def score(prediction: Text, reference: Text) -> dict[str, Any]:
    """Return one report's summands.

    sacrebleu's n-gram counts and lengths (13a tokens, case kept); rouge_1, rouge_2 and rouge_l, the F of rouge_score
    (lower case, ASCII letters and digits only, no stemmer).
    """
    counts = _bleu().sentence_score(prediction.raw, [reference.raw])
    scorer, tokens = _rouge()
    ngrams = scorer.score(reference.raw, prediction.raw)
    said, gold = tokens(prediction.raw), tokens(reference.raw)
    common = longest_common(said, gold)  # faster than rouge_score's table
    return {
        "ngram_matches": list(counts.counts),
        "ngram_totals": list(counts.totals),
        "prediction_length": counts.sys_len,
        "reference_length": counts.ref_len,
        "rouge_1": float(ngrams["rouge1"].fmeasure),
        "rouge_2": float(ngrams["rouge2"].fmeasure),
        "rouge_l": 2 * common / (len(said) + len(gold)) if common else 0.0,
    }


def bleu(order: int, sums: Floats) -> Floats:
    """Return sacrebleu's corpus BLEU up to `order`, divided by 100, with its default smoothing "exp".

    The k-th order without a match counts 1 / 2^k matches. The value is 0 without any match, or where the predictions
    have no n-gram of some order. The brevity penalty is exp(1 - r / c) where the predictions' length c is below r.

    Args:
        order: 1 to 4; 4 is sacrebleu's own score.
        sums: [..., 10], sums of `coco.bleu_statistics`.

    Returns:
        [...], values in [0, 1].
    """
    matches, totals, c, r = sums[..., :order], sums[..., 4 : 4 + order], sums[..., 8], sums[..., 9]
    defined = (totals > 0).all(axis=-1) & (matches > 0).any(axis=-1)
    smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
    logarithms = np.log(smoothed / np.maximum(totals, 1)).mean(axis=-1)
    penalty = np.minimum(0.0, 1 - r / np.maximum(c, 1))
    return np.where(defined, np.exp(penalty + logarithms), 0.0)


@cache
def _tokenizer() -> Any:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)  # no effect on the counts, which are all that is used


@cache
def _rouge() -> tuple[Any, Callable[[str], list[str]]]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(["rouge1", "rouge2"]), DefaultTokenizer(use_stemmer=False).tokenize


PROTOCOL = Protocol(
    definition="huggingface@1",
    words=words,
    score=score,
    metrics=(*bleu_metrics(bleu), *(mean_of(name) for name in ("rouge_1", "rouge_2", "rouge_l"))),
    meteor_variant="nltk_wordnet",
)
