"""What a metric is, for its value over a test set and for its interval: sums over samples, and a value made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Mapping[str, Any]  # of one sample: a line of scores.jsonl


@dataclass(frozen=True)
class Metric:
    """A number about the samples of a test set that it is `about`.

    A mean has the statistics (value, 1); corpus BLEU has ten. Whatever resamples the samples resamples sums.

    Args:
        name: key of the value in results.json.
        about: whether a sample counts.
        statistics: k numbers of one sample.
        aggregate: their sums [..., k] -> values [...].
    """

    name: str
    about: Callable[[Scores], bool]
    statistics: Callable[[Scores], Sequence[float]]
    aggregate: Callable[[Floats], Floats]


def mean_of(key: str, name: str | None = None, about: Callable[[Scores], bool] | None = None) -> Metric:
    """The mean of `key` over the samples that have it, or over those that the metric is `about`."""
    return Metric(name or key, about or partial(_has, key), lambda scores: (scores[key], 1.0), mean)


def mean(sums: Floats) -> Floats:
    """The aggregate of statistics (value, 1): sums [..., 2] -> means [...]."""
    return sums[..., 0] / sums[..., 1]


def values(metrics: Iterable[Metric], samples: Sequence[Scores]) -> dict[str, float]:
    """Each metric's value over `samples`; a metric about none of them is absent."""
    found = {}
    for metric in metrics:
        rows = [metric.statistics(sample) for sample in samples if metric.about(sample)]
        if rows:
            found[metric.name] = float(metric.aggregate(np.sum(rows, axis=0)))
    return found


def _has(key: str, scores: Scores) -> bool:
    return key in scores
