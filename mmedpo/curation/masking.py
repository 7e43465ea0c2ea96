"""Samples whose images have burnt-in text blacked out, before any step sees them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedpo.data import burnt_text, images
from mmedpo.data.samples import Box, Sample
from mmedpo.runs import writable

FOLDER = "masked"  # in a working folder: masked images, as files that every step opens like the source's own


class Masker:
    """Replace images that carry text with masked copies; splits and comparisons keep the source's own pixels.

    Args:
        folder: of the copies, for this process alone.
        finder: of text. Each image is read once, by whichever process needs it first.
    """

    def __init__(self, folder: Path, finder: burnt_text.Finder) -> None:
        self.folder, self.finder = folder, finder

    def __call__(self, sample: Sample) -> Sample | None:
        """Return the sample with its masked image, itself if there is nothing to mask, None if nothing else is left."""
        boxes = burnt_text.masked(self._found(sample))
        if not boxes:
            return sample
        file = self.folder / sample.image_digest / f"{sample.image.stem}.png"
        if not file.exists():
            pixels = burnt_text.blacked_out(images.pixels(sample.image), boxes)
            if pixels.min() == pixels.max():
                return None
            file.parent.mkdir(parents=True, exist_ok=True)
            writable.write_whole(file, images.png(pixels, file.stem)["bytes"])
        return replace(sample, image=file)

    def _found(self, sample: Sample) -> tuple[Box, ...]:
        return self.finder(sample.image, sample.image_digest)

    def record(self, samples: Iterable[Sample]) -> dict[str, Any]:
        """Return the "burnt_text" of a manifest, about the images of these samples (docs/files.md)."""
        lesions: dict[str, set[Box]] = {}
        found: dict[str, tuple[Box, ...]] = {}
        for sample in samples:
            found[sample.image_digest] = self._found(sample)
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
