"""A sheet of pictures to look at before a curation: each image, its lesion mask, and the corrupted image."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo import images, writable
from mmedpo.curation.localize import Localizer, Region, bounded
from mmedpo.curation.rows import Noise, noised, row_id
from mmedpo.errors import InputError
from mmedpo.samples import Sample

WIDTH = 2.6  # inches a picture
DOTS = 110  # an inch
TITLE = 46  # characters that fit above a picture


def sheet(
    samples: Sequence[Sample], localizer: Localizer, noise: Noise, most: float, seed: int, count: int, output: Path
) -> dict[str, int]:
    """Write `output` (PNG): one row for each of the first `count` images with a region for one of their questions.

    Args:
        most: largest share of an image that a region may cover, [0, 1].

    Returns:
        How many images are shown, and how many were left out for each reason.

    Raises:
        InputError: no image has a region (the reasons are listed), or `output` exists or cannot be written.
    """
    writable.check(output)
    shown: dict[str, tuple[Sample, Region]] = {}  # by the digest of the image
    left_out: dict[str, str] = {}
    for sample in samples:
        if len(shown) == count:
            break
        if sample.image_digest in shown:
            continue
        region = bounded(localizer.locate([sample])[0], sample, most)
        if region.reason and not noise.whole:
            left_out[sample.image_digest] = region.reason
        else:
            shown[sample.image_digest] = sample, region
            left_out.pop(sample.image_digest, None)
    reasons = Counter(left_out.values())
    if not shown:
        raise InputError(f"{localizer.name} found a region in none of {len(left_out)} images: {dict(reasons)}.")
    drawn = _draw(list(shown.values()), noise, seed)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_bytes(drawn)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}.") from error
    return {"shown": len(shown), **reasons}


def _draw(shown: Sequence[tuple[Sample, Region]], noise: Noise, seed: int) -> bytes:
    from matplotlib.figure import Figure
    from PIL import Image as pillow

    figure = Figure(figsize=(3 * WIDTH, WIDTH * 1.2 * len(shown)), dpi=DOTS, layout="constrained")
    spoiled = f"{noise.method}, step {noise.step}" if noise.method == "diffusion" else noise.method
    for axes, (sample, region) in zip(figure.subplots(len(shown), 3, squeeze=False), shown, strict=True):
        picture = images.open_rgb(sample.image)
        shape = picture.height, picture.width
        mask = np.ones(shape, bool) if noise.whole else region.pixels(*shape)
        png, coverage = noised(sample, region, noise, seed, row_id(sample, noise.dispreference))
        corrupted = pillow.open(io.BytesIO(png["bytes"]))
        titles = (
            f"{_shortened(sample.image_id[::-1])[::-1]}\n{_shortened(sample.question)}",
            f"mask: {coverage:.1%} of the image\nconfidence {region.confidence:.2f}",
            spoiled,
        )
        for place, title, pixels in zip(axes, titles, (picture, mask, corrupted), strict=True):
            place.imshow(pixels, cmap="gray", vmin=0, vmax=1 if pixels is mask else 255)
            place.set_title(title, fontsize=7, parse_math=False)
            place.set(xticks=[], yticks=[])
        _outline(axes[0], region)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a question in a script that the font does not have
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _outline(place: Any, region: Region) -> None:
    from matplotlib.patches import Rectangle

    for box in region.boxes:
        place.add_patch(Rectangle((box.x, box.y), box.width, box.height, fill=False, edgecolor="#d55e00", linewidth=1))


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"
