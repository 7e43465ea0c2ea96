"""Noise in the lesions that a source marks, for evaluations of a source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmedpo.curation.localize import MOST_COVERAGE, Region, open_localizer
from mmedpo.curation.noise import Noise
from mmedpo.curation.noiser import Noiser
from mmedpo.data.samples import Sample


@dataclass(frozen=True)
class MarkedNoise:
    """Noise in the lesions that a source marks, as `curate` makes it by default."""

    seed: int

    @cached_property
    def _noiser(self) -> Noiser:
        return Noiser(Noise(), self.seed)

    def __call__(self, sample: Sample) -> list[Any] | None:
        """Return the images, those with a lesion noised as PNG, {"bytes", "path"}; None if none marks a usable one."""
        made = self._noiser.each(sample, [*map(_marked, sample.each())])
        shown = [file if one is None else one[0] for file, one in zip(sample.files, made, strict=True)]
        return shown if any(made) else None

    def record(self) -> dict[str, Any]:
        return Noise().record() | {"max_coverage": MOST_COVERAGE}


def _marked(sample: Sample) -> Region:
    """Return the lesion that a source marks in a sample's one image."""
    (image,) = sample.images
    marks = {"boxes": image.boxes, "masks": image.masks, "heatmap": image.heatmap}
    named = next((name for name, marked in marks.items() if marked), "none")
    return open_localizer(named, max_coverage=MOST_COVERAGE).locate(sample)[0]
