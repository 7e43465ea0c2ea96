"""Images as a vision-language model sees them: their size at its input, and the processor's pixels."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


OVERVIEW_FIRST = "image_grid_pinpoints"  # LLaVA-NeXT puts the whole image before its tiles, others put it last


def longer_side(processor: Any) -> int | None:
    """Return the side in pixels of a large square image at the model's input; None if the processor does not say.

    Args:
        processor: an image processor of transformers. With tiles, it is the side of the tile that shows the whole
            image; with a pixel budget (Qwen-VL), the side of the largest square.
    """
    size = processor.size or {}
    if hasattr(processor, "merge_size"):
        return isqrt(size["longest_edge"])
    if getattr(processor, "do_center_crop", False):
        size = processor.crop_size
    size = getattr(processor, "max_image_size", size)
    if isinstance(size, int):
        return size
    sides = (size.get(name) for name in ("longest_edge", "height", "width", "shortest_edge"))
    return next(filter(None, sides), None)


def overview(processor: Any, image: Image) -> np.ndarray:
    """Return the whole RGB image as the model sees it: float H x W x 3 in 0 .. 255.

    Raises:
        InputError: as `views`.
    """
    return views(processor, image)[0 if hasattr(processor, OVERVIEW_FIRST) else -1]


def views(processor: Any, image: Image) -> list[np.ndarray]:
    """Return all pictures that a model gets of an RGB image, tiles included: float H x W x 3 in 0 .. 255.

    Padding that is added after normalisation appears grey.

    Raises:
        InputError: the pixel input has neither an image layout nor Qwen-VL's patches.
    """
    made = processor(images=[image], return_tensors="np")
    values = np.asarray(made["pixel_values"], dtype=np.float64)
    if "image_grid_thw" in made:  # Qwen-VL: patches in blocks of merge x merge, each with all its frames
        _, rows, columns = (int(side) for side in made["image_grid_thw"][0])
        merge, patch = processor.merge_size, processor.patch_size
        blocks = values.reshape(rows // merge, columns // merge, merge, merge, 3, -1, patch, patch)[..., 0, :, :]
        values = blocks.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
    if values.ndim < 3 or values.shape[-3] != 3:
        raise InputError(
            f"{type(processor).__name__}: its pixel input of shape {values.shape} has an unknown layout. Leave out "
            "--model to see images at --noise-pixels."
        )
    pictures = values.reshape(-1, *values.shape[-3:]).transpose(0, 2, 3, 1)
    if processor.do_normalize:
        pictures = pictures * processor.image_std + processor.image_mean
    return list(pictures * 255)


def correlation(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Return Pearson's correlation of two pictures (H x W x C) inside a bool mask (H x W), averaged over channels.

    NaN where a channel is constant, or the mask has fewer than 2 pixels.
    """
    if np.count_nonzero(mask) < 2:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = [picture[mask] - picture[mask].mean(axis=0) for picture in (before, after)]
        products = (inside[0] * inside[1]).sum(axis=0)
        return float(np.mean(products / np.sqrt((inside[0] ** 2).sum(axis=0) * (inside[1] ** 2).sum(axis=0))))
