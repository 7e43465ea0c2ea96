"""How answers were read: shares without a readable answer, and their part in a difference of accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from mmedpo.evaluation.metrics.base import Scores, mean_of
from mmedpo.evaluation.metrics.closed import UNREAD
from mmedpo.evaluation.metrics.med_vqa import is_closed
from mmedpo.evaluation.metrics.open_answers import LATERALITY
from mmedpo.evaluation.parts import Cells, Part, about_questions
from mmedpo.evaluation.runs import Run, by_method
from mmedpo.evaluation.score import Row

ALARM = 0.02  # difference of shares above which runs are said to differ in what could be read
GAIN = ("unread_before", "unread_now", "read_in_both")  # parts of a difference of accuracy
OWN = ("p", "sd", "values")  # numbers of a metric, not of a share
READABLE = "readable"  # share of the questions whose answers were read in both runs


def measure(runs: Sequence[Run]) -> dict[str, Part]:
    """Return the shares and gains of "closed" and "choice" answers, and of "open" ones the share on the wrong side.

    Kinds without questions are absent, as are those whose reading the protocol does not tell. The gains of a question
    are its change of "correct" from the baseline (the mean over its runs) to the run, under the reading of the two
    answers. An unread answer is wrong, so that the means of the gains add up to the difference of accuracy.
    """
    counted = {key for run in runs for key in run.results["metrics"]}
    unread = {kind: [one for one in UNREAD if f"n_{kind}_{one}" in counted] for kind in ("closed", "choice")}
    names = {kind: ["unread", *verdicts, *GAIN, READABLE] for kind, verdicts in unread.items() if verdicts}
    if "n_laterality_conflicts" in counted:
        names["open"] = ["wrong_side"]
    found: dict[str, Part] = {}
    baseline = [run.scores for run in runs if run.method == runs[0].method]
    for kind, columns in names.items():
        read = [
            replace(
                run,
                scores={id_: _read(kind, [one[id_] for one in baseline], score) for id_, score in run.scores.items()},
            )
            for run in runs
        ]
        found.update((kind, part) for part in about_questions(read, [mean_of(name) for name in columns]))
    return found


def _read(kind: str, before: Sequence[Scores], now: Scores) -> Row:
    if {*map(_kind, before), _kind(now)} != {kind}:
        return {}
    if kind == "open":
        return {"wrong_side": LATERALITY in now}
    changes = [(_reading(one, now), now["correct"] - one["correct"]) for one in before]
    gain = {name: fmean(change * (name == reading) for reading, change in changes) for name in GAIN}
    verdicts = {one: now["verdict"] == one for one in UNREAD}
    readable = fmean(reading == GAIN[2] for reading, _ in changes)
    return {"unread": any(verdicts.values()), **verdicts, **gain, READABLE: readable}


def _reading(before: Scores, now: Scores) -> str:
    return GAIN[0] if before["verdict"] in UNREAD else GAIN[1] if now["verdict"] in UNREAD else GAIN[2]


def _kind(scores: Scores) -> str | None:
    if "verdict" in scores:
        return "closed" if is_closed(scores) else "choice"
    return "open" if "recall" in scores else None


def record(runs: Sequence[Run], part: Part, cells: Cells) -> Row:
    """Return a kind's entry under "reading" in comparison.json (docs/files.md), from the cells of `measure`."""
    n = len(part.images)
    shares = {
        name: {run: {key: value for key, value in cell.items() if key not in OWN} for run, cell in entries.items()}
        for name, entries in cells.items()
        if name not in (*GAIN, READABLE)
    }
    found = {"n": {"questions": n, "images": part.count}, "shares": shares}
    if READABLE not in cells:
        return found
    ends = ("value", "low", "high")
    gain: Cells = {
        run: {name: {key: value for key, value in cells[name][run].items() if key in ends} for name in GAIN}
        for run in list(by_method(runs))[1:]
    }
    for run, parts in gain.items():
        parts["read_in_both"]["questions"] = round(n * cells[READABLE][run]["value"])
    return {**found, "gain": gain, "differing": _differing(shares)}


def _differing(shares: Cells) -> dict[str, list[str]]:
    """Return run -> names of its "shares" that differ from the baseline's by more than `ALARM`, where any does."""
    found: dict[str, list[str]] = {}
    for name, entries in shares.items():
        for run, cell in entries.items():
            if round(abs(cell.get("difference", 0.0)), 9) > ALARM:
                found.setdefault(run, []).append(name)
    return found


def notes(reading: Mapping[str, Row]) -> list[str]:
    """Return a note on each run whose shares of unread answers are "differing", by the "reading" of the comparison."""
    said = []
    for kind, found in reading.items():
        shares = found["shares"]
        for run, names in found.get("differing", {}).items():
            apart = [f"{name} {_change(shares[name][run])}" for name in names]
            base = next(iter(shares["unread"]))
            own, other = (f"{100 * shares['unread'][name]['value']:.1f} %" for name in (run, base))
            said.append(
                f"{own} of the {kind} answers of {run!r} could not be read and count as wrong, {other} of those of "
                f"{base!r} ({', '.join(apart)}): style alone may change {kind} accuracy"
            )
    return said


def _change(cell: Mapping[str, float]) -> str:
    ends = ("difference", "difference_low", "difference_high")
    value, low, high = (f"{round(100 * cell[end], 1) or 0.0:+.1f}" for end in ends)
    return f"{value} points [{low}, {high}]"
