"""Metrics about the same questions, with their intervals and p-values over resamples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby

import numpy as np

from mmedpo.evaluation.metrics.base import Floats, Metric
from mmedpo.evaluation.runs import Run, by_method
from mmedpo.evaluation.score import Row, clusters
from mmedpo.evaluation.statistics import bootstrap, cluster_sums, exchanges, over_seeds, p_over_seeds, spread, tail

COLUMNS = 200  # most columns of statistics that share a bootstrap
THREADS = 2  # threads of the bootstrap

Cells = dict[str, dict[str, Row]]  # metric -> method -> numbers


@dataclass(frozen=True, eq=False)
class Part:
    """Metrics about the same n questions, with the statistics of each run.

    Attributes:
        metrics: metrics about all n questions.
        ids: n question ids.
        images: n clusters: a question's image, with all that questions of the run link to it.
        statistics: [runs, n, k], columns of all metrics side by side.
        ends: column indices at which the metrics are split.
    """

    metrics: list[Metric]
    ids: list[str]
    images: list[str]
    statistics: Floats
    ends: list[int]

    @cached_property
    def count(self) -> int:
        """Number of clusters."""
        return len(set(self.images))

    def of(self, chosen: Sequence[int]) -> Part:
        """Return the same metrics about the questions at indices `chosen`."""
        ids, images = ([column[place] for place in chosen] for column in (self.ids, self.images))
        return replace(self, ids=ids, images=images, statistics=self.statistics[:, chosen])

    def values(self, sums: Floats) -> Iterator[tuple[Metric, Floats]]:
        """Yield each metric with its values [...] from sums [..., k]; NaN where undefined."""
        with np.errstate(divide="ignore", invalid="ignore"):
            for metric, own in zip(self.metrics, np.split(sums, self.ends, axis=-1), strict=True):
                yield metric, metric.aggregate(own)


def about_questions(runs: Sequence[Run], defined: Sequence[Metric]) -> list[Part]:
    """Return the metrics grouped by the questions they are about; metrics about none are left out."""
    found, of = [], dict(zip(runs[0].questions, clusters(runs[0].questions.values()), strict=True))
    for about, group in groupby(defined, key=partial(_about, runs)):
        if about:
            metrics = list(group)
            tables = [
                np.array([[metric.statistics(run.scores[id_]) for id_ in about] for run in runs], dtype=float)
                for metric in metrics
            ]
            ends = np.cumsum([table.shape[-1] for table in tables])[:-1].tolist()
            images = [of[id_] for id_ in about]
            found.append(Part(metrics, about, images, np.concatenate(tables, axis=-1), ends))
    return found


def _about(runs: Sequence[Run], metric: Metric) -> list[str]:
    return [id_ for id_ in runs[0].questions if all(metric.about(run.scores[id_]) for run in runs)]


def values_alone(runs: Sequence[Run], part: Part) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield each metric's values by method, without intervals."""
    places = by_method(runs)
    for metric, values in part.values(part.statistics.sum(axis=-2)):
        yield metric.name, {name: {"value": float(values[own].mean())} for name, own in places.items()}


def resampled(runs: Sequence[Run], parts: Sequence[Part], seed: int, resamples: int) -> dict[Part, Cells]:
    """Return each part's values, differences, intervals and p-values.

    Parts about equally many images share the draws, which take most of a comparison's time.
    """
    together: defaultdict[tuple[int, int], list[Part]] = defaultdict(list)
    columns: Counter[int] = Counter()
    for part in parts:
        together[part.count, columns[part.count] // COLUMNS].append(part)
        columns[part.count] += part.statistics.shape[-1]
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda same: _cells(runs, same, seed, resamples), together.values())
        return {part: cells for some in found for part, cells in some.items()}


def _cells(runs: Sequence[Run], parts: Sequence[Part], seed: int, resamples: int) -> dict[Part, Cells]:
    """As `resampled`, for parts about equally many images."""
    # One bootstrap for all runs makes their differences paired.
    sums = np.concatenate([cluster_sums(part.statistics, part.images) for part in parts], axis=-1)
    images, places = range(sums.shape[-2]), by_method(runs)
    baseline, *others = places.values()
    drawn = bootstrap(sums, images, seed, resamples)
    rest = sums[np.concatenate(others)]
    exchanged = [exchanges(np.concatenate([sums[[place]], rest]), images, seed, resamples) for place in baseline]
    ends = np.cumsum([part.statistics.shape[-1] for part in parts])[:-1]
    tables = [np.split(table, ends, axis=-1) for table in (drawn, *(side for pair in exchanged for side in pair))]
    return {part: dict(_entries(places, part, *own)) for part, *own in zip(parts, *tables, strict=True)}


def _entries(
    places: Mapping[str, list[int]], part: Part, drawn: Floats, *exchanged: Floats
) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield each metric's numbers by method.

    Args:
        places: places of the methods' runs, the baseline's first.
        drawn: sums of `bootstrap`.
        exchanged: for each of the baseline's runs, the two tables of `exchanges` with the runs of all other methods.
    """
    cut, first = tail(part.images), len(next(iter(places.values())))
    tables = zip(*map(part.values, (drawn, *exchanged)), strict=True)
    for (metric, draws), *sides in tables:
        means = {name: over_seeds(draws[own]) for name, own in places.items()}
        base = next(iter(means.values()))
        entries = {}
        for name, own in places.items():
            entries[name] = {**vars(spread(means[name], cut))}
            if own[0] >= first:
                change = means[name] - base
                found = spread(change, cut)
                pairs = [
                    ours[place - first] - theirs[place - first]
                    for (_, ours), (_, theirs) in zip(sides[::2], sides[1::2], strict=True)
                    for place in own
                ]
                entries[name] |= {
                    "difference": found.value, "difference_low": found.low, "difference_high": found.high,
                    "p": p_over_seeds(change, np.mean(pairs, axis=0)),
                }  # fmt: skip
            if len(own) > 1:
                entries[name] |= {"sd": float(draws[own, 0].std(ddof=1)), "values": draws[own, 0].tolist()}
        yield metric.name, entries
