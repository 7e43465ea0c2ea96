"""Examples for a comparison: questions whose answers changed between the baseline and the last run."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import numpy as np

from mmedpo.evaluation.metrics.base import Metric
from mmedpo.evaluation.runs import Run
from mmedpo.evaluation.score import Row

# Outcomes of a question, in the order of the examples. For reports, which have no "correct", the first metric decides.
OUTCOMES = ("gained", "lost", "higher", "lower", "both_wrong", "both_right", "equal")
CHANGED = (("gained", "lost"), ("higher", "lower"))
MOST = {"gained": 500, "higher": 500, "both_wrong": 50, "both_right": 50, "equal": 50}
COLUMNS = ("id", "image_id", "task", "question", "reference", "question_type", "organ", "modality")


def changes(runs: Sequence[Run]) -> dict[str, int]:
    """Return the number of questions by outcome: gained, lost, both_wrong, both_right."""
    found = Counter(_by_correct(runs, id_) for id_ in runs[0].questions)
    return {outcome: found[outcome] for outcome in OUTCOMES if found[outcome]}


def examples(runs: Sequence[Run], metrics: Sequence[Metric], seed: int) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Return example questions, changed ones first, and counts by outcome.

    At most `MOST` questions of each pair of changed outcomes are kept; at least a third of them are losses, where
    there are enough. Where not all are kept, `seed` decides which.

    Args:
        runs: runs of a comparison; the first and the last are compared.
        metrics: defined metrics; the first about a question gives its values.
        seed: seed of the choice.

    Returns:
        The examples; and by outcome the questions with it ("of") and the examples kept ("listed").
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
    # Reports have no "correct": their largest changes come first.
    return sorted(kept, key=lambda row: (OUTCOMES.index(row["outcome"]), -abs(_change(runs, row)))), outcomes


def _by_correct(runs: Sequence[Run], id_: str) -> str | None:
    """Return the outcome by "correct"; None for reports, which have none."""
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
    """Return name and values of the first metric about the question, computed on this question only."""
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
