"""Samples whose images have burnt-in text blacked out, before any step sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from mmedpo.data import burnt_text, images
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.runs import writable

Found = list[list[Any]]  # text in an image: the fields of `Box` for each line
Recorded = Found | dict[str, list[Found]]  # text in a sample's image, or in its "images"


class Masker:
    """Replace images that carry text with masked copies; splits and comparisons keep the source's own pixels.

    Args:
        folder: of the copies, files that every step opens like the source's own.
        finder: of text.
    """

    def __init__(self, folder: Path, finder: burnt_text.Finder) -> None:
        self.folder, self.finder = folder, finder

    def find(self, sample: Sample) -> Recorded:
        found = [[list(astuple(box)) for box in self.finder(one.file, one.digest)] for one in sample.images]
        return found[0] if len(found) == 1 else {"images": found}

    def __call__(self, sample: Sample) -> Sample | None:
        """Return the sample with masked images, itself if there is nothing to mask, None if one shows nothing else."""
        return masked(sample, self.find(sample), self.folder)


def masked(sample: Sample, recorded: Recorded, folder: Path) -> Sample | None:
    """Return what a `Masker` returns, where the text is known; a masked image that `folder` has is not made again."""
    pairs = zip(sample.images, _by_image(recorded), strict=True)
    shown = [_masked(image, burnt_text.masked(boxes), folder) for image, boxes in pairs]
    return None if None in shown else replace(sample, images=tuple(filter(None, shown)))


def _masked(image: SampleImage, boxes: Sequence[Box], folder: Path) -> SampleImage | None:
    if not boxes:
        return image
    file = folder / image.digest / f"{image.file.stem}.png"
    if not file.exists():
        pixels = burnt_text.blacked_out(images.pixels(image.file), boxes)
        if pixels.min() == pixels.max():
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        writable.write_whole(file, images.png(pixels, file.stem)["bytes"])
    return replace(image, file=file)


def record(samples: Iterable[tuple[Sample, Recorded]]) -> dict[str, Any]:
    """Return the "burnt_text" of a manifest, about the images of samples and the text found in them (docs/files.md)."""
    lesions: dict[str, set[Box]] = {}
    found: dict[str, tuple[Box, ...]] = {}
    for sample, text in samples:
        for image, boxes in zip(sample.images, _by_image(text), strict=True):
            found[image.digest] = boxes
            lesions.setdefault(image.digest, set()).update(image.boxes)
    black = {image: burnt_text.masked(boxes) for image, boxes in found.items()}
    return {
        **burnt_text.counts(found.values()), "masked": True,
        "masked_images": sum(map(bool, black.values())), "masked_boxes": sum(map(len, black.values())),
        "lesions_under_text": sum(
            any(burnt_text.overlap(lesion, text) for text in black[image])
            for image, boxes in lesions.items() for lesion in boxes
        ),
    }  # fmt: skip


def _by_image(recorded: Recorded) -> list[tuple[Box, ...]]:
    each = recorded["images"] if isinstance(recorded, dict) else [recorded]
    return [tuple(Box(*values) for values in found) for found in each]
