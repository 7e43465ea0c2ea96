"""Charts of the report page: SVG data URIs, with text as text elements."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmedpo.data.plots import GREY, LIGHT, PALETTE, plot_settings, saved
from mmedpo.report.curves import KINDS, kinds, logged
from mmedpo.report.wording import heading, label, ordered, outcome, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "osD^vP"
DASHES = ("-", "--", "-.", ":")
NAME_LENGTH = 28  # characters of a run's name in a legend; the page's text has the whole name
CURVES = {
    "loss": "Training loss",
    "rewards/margins": "Reward margin",
    **{key: f"Reward margin: {kind}" for key, kind in KINDS.items()},
    "rewards/accuracies": "Share of pairs ranked right",
}
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "mmedpo", "text.parse_math": False, "font.size": 10}


def forests(comparison: Mapping[str, Any]) -> list[str]:
    """Draw differences to the baseline with intervals: one chart of shares (points), one of other metrics."""
    runs = [name for name in comparison["runs"] if name != comparison["baseline"]]
    tested = [
        (name, {run: entries[run] for run in runs if outcome(entries.get(run, {}))})
        for name, entries in ((name, comparison["metrics"][name]) for name in ordered(comparison["metrics"]))
    ]
    charts = []
    for share in (True, False):
        rows = [(name, cells) for name, cells in tested if cells and label(name).share == share]
        if rows:
            titles = [titled(name, comparison) for name, _ in rows]
            charts.append(_forest(rows, titles, runs, 100 if share else 1, "points" if share else "difference"))
    return charts


def _forest(
    rows: Sequence[tuple[str, Mapping[str, Any]]], titles: Sequence[str], runs: Sequence[str], scale: int, unit: str
) -> str:
    """Draw a row for each metric and a mark for each run, filled where the corrected p is below 0.05."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=GREY, linewidth=1)
        for number, run in enumerate(runs):
            colour, named = PALETTE[number % len(PALETTE)], False
            for y, (_, cells) in enumerate(rows):
                if run not in cells:
                    continue
                cell = cells[run]
                at = y + min(0.22, 0.7 / len(runs)) * (number - (len(runs) - 1) / 2)
                ends = [[cell["difference"] - cell["difference_low"]], [cell["difference_high"] - cell["difference"]]]
                look: dict[str, Any] = {
                    "fmt": MARKERS[number % len(MARKERS)], "color": colour, "markersize": 5, "capsize": 2,
                    "markerfacecolor": "white" if outcome(cell) == "open" else colour,
                    "label": None if named else _short(run),
                }  # fmt: skip
                axes.errorbar([scale * cell["difference"]], [at], xerr=[[scale * max(x, 0)] for (x,) in ends], **look)
                named = True
        axes.set_yticks(range(len(rows)), [text.replace(": ", ":\n") for text in titles])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(unit)
        if len(runs) > 1:
            _legend(axes, runs)

    return _svg(draw, 1.1 + len(rows) * (0.4 + 0.12 * len(runs)))


def distributions(comparison: Mapping[str, Any]) -> list[dict[str, str]]:
    """Draw one histogram over images for each metric, a bar for each run."""
    charts = []
    for name in ordered(comparison.get("distributions", {})):
        found = comparison["distributions"][name]

        def draw(axes: Axes, found: Mapping[str, Any] = found, share: bool = label(name).share) -> None:
            edges, runs = found["edges"], list(found["counts"])
            width = (edges[1] - edges[0]) * 0.86 / len(runs)
            for number, run in enumerate(runs):
                left = [edge + (edges[1] - edges[0]) * 0.07 + width * number for edge in edges[:-1]]
                colour = PALETTE[(number - 1) % len(PALETTE)] if number else LIGHT
                axes.bar(left, found["counts"][run], width, align="edge", color=colour, label=_short(run))
            axes.set_ylabel("images")
            if share:
                axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            _legend(axes, runs)

        charts.append({"title": titled(name, comparison), "src": _svg(draw, 2.6)})
    return charts


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Draw one chart for each logged value, a line for each training.

    Margins are drawn by kind where there are several kinds of pairs.
    """
    charts, several = [], kinds(*histories.values())
    for key, title in CURVES.items():
        if key in KINDS and key not in several:
            continue
        lines = {name: logged(history, key) for name, history in histories.items()}
        lines = {name: entries for name, entries in lines.items() if entries}

        def draw(axes: Axes, key: str = key, lines: Mapping[str, Sequence[Mapping[str, Any]]] = lines) -> None:
            for number, (name, entries) in enumerate(lines.items()):
                look: dict[str, Any] = {
                    "color": PALETTE[number % len(PALETTE)],
                    "linestyle": DASHES[number % len(DASHES)],
                }
                steps = [entry.get("step", place) for place, entry in enumerate(entries)]
                axes.plot(steps, [entry[key] for entry in entries], label=_short(name), **look)
            axes.set_xlabel("step")
            axes.legend(frameon=False)

        if lines:
            charts.append({"title": title, "src": _svg(draw, 2.8)})
    return charts


def _legend(axes: Axes, runs: Sequence[str]) -> None:
    columns = 2 if max(len(heading(run)) for run in runs) <= NAME_LENGTH // 2 else 1
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=columns, frameon=False)


def _short(run: str) -> str:
    shown = heading(run)
    return shown if len(shown) <= NAME_LENGTH else shown[: NAME_LENGTH - 1] + "…"


def _svg(draw: Callable[[Axes], None], height: float) -> str:
    """Return a chart as a data URI; its text uses the reader's fonts."""
    from matplotlib.figure import Figure

    with plot_settings(STYLE):
        figure = Figure(figsize=(4.8, height), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        return "data:image/svg+xml;base64," + base64.b64encode(saved(figure, "svg")).decode()
