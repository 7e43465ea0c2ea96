"""Questions whose answers changed between the first run and the last one, to be read rather than counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmedpo.evaluation.metrics.base import Metric
from mmedpo.evaluation.runs import Run
from mmedpo.evaluation.score import Row

# What happened to a question, in the order of the examples. Without "correct" (reports) its first metric decides.
OUTCOMES = ("gained", "lost", "higher", "lower", "both_wrong", "both_right", "equal")
CHANGED = (("gained", "lost"), ("higher", "lower"))
MOST = {"gained": 500, "higher": 500, "both_wrong": 50, "both_right": 50, "equal": 50}
COLUMNS = ("id", "image_id", "task", "question", "reference", "question_type", "organ", "modality")


def changes(runs: Sequence[Run]) -> dict[str, int]:
    """How many questions the last run gained, lost, and had right or wrong as the first had."""
    found = Counter(_by_correct(runs, id_) for id_ in runs[0].questions)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


def examples(runs: Sequence[Run], metrics: Sequence[Metric], seed: int) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Changed questions first: all of them up to `MOST` a pair of outcomes, of which at least a third are losses where
    there are so many; then some that did not change. Which ones, where not all are kept, is left to the seed.

    Returns:
        The examples; and by outcome how many questions had it ("of") and how many of these are kept ("listed").
    """
    found = [_example(runs, metrics, id_) for id_ in sorted(runs[0].questions)]
    random.Random(seed).shuffle(found)
    by_outcome = {outcome: [row for row in found if row["outcome"] == outcome] for outcome in OUTCOMES}
    outcomes = {outcome: {"of": len(rows)} for outcome, rows in by_outcome.items() if rows}
    for better, worse in CHANGED:
        gained, lost, most = by_outcome[better], by_outcome[worse], MOST[better]
        by_outcome[worse] = lost[: max(most // 3, most - len(gained))]
        by_outcome[better] = gained[: most - len(by_outcome[worse])]
    kept = [row for outcome, rows in by_outcome.items() for row in rows[: MOST.get(outcome)]]
    listed = Counter(row["outcome"] for row in kept)
    outcomes = {outcome: {"listed": listed[outcome], **count} for outcome, count in outcomes.items()}
    # Of answers that are neither right nor wrong, the largest change first.
    return sorted(kept, key=lambda row: (OUTCOMES.index(row["outcome"]), -abs(_change(runs, row)))), outcomes


def _by_correct(runs: Sequence[Run], id_: str) -> str | None:
    """None for an answer that is neither right nor wrong."""
    was, became = (run.scores[id_].get("correct") for run in (runs[0], runs[-1]))
    if was is None or became is None:
        return None
    if bool(was) == bool(became):
        return "both_right" if was else "both_wrong"
    return "gained" if became else "lost"


def _example(runs: Sequence[Run], metrics: Sequence[Metric], id_: str) -> Row:
    question = runs[0].questions[id_]
    found = {
        **{column: question.get(column) for column in COLUMNS},
        "predictions": {run.name: run.predictions[id_]["prediction"] for run in runs},
        "correct": {run.name: _flag(run.scores[id_].get("correct")) for run in runs},
        **_first_metric(runs, metrics, id_),
    }
    change = _change(runs, found)
    found["outcome"] = _by_correct(runs, id_) or ("higher" if change > 0 else "lower" if change < 0 else "equal")
    return found


def _flag(correct: float | None) -> bool | None:
    return None if correct is None else bool(correct)


def _first_metric(runs: Sequence[Run], metrics: Sequence[Metric], id_: str) -> Row:
    """The name and values of the first metric that is about the question, over this question alone."""
    for metric in metrics:
        if all(metric.about(run.scores[id_]) for run in runs):
            with np.errstate(divide="ignore", invalid="ignore"):
                values = [metric.aggregate(np.array(metric.statistics(run.scores[id_]), dtype=float)) for run in runs]
            if np.isfinite(values).all():
                named = {run.name: float(value) for run, value in zip(runs, values, strict=True)}
                return {"metric": metric.name, "scores": named}
    return {"metric": None, "scores": {}}


def _change(runs: Sequence[Run], example: Row) -> float:
    scores = example["scores"]
    return float(scores[runs[-1].name] - scores[runs[0].name]) if scores else 0.0
