"""Where the lesion is: boxes that come with the data, a detection model, or an offline stand-in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmedpo.errors import InputError
from mmedpo.models import open_rgb
from mmedpo.sources import Box, Sample

FORMS = "boxes (from the data), detector:HUB-ID, standin:centre"


class Localizer(Protocol):
    """Finds the lesion that a question is about. `name` and `query` are recorded with every pair."""

    name: str
    query: str | None  # the text the tool was asked for, where it takes one

    def locate(self, samples: Sequence[Sample]) -> list[list[Box]]:
        """Boxes in pixels of the original image, with a confidence in [0, 1] each; empty where nothing is found."""


def open_localizer(spec: str, query: str = "disease", threshold: float = 0.1) -> Localizer:
    """The localizer that `spec` names (see `FORMS`). Raises InputError for any other spec."""
    kind, _, name = spec.partition(":")
    if spec == "boxes":
        return GivenBoxes()
    if kind == "detector" and name:
        return Detector(name, query, threshold)
    if spec == CentreStandIn.name:
        return CentreStandIn()
    raise InputError(f"The localizer {spec!r} is unknown; use one of: {FORMS}.")


class GivenBoxes:
    """The boxes recorded in the source."""

    name = "boxes"
    query: str | None = None

    def locate(self, samples: Sequence[Sample]) -> list[list[Box]]:
        return [list(sample.boxes) for sample in samples]


class Detector:
    """A detection model of the Hub through transformers' pipelines.

    Zero-shot detectors are asked for `query`; the others report the labels they were trained on. Detections
    below `threshold` (confidence in [0, 1]) are left out.
    """

    def __init__(self, model: str, query: str, threshold: float) -> None:
        from transformers import (
            AutoConfig,
            AutoModelForObjectDetection,
            AutoModelForZeroShotObjectDetection,
            pipeline,
        )

        self.name, self.threshold = f"detector:{model}", threshold
        try:
            config = AutoConfig.from_pretrained(model)
            zero_shot = type(config) in AutoModelForZeroShotObjectDetection._model_mapping
            if not zero_shot and type(config) not in AutoModelForObjectDetection._model_mapping:
                raise InputError(f"{model!r} is a {config.model_type!r} model, not a detector: it gives no boxes.")
            self.query = query if zero_shot else None
            task: Any = "zero-shot-object-detection" if zero_shot else "object-detection"
            self.pipeline = pipeline(task, model=model)
        except InputError:
            raise
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"The detector {model!r} cannot be loaded: {str(error).splitlines()[0]}") from error

    def locate(self, samples: Sequence[Sample]) -> list[list[Box]]:
        return [self._detect(sample) for sample in samples]

    def _detect(self, sample: Sample) -> list[Box]:
        image = open_rgb(sample.image)
        extra = {} if self.query is None else {"candidate_labels": [self.query]}
        found = self.pipeline(image, threshold=self.threshold, **extra)
        return [_box(entry["label"], entry["box"], entry["score"]) for entry in found]


def _box(label: str, corners: dict[str, float], score: float) -> Box:
    x, y = corners["xmin"], corners["ymin"]
    return Box(label, x, y, corners["xmax"] - x, corners["ymax"] - y, float(score))


class CentreStandIn:
    """Offline stand-in, not a medical tool: the middle half of the width and height, whatever is there."""

    name = "standin:centre"
    query: str | None = None

    def locate(self, samples: Sequence[Sample]) -> list[list[Box]]:
        sizes = [open_rgb(sample.image).size for sample in samples]
        return [[Box("centre", width / 4, height / 4, width / 2, height / 2, 0.5)] for width, height in sizes]
