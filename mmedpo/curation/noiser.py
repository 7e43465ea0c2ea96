"""Noised images of a question, made as `noise.corrupt` does and shared by questions about one image and region."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise, corrupt, generator, name_of
from mmedpo.data import images
from mmedpo.data.samples import Sample

KEPT = 32  # images in memory


def row_id(sample: Sample, dispreference: str) -> str:
    """Return the stable and unique id of a row."""
    return f"{sample.source}/{sample.id}/{dispreference}"


def noised_shares(noise: Noise, regions: Sequence[Region]) -> list[float]:
    """Return the mask's share of each image that is noised, as the regions say."""
    chosen = noise.noised([not region.reason for region in regions])
    noised = (region for region, on in zip(regions, chosen, strict=True) if on)
    return [1.0 if noise.whole or region.reason else region.coverage for region in noised]


class Noiser:
    """Maker of noised images. With noise per image, the last `KEPT` are cached for further questions about them.

    Images without colour, however stored, get noise without colour; coloured noise would give the rejected side away.

    Args:
        read: returns an image from its file, such as `images.embedded` to decode what is stored once.
    """

    def __init__(self, noise: Noise, seed: int, read: Callable[[Path], images.Source] = lambda file: file) -> None:
        self.noise, self.seed, self.read = noise, seed, read
        self.shared = lru_cache(KEPT)(self.noised)

    def each(self, sample: Sample, regions: Sequence[Region]) -> list[tuple[dict[str, Any], float] | None]:
        """Return the corrupted image as PNG, {"bytes", "path"}, and the mask's share of its pixels, or None for an
        image that is not noised.
        """
        chosen = self.noise.noised([not region.reason for region in regions])
        return [self(sample, region, place) if chosen[place] else None for place, region in enumerate(regions)]

    def __call__(self, sample: Sample, region: Region, place: int = 0) -> tuple[dict[str, Any], float]:
        """Return one of a sample's images, corrupted, as `each` does."""
        area = Region() if self.noise.whole or region.reason else region.area
        if self.noise.per == "row":
            name = row_id(sample, self.noise.dispreference) + (f"/{place}" if place else "")
            return self.noised(sample.files[place], area, name)
        return self.shared(sample.files[place], area)

    def noised(self, image: Path, region: Region, row: str = "") -> tuple[dict[str, Any], float]:
        noise, pixels = self.noise, images.pixels(self.read(image))
        mask = mask_of(pixels, region, noise)
        rng = generator(self.seed, row or name_of(pixels, mask))
        made = corrupt(pixels, mask, noise.method, rng, noise.step, noise.edge, noise.pixels)
        return images.png(made, f"{image.stem}-noised", images.STORED_LEVEL), float(mask.mean())


def mask_of(pixels: np.ndarray, region: Region, noise: Noise) -> np.ndarray:
    """Return the mask of an image's region, all of it for a region without boxes and mask."""
    height, width = pixels.shape[:2]
    whole = noise.whole or not (region.boxes or region.mask)
    return np.ones((height, width), dtype=bool) if whole else region.pixels(height, width)
