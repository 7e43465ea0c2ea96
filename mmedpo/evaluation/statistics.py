"""How far a metric's value and a difference can be trusted: cluster bootstrap intervals, permutation tests, Holm.

A metric (`metric.Metric`) is a matrix of per-question statistics [n, k] and an aggregate of their sums. Questions about
one image are not independent, so whole images are drawn, and whole images change sides.

Example:
    >>> from mmedpo.evaluation.metrics.base import mean
    >>> images = ["image-1", "image-2"]
    >>> draws = mean(bootstrap([[1, 1], [1, 1]], images, resamples=100))
    >>> interval(draws, tail(images)), interval(draws - draws, tail(images))
    (Interval(value=1.0, low=1.0, high=1.0), Interval(value=0.0, low=0.0, high=0.0))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import Floats

RESAMPLES = 10_000
COVERAGE = 0.95
TIE = 1e-12  # differences this close to the observed one count as equal to it
CELLS_AT_ONCE = 1_000_000  # (resample, image) counts held in memory together: 8 MB


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap(statistics: ArrayLike, clusters: Sequence[Hashable], seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """Sums of the statistics over the data and over resamples of its clusters, drawn with replacement.

    With a single cluster every resample is the data itself, and intervals have no width: they then say nothing.

    Args:
        statistics: [..., n, k], one row a question; only questions that the metrics are about. Leading axes (runs)
            see the same resamples, so that the difference of their draws is a paired one.
        clusters: n labels; questions with the same label (an image's id) are drawn together.
        seed: equal seeds draw equally where the number of clusters is equal.

    Returns:
        [..., 1 + resamples, k], the sums over the data itself first.

    Raises:
        InputError: no rows, a label count other than n, or fewer than one resample.
    """
    sums = cluster_sums(statistics, clusters)
    count = sums.shape[-2]
    rng, chances = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = [rng.multinomial(count, chances, size=size) @ sums for size in _chunks(resamples, count)]
    return np.concatenate([sums.sum(axis=-2, keepdims=True), *drawn], axis=-2)


def exchanges(
    statistics: ArrayLike, clusters: Sequence[Hashable], seed: int = 0, permutations: int = RESAMPLES
) -> tuple[Floats, Floats]:
    """Sums of each run and of the first one, as they are and with whole clusters changing sides between the two.

    Were the two runs alike, each cluster's statistics could as well have come from the other one.

    Args:
        statistics: [runs, n, k], the baseline first; as in `bootstrap`.
        clusters, seed: as in `bootstrap`.

    Returns:
        Two arrays [runs - 1, 1 + permutations, k]: the sums of runs 1, 2, ... and those of the baseline beside each,
        as they are first. Each cluster changes sides with probability 1/2, the same ones for all runs.

    Raises:
        InputError: as `bootstrap`.
    """
    sums = cluster_sums(statistics, clusters)
    baseline, others = sums[:1], sums[1:]
    change = baseline - others
    rng, count = np.random.default_rng(seed), sums.shape[-2]
    sides = [rng.integers(0, 2, (size, count)).astype(float) @ change for size in _chunks(permutations, count)]
    moved = np.concatenate([np.zeros_like(change[:, :1]), *sides], axis=-2)
    return others.sum(axis=-2, keepdims=True) + moved, baseline.sum(axis=-2, keepdims=True) - moved


def p_value(differences: Floats) -> float:
    """Two-sided p of a permutation test: (1 + number of differences at least as large as the observed) / (1 + all).

    Args:
        differences: [1 + permutations], of the metric's values of `exchanges`, the observed difference first; where
            the metric is undefined (NaN) after an exchange, that one counts as large.
    """
    observed, sizes = abs(differences[0]), np.abs(differences[1:])
    as_large = ~(sizes < observed - TIE * max(1.0, observed))
    return float((1 + as_large.sum()) / (1 + as_large.size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that, held against 0.05, keep the chance of any false finding among all
    of them at 5 %, whatever their dependence.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values, dtype=float)[order]))
    return [float(value) for value in adjusted]


def tail(clusters: Sequence[Hashable]) -> float:
    """The share of draws to cut off at each end, so that a 95 % interval covers the truth in 95 % of test sets.

    2.5 % at each end is right for many clusters and too short for few. As in Hesterberg's expanded percentile
    interval (2015, doi 10.1080/00031305.2015.1089789), the share makes up for the plug-in variance and for estimating
    it: Phi(-sqrt(c / (c - 1)) t(0.975; e - 1)) for c clusters, where e = (sum m)^2 / (sum m^2) discounts clusters
    of unequal sizes m (Kish's effective number). 0.025 for one cluster, where nothing helps.

    Measured over 1500 simulated test sets of each kind, with 1 to 12 questions an image (a share, a mean, a paired
    difference): on 10, 20, 60 and 120 images these intervals cover the truth in 93.5 to 95.7 %, where plain percentiles
    do in 87.7 to 94.6 %. Values that are all alike have no spread to resample: their interval has no width and covers
    nothing but them.
    """
    from scipy.special import ndtr, stdtrit  # of scipy.stats, which takes a second to import

    sizes = np.array(list(Counter(clusters).values()), dtype=float)
    count, effective = len(sizes), sizes.sum() ** 2 / (sizes**2).sum()
    if count < 2:
        return (1 - COVERAGE) / 2
    quantile = stdtrit(max(effective - 1, 1.0), (1 + COVERAGE) / 2)
    return float(ndtr(-np.sqrt(count / (count - 1)) * quantile))


def interval(draws: Floats, tail: float) -> Interval:
    """A value with its interval; resamples in which it is undefined (NaN) are left out.

    Args:
        draws: [1 + resamples], a metric's aggregate of `bootstrap`, or the difference of two runs' aggregates of one.
        tail: of the clusters (`tail`).
    """
    low, high = np.nanquantile(draws[1:], [tail, 1 - tail])
    return Interval(float(draws[0]), float(low), float(high))


def cluster_sums(statistics: ArrayLike, clusters: Sequence[Hashable]) -> Floats:
    """[..., n, k] summed to [..., c, k] by label, in the order of their first appearance.

    Raises:
        InputError: no rows, or a label count other than n.
    """
    rows = np.asarray(statistics, dtype=np.float64)
    n = rows.shape[-2]
    if n == 0 or n != len(clusters):
        raise InputError(f"{n} rows and {len(clusters)} cluster labels; give at least one row, each with a label.")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((*rows.shape[:-2], len(numbers), rows.shape[-1]))
    np.add.at(np.moveaxis(sums, -2, 0), [numbers[label] for label in clusters], np.moveaxis(rows, -2, 0))
    return sums


def _chunks(draws: int, clusters: int) -> Iterator[int]:
    """Sizes that sum to `draws` and keep a chunk's memory bounded."""
    if draws < 1:
        raise InputError(f"{draws} resamples were asked for; give at least 1 (the default is {RESAMPLES}).")
    chunk = max(1, CELLS_AT_ONCE // clusters)
    return (min(chunk, draws - done) for done in range(0, draws, chunk))
