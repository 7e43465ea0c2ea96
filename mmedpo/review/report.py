"""Page about a review: agreement, judges against clinicians, what was rejected and why."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedpo.data.plots import DARK, GREY, PALETTE, saved
from mmedpo.report.audit import page
from mmedpo.review.agreement import Reviewed, summary
from mmedpo.review.pairs import Pairs
from mmedpo.runs.json_files import write_json
from mmedpo.runs.run_folder import short_folder

BINS = 5  # of judged relevance, in the picture


def write(pairs: Pairs, given: Reviewed, output: Path, command: str, seed: int = 0) -> dict[str, Any]:
    """Write `review.json` and `review.html`, a page that loads nothing, into a new folder.

    Returns:
        The content of `review.json`.

    Raises:
        InputError: the folder exists.
    """
    found = summary(pairs, given, seed) | {"command": command, "seed": seed}
    with short_folder(output) as folder:
        write_json(folder / "review.json", found)
        html = page("review.html.jinja", review=found, pictures=[*map(_picture, found["judges"])])
        (folder / "review.html").write_text(html, encoding="utf-8")
    return found


def _picture(judge: Mapping[str, Any]) -> str:
    """Return an SVG data URI: the reviewers' relevance against a judge's, with means of judged bins."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    judged, reviewed = zip(*judge["points"], strict=True)
    axes.scatter(judged, reviewed, s=14, alpha=0.35, color=PALETTE[0], edgecolors="none")
    bins = [min(int(score * BINS), BINS - 1) for score in judged]
    for number in sorted(set(bins)):
        own = [point for point, bin in zip(judge["points"], bins, strict=True) if bin == number]
        middle = [sum(values) / len(own) for values in zip(*own, strict=True)]
        axes.plot(*middle, marker="D", color=DARK, markersize=6)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="relevance by the judge", ylabel="relevance by reviewers")
    image = saved(figure, "svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(image).decode()}"
