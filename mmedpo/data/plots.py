"""Palette of all pictures, boxes drawn on images, and figures as bytes (matplotlib)."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#9a5b86", "#8a6d00", "#333333")
DARK, GREY, LIGHT = PALETTE[-1], "#7a7a7a", "#b0b0b0"
ON_HEAT = "#56b4e9"  # stands out on the colours of a heat map
_ONE_THREAD = threading.RLock()


@contextmanager
def plot_settings(settings: dict[Any, Any]) -> Iterator[None]:
    """Draw with settings of matplotlib, which are the process's own: one thread at a time changes and restores them."""
    from matplotlib import rc_context

    with _ONE_THREAD, rc_context(settings):
        yield


def outline(axes: Axes, boxes: Iterable[Any], colour: str, width: float = 1) -> None:
    """Draw the outlines of `samples.Box`es on an image."""
    from matplotlib.patches import Rectangle

    for box in boxes:
        place = Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor=colour, linewidth=width)
        axes.add_patch(place)


def saved(figure: Figure, form: str = "png", **options: Any) -> bytes:
    """Return a figure as a PNG or SVG file without time stamp; equal figures give equal bytes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # texts may use a script that the font lacks
        figure.savefig(file, format=form, metadata={"Software": None} if form == "png" else {"Date": None}, **options)
    return file.getvalue()
