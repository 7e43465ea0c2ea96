"""METEOR by variant. Values of different variants cannot be compared, so that none replaces another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

from mmedpo.evaluation.metrics.base import mean_of, sums_of
from mmedpo.evaluation.metrics.reports import meteor15
from mmedpo.evaluation.metrics.reports.meteor15 import MeteorAbsent

VARIANTS = ("meteor_1.5", "nltk_wordnet", "nltk_exact_stem")
WORDS_KEPT = 1 << 16

Words = Sequence[str]


def scores(predictions: Sequence[Words], references: Sequence[Words], variant: str) -> list[dict[str, Any]]:
    """Return METEOR of each pair of word sequences.

    Returns:
        n of {"meteor_statistics": 23 counts} for `meteor_1.5`, or {"meteor": value in [0, 1]} for the others. All n are
        {"meteor_absent": reason and remedy} where the variant cannot be computed on this machine.
    """
    if not predictions:
        return []
    try:
        if variant == "meteor_1.5":
            said, gold = ([" ".join(words) for words in texts] for texts in (predictions, references))
            return [{"meteor_statistics": counts} for counts in meteor15.statistics(said, gold)]
        synonyms = _synonyms(variant)
    except MeteorAbsent as absent:
        return [{"meteor_absent": str(absent)} for _ in predictions]
    return [{"meteor": _nltk(*pair, synonyms)} for pair in zip(predictions, references, strict=True)]


METRICS = (sums_of("meteor_statistics", "meteor", meteor15.aggregate), mean_of("meteor"))


def _nltk(prediction: Words, reference: Words, synonyms: Any) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, prediction, stemmer=_stemmer(), wordnet=synonyms))


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


class _WordNet:
    """NLTK's WordNet, each word looked up once."""

    def __init__(self, wordnet: Any) -> None:
        self.synsets = lru_cache(WORDS_KEPT)(wordnet.synsets)


class _Stemmer:
    """NLTK's Porter stemmer, each word stemmed once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(WORDS_KEPT)(PorterStemmer().stem)


@cache
def _stemmer() -> Any:
    return _Stemmer()


@cache
def _synonyms(variant: str) -> Any:
    if variant == "nltk_exact_stem":
        return _NoSynonyms()
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except (LookupError, OSError, ValueError):  # absent, incomplete, or a link that NLTK does not follow
        raise MeteorAbsent(
            "METEOR 'nltk_wordnet': NLTK's WordNet data is missing or incomplete. "
            "Run `python -m nltk.downloader wordnet`, or choose meteor_variant 'nltk_exact_stem', which needs no data."
        ) from None
    return _WordNet(wordnet)
