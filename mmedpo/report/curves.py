"""Curves of a training from its `log_history`: panels, the card's picture, first and last values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mmedpo import schema
from mmedpo.data.plots import PALETTE, saved

MARGINS = "rewards/margins"
KINDS = {f"{MARGINS}_{kind}": kind.replace("_", " ") for kind in schema.DISPREFERENCES}  # margins by kind of pair
PANELS = ("loss", MARGINS, "rewards/accuracies")
PICTURE = "curves.png"

History = Sequence[Mapping[str, Any]]


def logged(history: History, key: str) -> list[Mapping[str, Any]]:
    """Return the entries that logged a finite `key` at a step, without the last entry, which sums up the run.

    Values that are not finite are recorded as null.
    """
    return [entry for entry in history if entry.get(key) is not None and "train_runtime" not in entry]


def kinds(*histories: History) -> list[str]:
    """Return the logged margins by kind of pair; empty where all pairs are of one kind."""
    found = [key for key in KINDS if any(logged(history, key) for history in histories)]
    return found if len(found) > 1 else []


def summaries(history: History) -> list[dict[str, Any]]:
    """Return the means of each curve over the first and the last tenth of its logged steps.

    "lost" counts the steps without a finite value; a curve without any finite value has the means None.
    """
    found: list[dict[str, Any]] = []
    for key in (*PANELS[:2], *kinds(history), *PANELS[2:]):
        values = [float(entry[key]) for entry in logged(history, key)]
        lost = sum(key in entry and entry[key] is None for entry in history)
        counts = {"key": key, "count": len(values), "lost": lost}
        if values:
            tenth = max(1, len(values) // 10)
            found.append({**counts, "first": fmean(values[:tenth]), "last": fmean(values[-tenth:])})
        elif lost:
            found.append({**counts, "first": None, "last": None})
    return found


def draw(history: History, output: Path) -> None:
    """Draw a PNG with a panel for each logged one of `PANELS`, with lines of training and evaluation.

    The panel of margins also has a line for each kind of pair.
    """
    from matplotlib.figure import Figure

    panels = [key for key in PANELS if logged(history, key)]
    if not panels:
        return
    figure = Figure(figsize=(4 * len(panels), 3), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        lines = [panel, *(kinds(history) if panel == MARGINS else [])]
        for number, key in enumerate(lines):
            name = KINDS.get(key, "all pairs") if len(lines) > 1 else "training"
            evaluated = "_" if number else "evaluation"  # the legend names dashed lines once
            for column, label, look in ((key, name, "-"), (f"eval_{key}", evaluated, "o--")):
                entries = logged(history, column)
                seen = look if len(entries) > 1 else "o"  # a line needs two points
                if entries:
                    steps, values = zip(*((entry["step"], entry[column]) for entry in entries), strict=True)
                    axes.plot(steps, values, seen, color=PALETTE[number], label=label)
        axes.set_title(panel)
        axes.set_xlabel("step")
        axes.spines[["top", "right"]].set_visible(False)
        if len(axes.lines) > 1:
            axes.legend(framealpha=0.7, edgecolor="none", fontsize="small")
    output.write_bytes(saved(figure, dpi=100))
