"""Sheet of pictures to check before a curation.

Each row shows an image, its lesion mask, the corrupted image, and both images as the model sees them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.curation.localize import Localizer, Region
from mmedpo.curation.noise import Noise
from mmedpo.curation.noiser import Noiser
from mmedpo.data import images
from mmedpo.data.plots import PALETTE, outline, saved
from mmedpo.data.samples import Sample
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models import model_input
from mmedpo.runs import writable

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = 5
INSIDE = 240  # of 255; a scaled mask is above it inside
WIDTH = 2.6  # inches per picture
DOTS = 110  # per inch
TITLE = 46  # characters that fit above a picture


def sheet(
    samples: Iterable[Sample],
    localizer: Localizer,
    noise: Noise,
    seed: int,
    count: int,
    output: Path,
    processor: Any = None,
) -> dict[str, int]:
    """Write `output` (PNG) with one row for each of the first `count` images that have a region.

    Args:
        processor: the model's image processor, which gives the model's view; without one, images are shrunk to the
            noise's `pixels`.

    Returns:
        The number of images shown, and the number left out for each reason.

    Raises:
        InputError: no image has a region (the reasons are listed), `output` exists or cannot be written, or the
            processor's pixel layout is unknown.
    """
    writable.check(output)
    shown: dict[str, tuple[Sample, Region]] = {}  # key: image digest
    left_out: dict[str, str] = {}
    for sample in chain.from_iterable(map(Sample.each, samples)):
        if len(shown) == count:
            break
        if sample.image_digest in shown:
            continue
        (region,) = localizer.locate(sample)
        if region.reason and not noise.whole:
            left_out[sample.image_digest] = region.reason
        else:
            shown[sample.image_digest] = sample, region
            left_out.pop(sample.image_digest, None)
    reasons = Counter(left_out.values())
    if not shown:
        raise InputError(f"{localizer.name} found no region in {number_of(len(left_out), 'images')}: {dict(reasons)}.")
    drawn = _draw(list(shown.values()), noise, seed, processor)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        writable.write_whole(output, drawn)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror}.") from error
    return {"shown": len(shown), **reasons}


def _draw(shown: Sequence[tuple[Sample, Region]], noise: Noise, seed: int, processor: Any) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMNS * WIDTH, WIDTH * 1.2 * len(shown)), dpi=DOTS, layout="constrained")
    for axes, (sample, region) in zip(figure.subplots(len(shown), COLUMNS, squeeze=False), shown, strict=True):
        for place, (title, picture) in zip(axes, _row(sample, region, noise, seed, processor), strict=True):
            place.imshow(picture, cmap="gray", vmin=0, vmax=1 if picture.dtype == bool else 255)
            place.set_title(title, fontsize=7, parse_math=False)
            place.set(xticks=[], yticks=[])
        outline(axes[0], region.boxes, PALETTE[1])
    return saved(figure)


def _row(sample: Sample, region: Region, noise: Noise, seed: int, processor: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the titles and pictures of one image."""
    from PIL.Image import fromarray

    picture = images.open_rgb(sample.images[0].file)
    shape = picture.height, picture.width
    mask = np.ones(shape, bool) if noise.whole else region.pixels(*shape)
    png, coverage = Noiser(noise, seed)(sample, region)
    corrupted = images.open_rgb(png["bytes"])
    spoiled = f"{noise.method}, step {noise.step}" if noise.method == "diffusion" else noise.method
    yield f"{_shortened(sample.image_id[::-1])[::-1]}\n{_shortened(sample.question)}", np.asarray(picture)
    yield f"mask: {coverage:.1%} of the image\nconfidence {region.confidence:.2f}", mask
    yield f"{spoiled}\n{picture.width} x {picture.height} pixels", np.asarray(corrupted)
    before, after, inside = (
        _seen(image, noise, processor) for image in (picture, corrupted, fromarray(mask).convert("RGB"))
    )
    left = model_input.correlation(before, after, inside[..., 0] > INSIDE)
    size = f"{before.shape[1]} x {before.shape[0]} pixels"
    by = "as the model sees it" if processor else f"shrunk to {noise.pixels} pixels at most"
    yield f"{by}\n{size}", before.clip(0, 255).astype(np.uint8)
    said = "undefined" if np.isnan(left) else f"{left:.2f}"
    yield f"{by}, noised\ncorrelation in the mask: {said}", after.clip(0, 255).astype(np.uint8)


def _seen(image: Image, noise: Noise, processor: Any) -> np.ndarray:
    """Return the image as the model sees it, or shrunk: float H x W x 3 in 0 .. 255."""
    from PIL.Image import Resampling

    if processor is not None:
        return model_input.overview(processor, image)
    share = min(noise.pixels / max(image.size), 1)
    width, height = (max(round(side * share), 1) for side in image.size)
    return np.asarray(image.resize((width, height), Resampling.BICUBIC), dtype=float)


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"
