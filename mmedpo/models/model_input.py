"""What a vision-language model sees of an image: how large it is there, and its pixels as the processor makes them."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


OVERVIEW_FIRST = "image_grid_pinpoints"  # of LLaVA-NeXT: the whole image comes before its tiles, elsewhere after them


def longer_side(processor: Any) -> int | None:
    """Pixels of a large square image's side where a model sees it whole; None where the processor does not say.

    Args:
        processor: an image processor of transformers. Those that cut images into tiles show the whole image in one
            tile too, whose side it is; with a budget of pixels (Qwen-VL) it is the side of the largest square.
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
    """The whole RGB image as a model sees it, scaled, cropped or padded: float H x W x 3 of 0 .. 255.

    Raises:
        InputError: as `views`.
    """
    return views(processor, image)[0 if hasattr(processor, OVERVIEW_FIRST) else -1]


def views(processor: Any, image: Image) -> list[np.ndarray]:
    """All pictures that a model gets of an RGB image, tiles too, in the processor's order: float H x W x 3 of 0 .. 255.

    Where an image is padded after it was normalised, the padding is grey.

    Raises:
        InputError: they are not laid out as pictures, or as Qwen-VL's patches.
    """
    made = processor(images=[image], return_tensors="np")
    values = np.asarray(made["pixel_values"], dtype=np.float64)
    if "image_grid_thw" in made:  # patches in blocks of merge x merge, each with all its frames
        _, rows, columns = (int(side) for side in made["image_grid_thw"][0])
        merge, patch = processor.merge_size, processor.patch_size
        blocks = values.reshape(rows // merge, columns // merge, merge, merge, 3, -1, patch, patch)[..., 0, :, :]
        values = blocks.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * patch, columns * patch)
    if values.ndim < 3 or values.shape[-3] != 3:
        raise InputError(
            f"{type(processor).__name__}: its pixel input of shape {values.shape} is laid out in an unknown way. Leave "
            "--model out to see images at --noise-pixels."
        )
    pictures = values.reshape(-1, *values.shape[-3:]).transpose(0, 2, 3, 1)
    if processor.do_normalize:
        pictures = pictures * processor.image_std + processor.image_mean
    return list(pictures * 255)


def correlation(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Pearson's correlation of two pictures H x W x C at the pixels of a bool mask H x W: the mean of the channels'.

    NaN where a channel is flat, or the mask holds fewer than 2 pixels.
    """
    if np.count_nonzero(mask) < 2:
        return float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = [picture[mask] - picture[mask].mean(axis=0) for picture in (before, after)]
        products = (inside[0] * inside[1]).sum(axis=0)
        return float(np.mean(products / np.sqrt((inside[0] ** 2).sum(axis=0) * (inside[1] ** 2).sum(axis=0))))
