"""Protocol `huggingface`, the metrics of the Hub: sacrebleu's corpus BLEU and rouge_score's ROUGE on raw text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from mmedpo.evaluation.metrics.base import Floats, Protocol, Text, mean_of
from mmedpo.evaluation.metrics.reports.coco import bleu_metrics, longest_common, ngram_counts, ngram_matches

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_PLAIN_WORD = r"[A-Za-z0-9]+(?:[-/.][A-Za-z0-9]+)*"
_PLAIN = re.compile(rf"(?:{_PLAIN_WORD},? )*{_PLAIN_WORD}[.!?]?")
_CONTRACTIONS = re.compile("cannot|gimme|gonna|gotta|lemme|wanna", re.IGNORECASE)


def words(text: str) -> list[str]:
    """Return NLTK's word tokens (Treebank rules) of each sentence.

    Sentences end at ".", "!" or "?" before white space. `nltk.word_tokenize`, which `evaluate`'s METEOR uses, needs a
    downloaded model for that; the two differ at abbreviations and list numbers.

    Example:
        >>> words("Heart normal. No effusion (left).")
        ['Heart', 'normal', '.', 'No', 'effusion', '(', 'left', ')', '.']
    """
    return [token for sentence in _SENTENCE_END.split(text.strip()) for token in _tokens(sentence)]


def _tokens(sentence: str) -> list[str]:
    if not _PLAIN.fullmatch(sentence) or _CONTRACTIONS.search(sentence):
        return list(_tokenizer().tokenize(sentence))
    # Of NLTK's 27 rules, only those of commas and of the last mark apply.
    end = 1 if sentence[-1] in ".!?" else 0
    return [*sentence[: len(sentence) - end].replace(",", " ,").split(), *sentence[len(sentence) - end :]]


def score(prediction: Text, reference: Text) -> dict[str, Any]:
    """Return one report's summands.

    sacrebleu's n-gram counts and lengths (13a tokens, case kept); rouge_1, rouge_2 and rouge_l, the F of rouge_score
    (lower case, ASCII letters and digits only, no stemmer).
    """
    bleu_tokens, rouge_tokens = _tokenizers()
    said, gold = (rouge_tokens(text.raw) for text in (prediction, reference))
    common = longest_common(said, gold)
    return {
        **ngram_counts(*(bleu_tokens(text.raw.rstrip()).split() for text in (prediction, reference))),
        "rouge_1": _rouge(said, gold, 1),
        "rouge_2": _rouge(said, gold, 2),
        "rouge_l": 2 * common / (len(said) + len(gold)) if common else 0.0,
    }


def _rouge(prediction: list[str], reference: list[str], n: int) -> float:
    """Return the F of n-grams in the operations of rouge_score, so that values are equal to the last bit."""
    matches = ngram_matches(prediction, reference, n)
    precision, recall = (matches / max(1, len(words) - n + 1) for words in (prediction, reference))
    return 2 * precision * recall / (precision + recall) if matches else 0.0


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
def _tokenizers() -> tuple[Callable[[str], str], Callable[[str], list[str]]]:
    from rouge_score.tokenizers import DefaultTokenizer
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a(), DefaultTokenizer(use_stemmer=False).tokenize


PROTOCOL = Protocol(
    definition="huggingface@1",
    words=words,
    score=score,
    metrics=(*bleu_metrics(bleu), *(mean_of(name) for name in ("rouge_1", "rouge_2", "rouge_l"))),
    meteor_variant="nltk_wordnet",
)
