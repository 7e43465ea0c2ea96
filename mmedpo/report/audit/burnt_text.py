"""Text burnt into the images of a dataset, and noise over it, by which a model can tell the sides apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmedpo.data import burnt_text, images
from mmedpo.data.burnt_text import Finder
from mmedpo.data.samples import Box
from mmedpo.report.audit.read import Row
from mmedpo.report.data_uri import picture

SHOWN, LISTED = 24, 20  # pictures on the page, and texts of each kind
PICTURE_SIDE = 480  # pixels
MOST_NOISED = 0.1  # share of visual pairs whose noise covers text, above which the audit warns
SHORTCUT = (
    "Noise covers text in {:.0%} of the visual pairs: legible text alone tells their sides apart. Curate with "
    "--mask-text."
)


class Texts:
    """Text in the images of the chosen sides; counts for audit.json, pictures and likely names for the page alone.

    Args:
        finder: of text.
        restricted: count only, since pages get passed on.
    """

    def __init__(self, finder: Finder, restricted: bool = False) -> None:
        self.restricted = restricted
        self.pictures: list[dict[str, Any]] = []
        self.texts: dict[str, dict[str, None]] = {kind: {} for kind in burnt_text.PRIVATE}
        self._finder = finder
        self._found: dict[bytes, tuple[Box, ...]] = {}
        self._visual = self._noised = 0

    def add(self, given: Mapping[str, Any], row: Row) -> None:
        """Read the images of a row that no row before had; images that are outside the dataset or broken are left."""
        shown = given.get("images")
        if not isinstance(shown, list) or len(shown) != len(row.images):
            return
        for image, digest in zip(shown, row.images, strict=True):
            if digest not in self._found and isinstance(image, dict) and image.get("bytes"):
                self._read(image["bytes"], digest)
        rejected = given.get("rejected_images") or []
        if not row.same_images and len(shown) == len(rejected):
            self._visual += 1
            self._noised += any(
                self._differs(one, other, self._found.get(digest, ()))
                for one, other, digest in zip(shown, rejected, row.images, strict=True)
            )

    def _read(self, file: bytes, digest: bytes) -> None:
        try:
            boxes = self._finder(file, digest.hex())
        except images.UnusableImage:  # a fault of the row
            return
        self._found[digest] = boxes
        if self.restricted or not boxes:
            return
        if len(self.pictures) < SHOWN and (drawn := picture(file, [*map(_rectangle, boxes)], PICTURE_SIDE)):
            self.pictures.append(drawn)
        for box in boxes:
            listed = self.texts.get(burnt_text.kind(box.label))
            if listed is not None and len(listed) < LISTED:
                listed[box.label] = None

    def _differs(self, chosen: Mapping[str, Any], rejected: Mapping[str, Any], boxes: tuple[Box, ...]) -> bool:
        """Return True where the two images differ in a box of text."""
        if not boxes:
            return False
        try:
            one, other = (np.asarray(images.open_rgb(image)) for image in (chosen, rejected))
        except images.UnusableImage:
            return False
        differs = np.ones(one.shape[:2], bool) if one.shape != other.shape else (one != other).any(axis=2)
        return any(
            differs[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)].any() for box in boxes
        )

    def result(self) -> dict[str, Any]:
        """Return the "burnt_text" of audit.json: counts and no text, since it may be published."""
        share = self._noised / self._visual if self._visual else 0.0
        return {
            **burnt_text.counts(self._found.values()), "visual_pairs": self._visual, "noised_text": self._noised,
            "warning": SHORTCUT.format(share) if share > MOST_NOISED else None,
        }  # fmt: skip

    def listed(self) -> list[list[str]]:
        """Return (likely kind, text) of likely names, dates and identifiers; of restricted data none."""
        return [[f"likely {kind} in an image", text] for kind, texts in self.texts.items() for text in texts]


def _rectangle(box: Box) -> dict[str, float]:
    return {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
