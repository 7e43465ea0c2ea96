"""Samples whose images have burnt-in text blacked out, before any step sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from mmedpo.data import burnt_text, images
from mmedpo.data.samples import Box, Sample
from mmedpo.runs import writable

Found = list[list[Any]]  # text in an image, as it is recorded: the fields of `Box` for each line


class Masker:
    """Replace images that carry text with masked copies; splits and comparisons keep the source's own pixels.

    Args:
        folder: of the copies, files that every step opens like the source's own.
        finder: of text.
    """

    def __init__(self, folder: Path, finder: burnt_text.Finder) -> None:
        self.folder, self.finder = folder, finder

    def find(self, sample: Sample) -> Found:
        return [list(astuple(box)) for box in self.finder(sample.images[0].file, sample.image_digest)]

    def __call__(self, sample: Sample) -> Sample | None:
        """Return the sample with its masked image, itself if there is nothing to mask, None if nothing else is left."""
        return masked(sample, self.find(sample), self.folder)


def masked(sample: Sample, found: Found, folder: Path) -> Sample | None:
    """Return what a `Masker` returns, where the text is known; a masked image that `folder` has is not made again."""
    boxes = burnt_text.masked(_boxes(found))
    if not boxes:
        return sample
    file = folder / sample.image_digest / f"{sample.images[0].file.stem}.png"
    if not file.exists():
        pixels = burnt_text.blacked_out(images.pixels(sample.images[0].file), boxes)
        if pixels.min() == pixels.max():
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        writable.write_whole(file, images.png(pixels, file.stem)["bytes"])
    return replace(sample, images=(replace(sample.images[0], file=file),))


def record(samples: Iterable[tuple[Sample, Found]]) -> dict[str, Any]:
    """Return the "burnt_text" of a manifest, about the images of samples and the text found in them (docs/files.md)."""
    lesions: dict[str, set[Box]] = {}
    found: dict[str, tuple[Box, ...]] = {}
    for sample, text in samples:
        found[sample.image_digest] = _boxes(text)
        lesions.setdefault(sample.image_digest, set()).update(sample.boxes)
    black = {image: burnt_text.masked(boxes) for image, boxes in found.items()}
    return {
        **burnt_text.counts(found.values()), "masked": True,
        "masked_images": sum(map(bool, black.values())), "masked_boxes": sum(map(len, black.values())),
        "lesions_under_text": sum(
            any(burnt_text.overlap(lesion, text) for text in black[image])
            for image, boxes in lesions.items() for lesion in boxes
        ),
    }  # fmt: skip


def _boxes(found: Sequence[Sequence[Any]]) -> tuple[Box, ...]:
    return tuple(Box(*values) for values in found)
