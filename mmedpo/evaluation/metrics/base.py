"""Metrics as sums over samples and an aggregate of the sums, for values over a test set and for intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Scores = Mapping[str, Any]  # of one sample: a line of scores.jsonl


@dataclass(frozen=True)
class Metric:
    """A metric over the samples that it is `about`.

    A mean has the statistics (value, 1); corpus BLEU has ten. Resampling works on their sums.

    Attributes:
        name: key of the value in results.json.
        about: function that is True for samples that count.
        statistics: function that returns k numbers of one sample.
        aggregate: function from sums [..., k] to values [...].
    """

    name: str
    about: Callable[[Scores], bool]
    statistics: Callable[[Scores], Sequence[float]]
    aggregate: Callable[[Floats], Floats]


def mean_of(key: str, name: str | None = None, about: Callable[[Scores], bool] | None = None) -> Metric:
    """Return the metric that is the mean of `key` over the samples that have it, or over those it is `about`."""
    return Metric(name or key, about or partial(_has, key), lambda scores: (scores[key], 1.0), mean)


def sums_of(key: str, name: str, aggregate: Callable[[Floats], Floats]) -> Metric:
    """Return the metric whose statistics are the list `key` of the samples that have it."""
    return Metric(name, partial(_has, key), itemgetter(key), aggregate)


def mean(sums: Floats) -> Floats:
    """Return means [...] of sums [..., 2] of the statistics (value, 1)."""
    return sums[..., 0] / sums[..., 1]


def values(metrics: Iterable[Metric], samples: Sequence[Scores]) -> dict[str, float]:
    """Return each metric's value over `samples`; metrics about none of them are absent."""
    found = {}
    for metric in metrics:
        rows = [metric.statistics(sample) for sample in samples if metric.about(sample)]
        if rows:
            found[metric.name] = float(metric.aggregate(np.sum(rows, axis=0)))
    return found


def _has(key: str, scores: Scores) -> bool:
    return key in scores


class Text(NamedTuple):
    """A raw report and its words by a protocol."""

    raw: str
    words: list[str]


@dataclass(frozen=True)
class Protocol:
    """A definition of the metrics of reports.

    Attributes:
        definition: name and version; the version rises whenever a value changes.
        words: function that returns the words of a report, which METEOR compares.
        score: function of (prediction, reference) that returns one report's summands, fit for JSON, without METEOR.
        metrics: metrics made of the summands, without METEOR.
        meteor_variant: default METEOR of the definition.
        reference_words: number of words after which references are cut; None leaves them whole.
    """

    definition: str
    words: Callable[[str], list[str]]
    score: Callable[[Text, Text], dict[str, Any]]
    metrics: Sequence[Metric]
    meteor_variant: str
    reference_words: int | None = None
