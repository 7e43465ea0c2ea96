"""How far a metric's value can be trusted: cluster bootstrap intervals, and paired ones for a difference.

A metric (`metric.Metric`) is a matrix of per-question statistics [n, k] and an aggregate of their sums. Questions about
one image are not independent, so images are drawn.

Example:
    >>> from mmedpo.evaluation.metric import mean
    >>> draws = mean(bootstrap([[1, 1], [1, 1]], clusters=["image-1", "image-2"], resamples=100))
    >>> interval(draws), paired_interval(draws, draws)
    (Interval(value=1.0, low=1.0, high=1.0), Interval(value=0.0, low=0.0, high=0.0))
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from mmedpo.errors import InputError
from mmedpo.evaluation.metric import Floats

RESAMPLES = 10_000
TAIL_PERCENT = 2.5
CELLS_AT_ONCE = 4_000_000  # (resample, image) counts held in memory together: 32 MB


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
            see the same resamples.
        clusters: n labels; questions with the same label (an image's id) are drawn together.
        seed: equal seeds draw equally where the number of clusters is equal.

    Returns:
        [..., 1 + resamples, k], the sums over the data itself first.

    Raises:
        InputError: no rows, a label count other than n, or fewer than one resample.
    """
    rows = np.asarray(statistics, dtype=np.float64)
    n = rows.shape[-2]
    if n == 0 or n != len(clusters):
        raise InputError(f"{n} rows and {len(clusters)} cluster labels; give at least one row, each with a label.")
    if resamples < 1:
        raise InputError(f"resamples is {resamples}; give at least 1 (the default is {RESAMPLES}).")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(clusters))}
    count = len(numbers)
    per_cluster = np.zeros((*rows.shape[:-2], count, rows.shape[-1]))
    labels = [numbers[label] for label in clusters]
    np.add.at(np.moveaxis(per_cluster, -2, 0), labels, np.moveaxis(rows, -2, 0))
    rng, chances = np.random.default_rng(seed), np.full(count, 1 / count)
    chunk = max(1, CELLS_AT_ONCE // count)
    sums = [rows.sum(axis=-2, keepdims=True)]
    for done in range(0, resamples, chunk):
        sums.append(rng.multinomial(count, chances, size=min(chunk, resamples - done)) @ per_cluster)
    return np.concatenate(sums, axis=-2)


def interval(draws: Floats) -> Interval:
    """A metric's value with its percentile interval; `draws` is its aggregate of `bootstrap`, [1 + resamples]."""
    low, high = np.percentile(draws[1:], [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return Interval(float(draws[0]), float(low), float(high))


def paired_interval(draws: Floats, baseline: Floats) -> Interval:
    """The difference of two runs' metric with its interval; both `draws` must be of the same `bootstrap` resamples."""
    return interval(draws - baseline)
