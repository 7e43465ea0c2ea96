"""A sheet of pictures to look at before a curation: each image, its lesion mask, and the corrupted image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo import images
from mmedpo.curation.localize import Localizer, Region, bounded
from mmedpo.curation.rows import Noise, noised
from mmedpo.errors import InputError
from mmedpo.sources import Sample

WIDTH = 2.6  # inches a picture
DOTS = 110  # an inch


def sheet(
    samples: Sequence[Sample], localizer: Localizer, noise: Noise, most: float, seed: int, count: int, output: Path
) -> dict[str, int]:
    """Write `output` (PNG): one row for each of the first `count` images with a region.

    Args:
        most: largest share of an image that a region may cover, [0, 1].

    Returns:
        How many images were looked at, and how often each reason to leave one out was met.

    Raises:
        InputError: no image has a region; the reasons are listed.
    """
    reasons: dict[str, int] = {}
    shown: list[tuple[Sample, Region]] = []
    for sample in {sample.image: sample for sample in samples}.values():
        region = bounded(localizer.locate([sample])[0], sample, most)
        said = region.reason if region.reason and not noise.whole else "shown"
        reasons[said] = reasons.get(said, 0) + 1
        if said == "shown":
            shown.append((sample, region))
        if len(shown) == count:
            break
    if not shown:
        raise InputError(f"{localizer.name} found a region in none of {sum(reasons.values())} images: {reasons}.")
    _draw(shown, noise, seed, output)
    return reasons


def _draw(shown: Sequence[tuple[Sample, Region]], noise: Noise, seed: int, output: Path) -> None:
    from matplotlib.figure import Figure
    from PIL import Image as pillow

    figure = Figure(figsize=(3 * WIDTH, WIDTH * 1.15 * len(shown)), dpi=DOTS, layout="constrained")
    for axes, (sample, region) in zip(figure.subplots(len(shown), 3, squeeze=False), shown, strict=True):
        picture = images.open_rgb(sample.image)
        mask = np.zeros((picture.height, picture.width), bool) if region.reason else region.pixels(*picture.size[::-1])
        png, coverage = noised(sample, region, noise, seed, sample.id)
        corrupted = pillow.open(io.BytesIO(png["bytes"]))
        confidence = f"{noise.method}, confidence {region.confidence:.2f}"
        titles = (_shortened(sample.image_id), f"mask, {coverage:.1%}", confidence)
        for place, title, pixels in zip(axes, titles, (picture, mask, corrupted), strict=True):
            place.imshow(pixels, cmap="gray")
            place.set_title(title, fontsize=7)
            place.set_axis_off()
        _outline(axes[0], region)
    figure.savefig(output, format="png")


def _outline(place: Any, region: Region) -> None:
    from matplotlib.patches import Rectangle

    for box in region.boxes:
        place.add_patch(Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor="#d55e00", linewidth=1))


def _shortened(name: str) -> str:
    return name if len(name) <= 34 else f"…{name[-33:]}"
