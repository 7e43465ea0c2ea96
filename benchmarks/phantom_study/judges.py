"""Judges of known quality: what each scores the clinical relevance of pairs, in [0, 1], and the weights from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, spearmanr

from mmedpo.data.weights import MEAN, VARIANCE, normalize
from phantom_study.world import IMPORTANCE, Pair

NOISY = {"rank .9": 0.9, "rank .6": 0.6, "rank .3": 0.3}  # Spearman correlation with the truth
JUDGES = ("oracle", *NOISY, "rules", "shuffled", "reversed")
WIDE = 2.0  # upper clip limit of "wide" and "strong"; the lower one is 0
STRONG = 4.0  # factor on the standard deviation of "strong"
DROPPED = 0.2  # share of pairs that "filter" leaves out


def scores(judge: str, pairs: Sequence[Pair], seed: int) -> np.ndarray:
    """Return a judge's score of each pair; `seed` draws errors.

    oracle: the truth. rank .9, .6, .3: the truth's ranks with normal errors of the size at which Spearman's correlation
    with the truth is that, spread evenly over [0, 1]. shuffled: the truth in random order. reversed: 1 - truth. rules:
    the panel of offline stand-ins of the quickstart. importance: the question's, whatever the response says.
    """
    truth = np.array([pair.truth for pair in pairs])
    rng = np.random.default_rng([seed, 7])
    if judge == "rules":
        return _panel(pairs)
    if judge in NOISY:
        return _noisy(truth, NOISY[judge], rng)
    if judge == "importance":
        return np.array([IMPORTANCE[pair.question.importance] for pair in pairs])
    return {"oracle": truth, "shuffled": rng.permutation(truth), "reversed": 1 - truth}[judge]


def _noisy(truth: np.ndarray, wanted: float, rng: np.random.Generator) -> np.ndarray:
    ranks, errors = rankdata(truth), rng.normal(size=truth.size)
    ranks = (ranks - ranks.mean()) / ranks.std()
    low, high = 0.0, 50.0
    for _ in range(40):
        size = (low + high) / 2
        low, high = (size, high) if spearmanr(truth, ranks + size * errors).statistic > wanted else (low, size)
    found = rankdata(ranks + low * errors)
    return (found - 1) / (found.size - 1)


def _panel(pairs: Sequence[Pair]) -> np.ndarray:
    from mmedpo.curation.relevance import Item, Panel
    from mmedpo.curation.standins import StandInJudge

    panel = Panel([StandInJudge(name) for name in ("strict", "lenient", "lexical")])
    found = panel.score([Item(pair.question.text, pair.chosen, pair.rejected) for pair in pairs])
    if unscored := sum(one.score is None for one in found):
        raise RuntimeError(f"{unscored} pairs have no score of the offline judges.")
    return np.array([one.score for one in found])


def weigh(values: np.ndarray, method: str) -> np.ndarray:
    """Return the weights of pairs of one kind, 0 for a pair that is left out.

    rescale, literal, raw, none: as `--weights`. wide: rescale, clipped to [0, 2] instead of [0.75, 1.25]. strong: wide
    with four times the standard deviation. filter: 0 for the lowest fifth (ties in the order of the pairs), else 1.
    """
    if method in ("wide", "strong"):
        spread = (values - values.mean()) / values.std()
        return np.clip(MEAN + (STRONG if method == "strong" else 1.0) * np.sqrt(VARIANCE) * spread, 0.0, WIDE)
    if method == "filter":
        kept = np.ones(values.size)
        kept[np.argsort(values, kind="stable")[: round(DROPPED * values.size)]] = 0.0
        return kept
    return normalize(values.tolist(), method)[0].astype(float)


def agreement(values: np.ndarray, pairs: Sequence[Pair]) -> float:
    """Return Spearman's correlation of scores with the truth; NaN where either is constant."""
    truth = np.array([pair.truth for pair in pairs])
    return float(spearmanr(truth, values).statistic) if truth.std() and values.std() else float("nan")
