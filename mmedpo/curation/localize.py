"""Localizers of lesions: boxes, masks or heat maps of the source, a detector, MedKLIP or an offline stand-in."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.curation.noise import box_mask, check_rule, heat_mask, pack_mask, unpack_mask
from mmedpo.curation.query import DISEASE, Query, letters, modality
from mmedpo.data import hub, trust
from mmedpo.data.images import open_rgb, read_heat
from mmedpo.data.samples import Box, Sample
from mmedpo.data.text import words
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMS = (
    "boxes, masks or heatmap (from the data), detector:HUB-ID, medklip:FOLDER, standin:centre, none (no visual pairs)"
)
NOT_FOUND = "no lesion was found"
MOST_COVERAGE = 0.6  # default of the largest share of the image that a lesion may cover
CACHED = 256  # images whose regions are cached, since one image has many questions
# Observations of MedKLIP that are lesions, unlike "normal", "heart" or "line".
LESIONS = frozenset(
    {"effusion", "opacity", "pneumothorax", "edema", "atelectasis", "consolidation", "pneumonia", "cardiomegaly"}
    | {"fracture", "nodule", "mass", "lesion", "infiltrate", "abscess", "tumor", "granuloma", "calcification"}
    | {"emphysema", "hernia"}
)
CHEST = frozenset({"chest", "thorax", "thoracic", "lung", "lungs", "pulmonary", "heart", "mediastinum", "mediastinal"})


@dataclass(frozen=True)
class Region:
    """The lesion of one image, or the reason why it has none.

    Attributes:
        boxes: in pixels of the upright image; for a mask, the box around it.
        mask: a 1-bit PNG of the image's size; None if the boxes are the region.
        confidence: of the tool, in [0, 1], that the region holds a lesion; becomes the pair's clinical relevance.
        query: the text that the tool was given; None if it takes none.
        reason: why there is no region (for counting), or None.
        coverage: share of the image's pixels, in [0, 1].
    """

    boxes: tuple[Box, ...] = ()
    mask: bytes | None = None
    confidence: float = 0.0
    query: str | None = None
    reason: str | None = None
    coverage: float = 0.0

    def pixels(self, height: int, width: int) -> np.ndarray:
        """Return the region as a bool array, H x W."""
        return box_mask(self.boxes, height, width) if self.mask is None else unpack_mask(self.mask)

    @property
    def area(self) -> Region:
        """The region by its pixels alone, without labels and other facts."""
        boxes = () if self.mask else (replace(box, label="", confidence=1.0) for box in self.boxes)
        return Region(tuple(boxes), self.mask)

    def record(self) -> dict[str, Any]:
        """Return the region as JSON; `Region.read` is the inverse."""
        return {**asdict(self), "mask": self.mask and base64.b64encode(self.mask).decode("ascii")}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Region:
        mask = record["mask"] and base64.b64decode(record["mask"])
        return cls(**{**record, "boxes": tuple(Box(**box) for box in record["boxes"]), "mask": mask})


def regions_record(regions: Sequence[Region]) -> dict[str, Any]:
    """Return the regions of a question's images as JSON; `read_regions` is the inverse."""
    if len(regions) == 1:
        return regions[0].record()
    return {"images": {str(place): region.record() for place, region in enumerate(regions)}}


def read_regions(record: Mapping[str, Any], images: int) -> list[Region]:
    """Return the regions of a question's images; those that the record lacks have no lesion."""
    found = record.get("images", {"0": record})
    places = map(str, range(images))
    return [Region.read(found[place]) if place in found else Region(reason=NOT_FOUND) for place in places]


@dataclass(frozen=True)
class Localizer:
    """Tool that finds the lesion that a question is about, in each of its images.

    Attributes:
        name: one of `FORMS`, recorded with every pair.
        find: returns the region of a sample about one image.
        query, mask_rule: as given; None if the tool takes none.
        max_coverage: largest share of the image that a lesion may cover, in [0, 1].
    """

    name: str
    find: Callable[[Sample], Region]
    query: str | None = None
    mask_rule: str | None = None
    max_coverage: float = 1.0

    def locate(self, sample: Sample) -> list[Region]:
        """Return the region of each image with its coverage, or with the reason why it cannot be used."""
        return [bounded(self.find(one), one, self.max_coverage) for one in sample.each()]


def open_localizer(
    spec: str, query: str = "disease", rule: str = "quantile:0.8", threshold: float = 0.1, max_coverage: float = 1.0
) -> Localizer:
    """Return the localizer that `spec` names (see `FORMS`).

    Args:
        query: text for tools that take one (`Query`).
        rule: turns a heat map into a mask (`noise.heat_mask`).
        threshold: drop detections below this confidence, in [0, 1].
        max_coverage: as for `Localizer`.

    Raises:
        InputError: the spec, query or rule is unknown, or a tool cannot be loaded.
    """
    asked = Query(query)
    check_rule(rule)
    kind, _, name = spec.partition(":")
    if spec in SIMPLE:
        return Localizer(spec, SIMPLE[spec], max_coverage=max_coverage)
    if spec == "heatmap":
        return Localizer(spec, partial(_recorded_heat, rule=rule), None, rule, max_coverage)
    if kind == "detector" and name:
        return Localizer(spec, Detector(name, asked, threshold).find, query, None, max_coverage)
    if kind == "medklip" and name:
        found = MedKLIPLocalizer(Path(name), asked, rule)
        return Localizer(f"medklip:{Path(name)}", found.find, query, rule, max_coverage)
    raise InputError(f"The localizer {spec!r} is unknown; use one of: {FORMS}.")


def bounded(region: Region, sample: Sample, most: float) -> Region:
    """Return the region with its coverage; add a reason if it is empty or covers more than `most` of the image."""
    if region.reason:
        return region
    if not region.boxes and region.mask is None:
        return replace(region, reason=NOT_FOUND)
    width, height = open_rgb(sample.images[0].file).size
    mask = region.pixels(height, width)
    if mask.shape != (height, width):
        reason = "the mask is not of the image's size"
    elif not mask.any():
        reason = "the lesion lies outside the image" if region.mask is None else NOT_FOUND
    elif mask.mean() > most:
        reason = f"the lesion covers more than {100 * most:g}% of the image"
    else:
        return replace(region, coverage=float(mask.mean()))
    return replace(region, reason=reason)


def _recorded_masks(sample: Sample) -> Region:
    """Return the sample's masks, joined; every pixel that is not black belongs to the lesion."""
    masks = [np.asarray(open_rgb(file)).any(axis=2) for file in sample.images[0].masks]
    if not masks:
        return Region(reason=NOT_FOUND)
    if len({mask.shape for mask in masks}) > 1:
        return Region(reason="the masks of the image differ in size")
    confidence = 1.0 if sample.images[0].confidence is None else sample.images[0].confidence
    return region_of(np.logical_or.reduce(masks), "mask", confidence)


def _recorded_heat(sample: Sample, rule: str) -> Region:
    """Return the hot part of the sample's heat map: a picture (black is cold) or a `.npy` array of two dimensions.

    The confidence is the table's, or else the hottest value if all values lie in [0, 1].
    """
    if sample.images[0].heatmap is None:
        return Region(reason=NOT_FOUND)
    heat = read_heat(sample.images[0].heatmap)
    confidence = sample.images[0].confidence
    if confidence is None and heat.max() <= 1:
        confidence = float(heat.max())
    if confidence is None:
        return Region(reason="the heat map has no confidence and is not scaled to [0, 1]")
    return _from_heat(heat, open_rgb(sample.images[0].file), rule, "heat", confidence)


def _centre(sample: Sample) -> Region:
    """Return the middle half of width and height: an offline stand-in, not a medical tool."""
    width, height = open_rgb(sample.images[0].file).size
    return _boxes([Box("centre", width / 4, height / 4, width / 2, height / 2, 0.5)])


SIMPLE: dict[str, Callable[[Sample], Region]] = {
    "boxes": lambda sample: _boxes(sample.boxes),
    "masks": _recorded_masks,
    "standin:centre": _centre,
    "none": lambda sample: Region(reason=NOT_FOUND, confidence=1.0),  # noise on the whole image needs no lesion
}


class Detector:
    """A detection model of the Hub through transformers' pipelines.

    Zero-shot detectors get the query, cut to as many words as they take; others report the labels they were trained on.
    Detections below `threshold` (confidence in [0, 1]) are dropped.

    Raises:
        InputError: the model is no detector, or its files are missing, incomplete or torn.
    """

    def __init__(self, model: str, query: Query, threshold: float) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForObjectDetection, AutoModelForZeroShotObjectDetection, pipeline

        from mmedpo.models.generation import require_numbers
        from mmedpo.models.vision_language import UNLOADABLE, whole

        self.threshold = threshold
        try:
            config = AutoConfig.from_pretrained(model, **trust.only_data())
            zero_shot = type(config) in AutoModelForZeroShotObjectDetection._model_mapping
            if not zero_shot and type(config) not in AutoModelForObjectDetection._model_mapping:
                raise InputError(f"{model!r} is a {config.model_type!r} model, not a detector. Give a detector.")
            self.query = query if zero_shot else None
            task: Any = "zero-shot-object-detection" if zero_shot else "object-detection"
            weights = whole(AutoModelForZeroShotObjectDetection if zero_shot else AutoModelForObjectDetection, model)
            self.pipeline = pipeline(
                task, model=weights, tokenizer=model if zero_shot else None, image_processor=model,
                device="cuda" if torch.cuda.is_available() else None, trust_remote_code=False,
            )  # fmt: skip
        except InputError:
            raise
        except UNLOADABLE as error:
            raise InputError(f"The detector {model!r} cannot be loaded: {hub.why_unread(error, model)}") from error

        def numbers(_: Any, __: Any, output: Any) -> None:  # NaN is above no threshold: it would be "no lesion"
            for scores in (output.logits, output.pred_boxes):
                require_numbers(scores, model)

        weights.register_forward_hook(numbers)
        self._cached = lru_cache(CACHED)(self._detect)

    def find(self, sample: Sample) -> Region:
        return self._cached(sample.images[0].file, self.query and self._fitting(self.query(sample)))

    def _fitting(self, query: str) -> str:
        """Return the first words of the query that fit the detector's text encoder (16 tokens in OWL-ViT)."""
        tokenizer = self.pipeline.tokenizer
        while len(tokenizer(query).input_ids) > tokenizer.model_max_length:
            query = query.rpartition(" ")[0] or query[:-1]
        return query

    def _detect(self, image: Path, query: str | None) -> Region:
        extra = {} if query is None else {"candidate_labels": [query]}
        try:
            found = self.pipeline(open_rgb(image), threshold=self.threshold, **extra)
        except InputError:
            raise
        except ValueError:  # image processors raise it if a side would scale to 0 pixels
            return Region(query=query, reason="the detector refused the image")
        return replace(_boxes([_box(entry["label"], entry["box"], entry["score"]) for entry in found]), query=query)


class MedKLIPLocalizer:
    """The paper's tool: MedKLIP's attention as heat map, its probability as confidence.

    It reads chest X-rays only and skips images that the table describes otherwise. The query becomes the first of
    `LESIONS` that it names, or else `DISEASE`.

    Args:
        folder: MedKLIP's checkpoint and file of descriptions. Its subfolder `text_encoder`, if present, replaces
            the Hub's Bio_ClinicalBERT.
    """

    def __init__(self, folder: Path, query: Query, rule: str) -> None:
        from mmedpo.curation.medklip import MedKLIP, text_encoder

        self.rule, self.query = rule, query
        self.model = MedKLIP(folder, text_encoder(folder))
        self._known = {name.casefold() for name in self.model.observations}
        unknown = [text for text in query.texts() if text.casefold() not in self._known]
        if unknown:
            known = ", ".join(self.model.observations)
            raise InputError(f"MedKLIP has no observation {', '.join(map(repr, unknown))}; it has {known}.")
        self._cached = lru_cache(CACHED)(self._observe)

    def find(self, sample: Sample) -> Region:
        if sample.modality and modality(sample) != "xray":
            return Region(reason=f"a chest X-ray tool does not read {sample.modality}")
        if sample.organ and not CHEST.intersection(letters(sample.organ)):
            return Region(reason=f"a chest X-ray tool does not read images of: {sample.organ}")
        return self._cached(sample.images[0].file, self._observation(sample))

    def _observe(self, file: Path, observation: str) -> Region:
        image = open_rgb(file)
        [(heat, confidence)] = self.model.observe([image], observation)
        return replace(_from_heat(heat, image, self.rule, observation, confidence), query=observation)

    def _observation(self, sample: Sample) -> str:
        asked = self.query(sample)
        if asked.casefold() in self._known:
            return asked
        return next((word for word in words(asked) if word in LESIONS & self._known), DISEASE)


def _boxes(boxes: Sequence[Box]) -> Region:
    if not boxes:
        return Region(reason=NOT_FOUND)
    return Region(tuple(boxes), confidence=max(box.confidence for box in boxes))


def _box(label: str, corners: Mapping[str, float], score: float) -> Box:
    x, y = corners["xmin"], corners["ymin"]
    return Box(label, x, y, corners["xmax"] - x, corners["ymax"] - y, float(score))


def _from_heat(heat: np.ndarray, image: Image, rule: str, label: str, confidence: float) -> Region:
    return region_of(heat_mask(heat, image.height, image.width, rule), label, confidence)


def region_of(mask: np.ndarray, label: str, confidence: float) -> Region:
    """Return a bool H x W mask as a region, with the box around it."""
    if not mask.any():
        return Region(reason=NOT_FOUND)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    box = Box(label, x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y, confidence)
    return Region((box,), pack_mask(mask), confidence)
