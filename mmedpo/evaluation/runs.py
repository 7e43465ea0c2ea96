"""Evaluation folders as a comparison reads them, and what makes two of them incomparable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedpo import credentialed
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.score import METRICS, Row, read_by_id
from mmedpo.schema import TASKS
from mmedpo.workdir import read_json

RESULTS_FORMAT = "mmedpo.results/1"
SHOWN_IDS = 5
FILES = ("questions", "predictions", "scores")
SAME_COLUMNS = ("image_id", "task", "question", "reference", "image_digest")
NOTED = ("seed", "source", "split")  # of results.json: a difference is said, and not refused


@dataclass(frozen=True)
class Run:
    """A finished evaluation folder, its lines by question id."""

    name: str
    results: Row
    questions: dict[str, Row]
    predictions: dict[str, Row]
    scores: dict[str, Row]


def load(folders: Sequence[Path]) -> list[Run]:
    """Read evaluation folders that can be compared with the first one.

    Raises:
        InputError: fewer than two, unfinished or damaged folders, equal names, or runs whose questions, references,
            images, protocols or definitions differ (every difference is listed).
    """
    if len(folders) < 2:
        raise InputError(f"{len(folders)} runs were given; a comparison needs at least two, the baseline first.")
    runs = [_load(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"The runs are named {', '.join(names)}; give each run its own name, to tell them apart.")
    faults = [fault for run in runs[1:] for fault in _differences(runs[0], run)]
    if faults:
        with credentialed.quoting_nothing(credentialed.first(run.results for run in runs) is not None):
            raise InputError(
                "The runs cannot be compared, since they did not answer and score the same questions:", faults
            )
    unknown = [name for name in runs[0].results["protocols"] if name not in METRICS]
    if unknown:
        raise InputError(f"The runs are scored by {', '.join(unknown)}; this version knows {', '.join(METRICS)}.")
    return runs


def notes(runs: Sequence[Run]) -> list[str]:
    """What differs between the runs' records, apart from the model, and may explain a difference."""
    baseline, said = runs[0], []
    for run in runs[1:]:
        ours, theirs = _settings(run), _settings(baseline)
        said += [
            f"{key} is {ours.get(key)!r} in {run.name!r}, but {theirs.get(key)!r} in {baseline.name!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
    return said


def definitions(run: Run) -> Row:
    """Protocols and whatever else names what the numbers mean: METEOR's variant, versions of definitions."""
    named = {
        key: value
        for key, value in run.results["metrics"].items()
        if isinstance(value, str) or (value is not None and "definition" in key)
    }
    return {**run.results["protocols"], **named}


def _settings(run: Run) -> Row:
    given = {key: run.results.get(key) for key in NOTED}
    return given | (run.results.get("settings") or {})


def _load(folder: Path) -> Run:
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("format") != RESULTS_FORMAT:
        raise InputError(
            f"{folder / 'results.json'} is not in the format {RESULTS_FORMAT}; run `mmedpo evaluate` anew."
        )
    if not isinstance(results.get("name"), str) or not all(
        isinstance(results.get(key), dict) for key in ("protocols", "metrics")
    ):
        raise InputError(f"{folder / 'results.json'} lacks name, protocols or metrics; run `mmedpo evaluate` anew.")
    parts, faults = zip(*(read_by_id(folder / f"{name}.jsonl") for name in FILES), strict=True)
    if any(faults) or any(part.keys() != parts[0].keys() for part in parts):
        raise InputError(
            f"{folder}: {', '.join(FILES)} do not hold the same ids once each; run `mmedpo evaluate` anew.",
            [fault for some in faults for fault in some],
        )
    if not parts[0]:
        raise InputError(f"{folder} has no questions; there is nothing to compare.")
    run = Run(results["name"], results, *parts)
    damaged = list(_damaged(run))
    if damaged:
        with credentialed.quoting_nothing(credentialed.first([results]) is not None):
            raise InputError(f"{folder} is damaged; run `mmedpo evaluate` anew:", damaged)
    return run


def _damaged(run: Run) -> Iterator[Fault]:
    for id_, question in run.questions.items():
        for column in ("image_id", "question", "reference"):
            if not isinstance(question.get(column), str):
                yield Fault(id_, column, f"is {question.get(column)!r}, not a string")
        if question.get("task") not in TASKS:
            yield Fault(id_, "task", f"is {question.get('task')!r}; choose one of: {', '.join(TASKS)}")
        if not isinstance(run.predictions[id_].get("prediction"), str):
            yield Fault(id_, "prediction", f"is {run.predictions[id_].get('prediction')!r}, not a string")
        for key, value in run.scores[id_].items():
            parts = value if isinstance(value, list) else [value]
            if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
                yield Fault(id_, key, f"is {value!r}, no finite number")


def _differences(baseline: Run, run: Run) -> list[Fault]:
    faults = []
    for one, other in ((baseline, run), (run, baseline)):
        lacking = sorted(one.questions.keys() - other.questions.keys())
        if lacking:
            shown = ", ".join(lacking[:SHOWN_IDS]) + (", ..." if len(lacking) > SHOWN_IDS else "")
            faults.append(Fault(other.name, "id", f"lacks {len(lacking)} questions of {one.name!r}: {shown}"))
    ours, theirs = definitions(run), definitions(baseline)
    if ours != theirs:
        faults.append(Fault(run.name, "protocols", f"are {ours}, but {theirs} in {baseline.name!r}; score both alike"))
    for id_, question in baseline.questions.items():
        twin = run.questions.get(id_, question)
        faults += [
            Fault(id_, column, f"is {twin[column]!r} in {run.name!r}, but {question[column]!r} in {baseline.name!r}")
            for column in SAME_COLUMNS
            if None not in (twin.get(column), question.get(column)) and twin[column] != question[column]
        ]
    return faults
