"""Noise in the lesions that a source marks, for evaluations of a source."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmedpo.curation.localize import MOST_COVERAGE, open_localizer
from mmedpo.curation.noise import Noise
from mmedpo.curation.rows import Noiser
from mmedpo.data.samples import Sample


@dataclass(frozen=True)
class MarkedNoise:
    """Noise in the lesions that a source marks, as `curate` makes it by default."""

    seed: int

    @cached_property
    def _noiser(self) -> Noiser:
        return Noiser(Noise(), self.seed)

    def __call__(self, sample: Sample) -> dict[str, Any] | None:
        """Return the noised image as PNG, {"bytes", "path"}, or None where the sample marks no usable lesion."""
        marks = {"boxes": sample.boxes, "masks": sample.images[0].masks, "heatmap": sample.images[0].heatmap}
        named = next((name for name, marked in marks.items() if marked), "none")
        region = open_localizer(named, max_coverage=MOST_COVERAGE).locate(sample)
        if region.reason:
            return None
        return self._noiser(sample, region)[0]

    def record(self) -> dict[str, Any]:
        return Noise().record() | {"max_coverage": MOST_COVERAGE}
