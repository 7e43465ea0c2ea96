"""Closed answers that could not be read, and their part in a difference of closed accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmedpo.evaluation.metrics.base import Scores, mean_of
from mmedpo.evaluation.metrics.closed import UNREAD
from mmedpo.evaluation.metrics.med_vqa import is_closed
from mmedpo.evaluation.parts import Cells, Part, about_questions
from mmedpo.evaluation.runs import Run
from mmedpo.evaluation.score import Row

ALARM = 0.02  # difference of shares above which runs are said to differ in what could be read
SHARES = ("unread", *UNREAD)  # "unread" is the sum of the others
READABLE = "readable"  # share of the questions whose answers were read in both runs
GAIN = ("unread_before", "unread_now", "read_in_both")  # parts of a difference in closed accuracy


def measure(runs: Sequence[Run]) -> list[Part]:
    """Return `SHARES` and `GAIN` of the closed questions as one part; empty where the protocol knows no unread answers.

    The gains of a question are its change in "correct" from the baseline to the run, under the reading of its answers.
    An unread answer is wrong, so that their means add up to the difference of closed accuracy.
    """
    kinds = [kind for kind in UNREAD if any(f"n_closed_{kind}" in run.results["metrics"] for run in runs)]
    if not kinds:
        return []
    read = [
        replace(run, scores={id_: _read(runs[0].scores[id_], score, kinds) for id_, score in run.scores.items()})
        for run in runs
    ]
    return about_questions(read, [mean_of(name) for name in ("unread", *kinds, *GAIN, READABLE)])


def _read(before: Scores, now: Scores, kinds: Sequence[str]) -> Row:
    if not (is_closed(now) and is_closed(before)):
        return {}
    reading = GAIN[0] if before["verdict"] in UNREAD else GAIN[1] if now["verdict"] in UNREAD else GAIN[2]
    gain = {name: (now["correct"] - before["correct"]) * (name == reading) for name in GAIN}
    kind = {kind: now["verdict"] == kind for kind in kinds}
    return {"unread": now["verdict"] in UNREAD, **kind, **gain, READABLE: reading == GAIN[2]}


def record(runs: Sequence[Run], part: Part, cells: Cells) -> Row:
    """Return the entry "unread" of comparison.json (docs/files.md) from the cells of `measure`, without their tests."""
    n = len(part.images)
    shares = {
        name: {run: {key: value for key, value in cell.items() if key != "p"} for run, cell in cells[name].items()}
        for name in SHARES
        if name in cells
    }
    ends = ("value", "low", "high")
    gain: Cells = {
        run.name: {name: {key: cells[name][run.name][key] for key in ends if key in cells[name][run.name]}
                   for name in GAIN}
        for run in runs[1:]
    }  # fmt: skip
    for run, parts in gain.items():
        parts["read_in_both"]["questions"] = round(n * cells[READABLE][run]["value"])
    return {"n": {"questions": n, "images": part.count}, "shares": shares, "gain": gain}


def differing(runs: Sequence[Run], shares: Cells) -> dict[str, list[str]]:
    """Return run -> names of its "shares" that differ from the baseline's by more than `ALARM`; runs with none lack."""
    found = {
        run.name: [name for name, cells in shares.items() if round(abs(cells[run.name]["difference"]), 9) > ALARM]
        for run in runs[1:]
    }
    return {name: apart for name, apart in found.items() if apart}


def notes(runs: Sequence[Run], shares: Cells) -> list[str]:
    """Return a note on each run of `differing`."""
    base, said = runs[0].name, []
    for run, names in differing(runs, shares).items():
        cells = ((name, shares[name][run]) for name in names)
        apart = [
            f"{name} {100 * cell['difference']:+.1f} points "
            f"[{100 * cell['difference_low']:+.1f}, {100 * cell['difference_high']:+.1f}]"
            for name, cell in cells
        ]
        own, other = (f"{100 * shares['unread'][name]['value']:.1f} %" for name in (run, base))
        said.append(
            f"{own} of the closed answers of {run!r} could not be read and count as wrong, {other} of those of "
            f"{base!r} ({', '.join(apart)}): style alone may change closed accuracy"
        )
    return said
