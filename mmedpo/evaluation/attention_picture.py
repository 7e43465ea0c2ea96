"""Picture of a sample's attention: the image with lesion boxes, and the maps before and after training."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmedpo.data.plots import ON_HEAT, outline, saved
from mmedpo.data.samples import Sample
from mmedpo.evaluation.metrics.base import Floats

if TYPE_CHECKING:
    from PIL.Image import Image

WIDTH = 3.4  # inches a panel
DOTS = 120  # an inch
TITLE, CAPTION = 100, 44  # characters a line
LINES = 3
BRIGHTEST = 99  # percentile of the pixels at the top of the scale; sinks would darken everything else
NAMES = {"start": "before", "adapter": "after"}
OPAQUE = 0.8  # opacity of the brightest colour


def draw(
    file: Path,
    images: Sequence[Image],
    sample: Sample,
    heats: Mapping[str, Sequence[Floats]],
    visible: Sequence[np.ndarray],
    shares: Mapping[str, Mapping[str, float | None]],
    answers: Mapping[str, str],
) -> None:
    """Write a PNG of three panels for each image: image, attention of "start" and of "adapter", on one colour scale.

    Colours show attention divided by its mean over all images: even attention is 1 everywhere.

    Args:
        file: PNG file to write.
        images: RGB images.
        sample: sample with its question, gold answer and lesion boxes.
        heats: maps of each run, height x width of each image.
        visible: of each image bool, height x width; False where the model does not see it.
        shares: `attention.measure` of each run.
        answers: text of each run whose tokens attend.
    """
    from matplotlib.figure import Figure

    high = [min(max(WIDTH * image.height / image.width, 1.2), 2 * WIDTH) for image in images]
    figure = Figure(figsize=(3 * WIDTH + 0.8, sum(high) + 1.6 * len(images)), dpi=DOTS, layout="compressed")
    places = figure.subplots(len(images), 3, squeeze=False, height_ratios=high)
    dense, most = _dense(heats, visible)
    for number, (image, there) in enumerate(zip(images, visible, strict=True)):
        last = number == len(images) - 1
        for place, run in zip(places[number], [None, *NAMES], strict=True):
            lies = {"extent": (0, image.width, image.height, 0), "interpolation": "nearest"}  # as boxes count pixels
            place.imshow(image, **lies)
            place.set(xticks=[], yticks=[])
            title = "image" if run is None else NAMES[run]
            title += f" {number + 1} of {len(images)}" if run is None and len(images) > 1 else ""
            caption = f"gold answer: {sample.answer}"
            if run is not None:
                heat = np.clip(dense[run][number], 0, most)
                shown = place.imshow(heat, cmap="inferno", vmin=0, vmax=most, alpha=OPAQUE * heat / most, **lies)
                if not there.all():
                    title += " (dark: not seen)"
                    place.imshow(np.ma.array(np.zeros(there.shape), mask=there), cmap="gray", alpha=0.7, **lies)
                caption = f"{_numbers(shares[run])}\nattending: {answers[run]}"
            place.set_title(title, fontsize=9)
            place.set_xlabel(_wrapped(caption, CAPTION) if last else "", fontsize=8, parse_math=False)
            outline(place, sample.images[number].boxes, ON_HEAT, 1.5)
    figure.colorbar(shown, ax=places, shrink=0.8, pad=0.01).set_label("attention, mean of the map = 1", fontsize=8)
    figure.suptitle(_wrapped(sample.question, TITLE), fontsize=10, parse_math=False)
    file.write_bytes(saved(figure, bbox_inches="tight", pad_inches=0.15))


def _dense(
    heats: Mapping[str, Sequence[Floats]], visible: Sequence[np.ndarray]
) -> tuple[dict[str, list[Floats]], float]:
    """Return the maps divided by their mean over what is seen of all images, and the top of their colour scale."""
    dense, tops = {}, []
    for run, maps in heats.items():
        inside = np.concatenate([heat[there] for heat, there in zip(maps, visible, strict=True)])
        mean = inside.mean() or 1
        dense[run] = [np.where(there, heat / mean, 0) for heat, there in zip(maps, visible, strict=True)]
        tops.append(float(np.percentile(inside / mean, BRIGHTEST)))
    return dense, max(tops) or 1.0


def _numbers(shares: Mapping[str, float | None]) -> str:
    if shares["on_image"] is None:
        return "no answer"
    on_image = f"on the image: {shares['on_image']:.1%} of all attention"
    if shares["in_box"] is None:
        return on_image
    return f"{on_image}\nin the box: {shares['in_box']:.1%} of that ({shares['lift']:.2f} x uniform)"


def _wrapped(text: str, width: int) -> str:
    """Wrap `text`, keeping at most `LINES` lines of each of its lines."""
    lines = [textwrap.wrap(line, width, max_lines=LINES, placeholder=" …") for line in text.split("\n")]
    return "\n".join("\n".join(wrapped) for wrapped in lines)
