"""Agreement of reviewers with each other, with the judges, and with the dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np

from mmedpo.report.audit.measure import MILLION, Agreement
from mmedpo.report.audit.read import Row
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import ACCEPT, BETTER, DECISIONS, REJECT, UNSURE, Verdict, Verdicts

CONFIDENCE, RESAMPLES = 0.95, 2000
FEWEST = 10  # rows of a rank correlation
CHANGED, UNKNOWN = "about another version of the row", "about a row that the dataset lacks"
BROKEN = "in lines that are no JSON, such as one that a kill cut short"
NO_REASON = "(no reason given)"


@dataclass(frozen=True)
class Reviewed:
    """Verdicts that count: the last of each reviewer on each row as it is in the dataset.

    Attributes:
        by_row: row id -> verdicts, in the order of the dataset.
        left_out: number of other rows' verdicts, by reason.
    """

    by_row: Mapping[str, Sequence[Verdict]]
    left_out: Mapping[str, int]

    def __iter__(self) -> Iterator[Verdict]:
        for said in self.by_row.values():
            yield from said


def reviewed(pairs: Pairs, verdicts: Verdicts) -> Reviewed:
    """Return the verdicts that count for a dataset; rows that have verdicts are read.

    Raises:
        InputError: a line of the file is no verdict.
    """
    places = pairs.place_of
    given: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts.last().values():
        given[verdict.row].append(verdict)
    left_out = Counter({
        UNKNOWN: sum(len(said) for id, said in given.items() if id not in places), BROKEN: verdicts.broken,
    })  # fmt: skip
    by_row = {}
    for id in sorted(given.keys() & places.keys(), key=places.__getitem__):
        own = digest(pairs.read(places[id]))
        by_row[id] = [one for one in given[id] if one.digest == own]
        left_out[CHANGED] += len(given[id]) - len(by_row[id])
    return Reviewed({id: said for id, said in by_row.items() if said}, +left_out)


def summary(pairs: Pairs, given: Reviewed, seed: int = 0) -> dict[str, Any]:
    """Return what reviewers said, as JSON. No text of the dataset is in it.

    Agreement on decisions is Krippendorff's alpha over rows that at least two reviewers accepted or rejected (nominal,
    which is interval alpha of 0 and 1), and Cohen's kappa of each two reviewers; on relevance, alpha (interval level).

    Args:
        seed: of the bootstrap intervals.
    """
    rows = {row.name: row for row in pairs.rows}
    everything = [*given]
    return {
        "dataset": pairs.folder.resolve().name, "rows": len(pairs), "seen": len(given.by_row),
        "seen_by_several": sum(len(said) > 1 for said in given.by_row.values()),
        "left_out": dict(given.left_out),
        "reviewers": {name: _reviewer([one for one in everything if one.reviewer == name])
                      for name in sorted({one.reviewer for one in everything})},
        "by_kind": _by_kind(given, rows),
        "agreement": _agreement(given),
        "blind": _blind(everything),
        "judges": [*_judges(given, rows, seed)],
        "disagreements": [
            {"row": id, "decisions": {one.reviewer: one.decision for one in said}}
            for id, said in given.by_row.items() if {ACCEPT, REJECT} <= {one.decision for one in said}
        ],
        "reasons": _reasons(everything),
        "edited": dict(Counter(name for one in everything for name in one.after)),
    }  # fmt: skip


def relevances(said: Sequence[Verdict]) -> list[float]:
    """Return the clinical relevance that reviewers gave to a row."""
    return [one.relevance for one in said if one.relevance is not None]


def by_judge(row: Row) -> dict[str, float]:
    """Return the last score of each judge of a row, and the dataset's relevance as that of "dataset"."""
    scores = {
        judge: score for _, judge, score, _ in sorted(row.judgements, key=lambda one: one[0]) if score is not None
    }
    return scores | ({"dataset": row.relevance} if row.relevance is not None and row.judgements else {})


def _reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return the reasons of rejections with their counts, the commonest first."""
    return dict(Counter(one.reason.strip() or NO_REASON for one in verdicts if one.decision == REJECT).most_common())


def _reviewer(said: Sequence[Verdict]) -> dict[str, Any]:
    times = [one.seconds for one in said if one.seconds is not None]
    counts = Counter(one.decision for one in said)
    return {
        "verdicts": len(said), **{name: counts[name] for name in DECISIONS},
        "relevance": sum(one.relevance is not None for one in said),
        "edited": sum(bool(one.after) for one in said), "seconds": round(median(times), 1) if times else None,
    }  # fmt: skip


def _by_kind(given: Reviewed, rows: Mapping[str, Row]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for id, said in given.by_row.items():
        found[rows[id].kind].update(one.decision for one in said)
    return {kind: {name: counts[name] for name in DECISIONS} for kind, counts in found.items()}


def _agreement(given: Reviewed) -> dict[str, Any]:
    decisions, relevance = Agreement(), Agreement()
    both: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for said in given.by_row.values():
        decided = sorted((one.reviewer, one.decision) for one in said if one.decision != UNSURE)
        decisions.add([decision == ACCEPT for _, decision in decided])
        relevance.add([round(MILLION * Decimal(score)) for score in relevances(said)])
        for (one, first), (other, second) in combinations(decided, 2):
            both[one, other].append((first, second))
    reviewers = len({one.reviewer for one in given})
    return {
        "decisions": decisions.result(reviewers), "relevance": relevance.result(reviewers),
        "kappa": [
            {"reviewers": [*names], "rows": len(found), "kappa": _kappa(found)} for names, found in sorted(both.items())
        ],
    }  # fmt: skip


def _kappa(found: Sequence[tuple[str, str]]) -> float | None:
    """Return Cohen's kappa of two reviewers; None where all their decisions are one and the same."""
    from sklearn.metrics import cohen_kappa_score

    if len({decision for both in found for decision in both}) < 2:
        return None
    return round(float(cohen_kappa_score(*zip(*found, strict=True))), 4)


def _blind(verdicts: Sequence[Verdict]) -> dict[str, Any] | None:
    """Return how often blind reviewers preferred the chosen side, with a Wilson interval; None where none was blind."""
    from scipy.stats import binomtest

    counts = Counter(one.better for one in verdicts if one.better is not None)
    if not counts:
        return None
    interval = binomtest(counts["chosen"], counts.total()).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "verdicts": counts.total(), **{name: counts[name] for name in BETTER},
        "share": round(counts["chosen"] / counts.total(), 4), "interval": [round(float(end), 4) for end in interval],
    }  # fmt: skip


def _judges(given: Reviewed, rows: Mapping[str, Row], seed: int) -> Iterator[dict[str, Any]]:
    """Yield how the scores of each judge, and the dataset's relevance, go with the mean of the reviewers'."""
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for id, said in given.by_row.items():
        if found := relevances(said):
            for judge, score in by_judge(rows[id]).items():
                scores[judge].append((score, fmean(found)))
    for judge, points in sorted(scores.items(), key=lambda one: (one[0] != "dataset", one[0])):
        judged, reviewed = (np.array(values) for values in zip(*points, strict=True))
        yield {
            "judge": judge, "rows": len(points), **_rank_correlation(judged, reviewed, seed),
            "difference": round(float((judged - reviewed).mean()), 4),
            "points": [[round(float(one), 4) for one in point] for point in points],
        }  # fmt: skip


def _rank_correlation(judged: np.ndarray, reviewed: np.ndarray, seed: int) -> dict[str, Any]:
    """Return Spearman's correlation with a bootstrap interval over rows."""
    from scipy.stats import bootstrap, rankdata

    def spearman(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])

    if len(judged) < FEWEST or judged.std() == 0 or reviewed.std() == 0:
        reason = f"fewer than {FEWEST} rows" if len(judged) < FEWEST else "all scores are equal"
        return {"spearman": None, "interval": None, "reason": reason}
    statistic: Callable[..., float] = spearman
    with np.errstate(invalid="ignore"):  # resamples of one value
        found = bootstrap(
            (judged, reviewed), statistic, paired=True, vectorized=False, n_resamples=RESAMPLES,
            confidence_level=CONFIDENCE, method="percentile", rng=seed,
        )  # fmt: skip
    ends = np.nanpercentile(found.bootstrap_distribution, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return {
        "spearman": round(spearman(judged, reviewed), 4),
        "interval": [round(float(end), 4) for end in ends],
        "reason": None,
    }
