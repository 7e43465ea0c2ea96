"""Runs set side by side on the same questions: each metric with its interval, and its difference from the first run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from mmedpo import credentialed
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.metric import Metric
from mmedpo.evaluation.score import METRICS, Row, read_by_id
from mmedpo.evaluation.statistics import RESAMPLES, Interval, bootstrap, interval, paired_interval
from mmedpo.workdir import read_json, versions

FORMAT = "mmedpo.comparison/1"
RESULTS_FORMAT = "mmedpo.results/1"
EXAMPLES = 12
SHOWN_IDS = 5
FILES = ("questions", "predictions", "scores")
INTERVAL = ("value", "low", "high")
DIFFERENCE = ("difference", "difference_low", "difference_high")
SAME_COLUMNS = ("image_id", "task", "question", "reference")


@dataclass(frozen=True)
class Run:
    """A finished evaluation folder, its lines by question id."""

    name: str
    results: Row
    questions: dict[str, Row]
    predictions: dict[str, Row]
    scores: dict[str, Row]


def compare(runs: Sequence[Path], seed: int = 0, resamples: int = RESAMPLES, command: str = "") -> Row:
    """Compare evaluation folders; the first is the baseline. Returns the comparison.json of docs/architecture.md.

    Intervals are 95 % percentile intervals of a bootstrap over images; differences see the same resamples in both
    runs. Metrics about no question are absent.

    Args:
        runs: at least two folders written by `mmedpo evaluate`, each with its own "name" in results.json.
        seed: of the resamples and of the choice of examples.
        command: kept as it is, for the record.

    Raises:
        InputError: fewer than two runs, unfinished or damaged folders, equal names, or runs whose questions,
            references or protocols differ (every difference is listed).
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} runs were given; a comparison needs at least two, the baseline first.")
    loaded = [_load(folder) for folder in runs]
    _refuse_unequal(loaded)
    baseline = loaded[0]
    tasks = [row["task"] for row in baseline.questions.values()]
    marked = credentialed.first(run.results for run in loaded)
    return {
        "format": FORMAT,
        "command": command,
        **({"credentialed": True, "source": marked} if marked else {}),
        "versions": versions(),
        "seed": seed,
        "resamples": resamples,
        "unit": "image",
        "baseline": baseline.name,
        "runs": [run.name for run in loaded],
        "n": {
            "closed": tasks.count("closed_vqa"),
            "open": tasks.count("open_vqa"),
            "report": tasks.count("report"),
            "images": len({row["image_id"] for row in baseline.questions.values()}),
        },
        "metrics": _metrics(loaded, seed, resamples),
        "examples": _examples(loaded, seed),
    }


def rows(comparison: Row) -> list[list[str]]:
    """The metrics as a table of strings, headings first: a row for each metric and run, with 95 % intervals."""
    baseline = comparison["baseline"]
    table = [["metric", "run", "value [95 % interval]", f"difference to {baseline}"]]
    for metric, entries in comparison["metrics"].items():
        for name in comparison["runs"]:
            difference = "" if name == baseline else _cell(entries[name], DIFFERENCE, "+")
            table.append([metric if name == baseline else "", name, _cell(entries[name], INTERVAL), difference])
    return table


def _cell(entry: Row, keys: Sequence[str], sign: str = "") -> str:
    value, low, high = (f"{entry[key]:{sign}.3f}" for key in keys)
    return f"{value} [{low}, {high}]"


def _load(folder: Path) -> Run:
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("format") != RESULTS_FORMAT:
        raise InputError(
            f"{folder / 'results.json'} is not in the format {RESULTS_FORMAT}; run `mmedpo evaluate` anew."
        )
    parts, faults = zip(*(read_by_id(folder / f"{name}.jsonl") for name in FILES), strict=True)
    if any(faults) or any(part.keys() != parts[0].keys() for part in parts):
        raise InputError(
            f"{folder}: {', '.join(FILES)} do not hold the same ids once each; run `mmedpo evaluate` anew.",
            [fault for some in faults for fault in some],
        )
    if not parts[0]:
        raise InputError(f"{folder} has no questions; there is nothing to compare.")
    return Run(results["name"], results, *parts)


def _refuse_unequal(runs: Sequence[Run]) -> None:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"The runs are named {', '.join(names)}; give each run its own name, to tell them apart.")
    faults = [fault for run in runs[1:] for fault in _differences(runs[0], run)]
    if credentialed.first(run.results for run in runs):
        faults = credentialed.unquoted(faults)
    if faults:
        raise InputError("The runs cannot be compared, since they did not answer and score the same questions:", faults)


def _differences(baseline: Run, run: Run) -> list[Fault]:
    faults = []
    for one, other in ((baseline, run), (run, baseline)):
        lacking = sorted(one.questions.keys() - other.questions.keys())
        if lacking:
            shown = ", ".join(lacking[:SHOWN_IDS]) + (", ..." if len(lacking) > SHOWN_IDS else "")
            faults.append(Fault(other.name, "id", f"lacks {len(lacking)} questions of {one.name!r}: {shown}"))
    ours, theirs = _protocols(run), _protocols(baseline)
    if ours != theirs:
        faults.append(Fault(run.name, "protocols", f"are {ours}, but {theirs} in {baseline.name!r}; score both alike"))
    for id_, question in baseline.questions.items():
        twin = run.questions.get(id_, question)
        faults += [
            Fault(id_, column, f"is {twin[column]!r} in {run.name!r}, but {question[column]!r} in {baseline.name!r}")
            for column in SAME_COLUMNS
            if twin[column] != question[column]
        ]
    return faults


def _protocols(run: Run) -> Row:
    return {**run.results["protocols"], "meteor_variant": run.results["metrics"].get("meteor_variant")}


def _metrics(runs: Sequence[Run], seed: int, resamples: int) -> dict[str, dict[str, Row]]:
    """Each metric that the runs' protocols define and that is about any of their questions, with its intervals."""
    protocols = runs[0].results["protocols"]
    defined = [metric for name, protocol in protocols.items() for metric in METRICS[name](protocol)]
    found: dict[str, dict[str, Row]] = {}
    for ids, group in groupby(defined, key=partial(_about, runs)):
        if ids:
            found |= _intervals(runs, list(group), ids, seed, resamples)
    return found


def _about(runs: Sequence[Run], metric: Metric) -> list[str]:
    return [id_ for id_ in runs[0].scores if all(metric.about(run.scores[id_]) for run in runs)]


def _intervals(
    runs: Sequence[Run], metrics: Sequence[Metric], ids: Sequence[str], seed: int, resamples: int
) -> dict[str, dict[str, Row]]:
    # One bootstrap serves all runs and metrics about the same questions: that is what pairs the differences.
    tables = [np.array([[metric.statistics(run.scores[id_]) for id_ in ids] for run in runs]) for metric in metrics]
    images = [runs[0].questions[id_]["image_id"] for id_ in ids]
    sums = bootstrap(np.concatenate(tables, axis=-1), images, seed, resamples)
    ends = np.cumsum([table.shape[-1] for table in tables])[:-1]
    found: dict[str, dict[str, Row]] = {}
    for metric, part in zip(metrics, np.split(sums, ends, axis=-1), strict=True):
        draws = metric.aggregate(part)
        entries = {run.name: _named(INTERVAL, interval(own)) for run, own in zip(runs, draws, strict=True)}
        for run, own in zip(runs[1:], draws[1:], strict=True):
            entries[run.name] |= _named(DIFFERENCE, paired_interval(own, draws[0]))
        found[metric.name] = entries
    return found


def _named(keys: Sequence[str], found: Interval) -> Row:
    return dict(zip(keys, astuple(found), strict=True))


def _examples(runs: Sequence[Run], seed: int) -> list[Row]:
    """Questions that the last run gained over the baseline, then those it lost: at least a third, where there are."""
    first, last = runs[0].scores, runs[-1].scores

    def drawn(*correct: float) -> list[str]:
        # A report has no "correct": it is neither right nor wrong.
        ids = [id_ for id_ in sorted(first) if (first[id_].get("correct"), last[id_].get("correct")) == correct]
        return random.Random(seed).sample(ids, len(ids))

    gained, lost = drawn(0.0, 1.0), drawn(1.0, 0.0)
    shown_lost = lost[: max(EXAMPLES // 3, EXAMPLES - len(gained))]
    return [_example(runs, id_) for id_ in gained[: EXAMPLES - len(shown_lost)] + shown_lost]


def _example(runs: Sequence[Run], id_: str) -> Row:
    question = runs[0].questions[id_]
    return {
        **{column: question[column] for column in ("id", "task", "question", "reference")},
        "predictions": {run.name: run.predictions[id_]["prediction"] for run in runs},
        "correct": {run.name: bool(run.scores[id_]["correct"]) for run in runs},
    }
