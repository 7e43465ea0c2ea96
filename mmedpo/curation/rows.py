"""Rows of the preference dataset, made from what the curation steps found."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedpo.curation.noise import box_mask, diffuse
from mmedpo.models import is_deep, open_rgb
from mmedpo.sources import Box, Sample
from mmedpo.workdir import Ledger

LARGEST_COVERAGE = 0.6  # share of the image; noise over more than this is not about a lesion


@dataclass(frozen=True)
class Reject:
    """A pair that was not made, and why; `reason` is for counting, `detail` says the case."""

    id: str
    dispreference: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Pair:
    """One row to be: a question, the kind of its dispreferred side, and its clinical relevance in [0, 1]."""

    sample: Sample
    dispreference: str
    relevance: float


@dataclass(frozen=True)
class Makers:
    """Who made the rejected sides, as every row's provenance records it."""

    target_model: str | None
    revision: str | None
    localizer: str
    query: str | None
    noise_step: int
    seed: int


def pair_up(
    samples: Sequence[Sample], disputed: Ledger, judged: Ledger, located: Ledger
) -> tuple[list[Pair], list[Reject]]:
    """The pairs each question gives (one of each kind at best), and a reason for each that it does not give."""
    pairs, rejects = [], []

    def add(sample: Sample, kind: str, score: float | None, reason: str | None, detail: str = "") -> None:
        if reason is None and score is not None:
            pairs.append(Pair(sample, kind, score))
        else:
            rejects.append(Reject(sample.id, kind, str(reason), detail))

    for sample in samples:
        found = disputed[sample.id]
        if "reason" in found:
            add(sample, "hallucinated_response", None, found["reason"], found["detail"])
        else:
            judged_ = judged[sample.id]
            add(sample, "hallucinated_response", judged_["score"], judged_["reason"])
        boxes = [Box(**box) for box in located[sample.id]]
        confidence = max((box.confidence for box in boxes), default=None)
        add(sample, "lesion_noise", confidence, _coverage_fault(sample, boxes))
    return pairs, rejects


def dataset_rows(
    pairs: Sequence[Pair],
    weights: Sequence[float],
    steps: Mapping[str, Ledger],
    makers: Makers,
    coverages: list[float],
) -> Iterator[dict[str, Any]]:
    """Yield the rows in order, noising images as they are reached; `coverages` collects the masks' shares."""
    for pair, weight in zip(pairs, weights, strict=True):
        sample = pair.sample
        row_id = f"{sample.source}/{sample.id}/{pair.dispreference}"
        row: dict[str, Any] = {
            "id": row_id,
            "images": [_original(sample.image)],
            "rejected_images": None,
            "prompt": _message("user", sample.question),
            "chosen": _message("assistant", sample.answer),
            "rejected": _message("assistant", sample.answer),
            "weight": weight,
            "clinical_relevance": pair.relevance,
            "dispreference": pair.dispreference,
            "task": sample.task,
            "source": sample.source,
            "license": sample.license,
        }
        provenance: dict[str, Any] = {
            "sample_id": sample.id, "image_id": sample.image_id, "patient_id": sample.patient_id, "seed": makers.seed,
        }  # fmt: skip
        if pair.dispreference == "hallucinated_response":
            found = steps["dispute"][sample.id]
            judged = steps["judge"][sample.id]
            sampled = found["made_by"] == "target model"
            row["rejected"] = _message("assistant", found["text"])
            provenance |= {
                "rejected_by": makers.target_model if sampled else found["made_by"],
                "revision": makers.revision if sampled else None,
                "prompt_version": found["prompt_version"],
                "candidates": steps["sample"][sample.id],
                "judgements": judged["judgements"],
                "agreed": judged["agreed"],
            }
        else:
            boxes = steps["locate"][sample.id]
            row["rejected_images"], coverage = _noised(sample, [Box(**box) for box in boxes], makers, row_id)
            coverages.append(coverage)
            provenance |= {
                "rejected_by": "diffusion", "localizer": makers.localizer, "query": makers.query, "boxes": boxes,
                "noise_step": makers.noise_step, "mask_coverage": coverage,
            }  # fmt: skip
        yield {**row, "provenance": {name: provenance.get(name) for name in _provenance_fields()}}


def _provenance_fields() -> list[str]:
    from mmedpo import schema

    return list(schema.FEATURES["provenance"])


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _coverage_fault(sample: Sample, boxes: Sequence[Box]) -> str | None:
    if not boxes:
        return "no lesion was found"
    image = open_rgb(sample.image)
    mask = box_mask(boxes, image.height, image.width)
    if not mask.any():
        return "the lesion lies outside the image"
    if mask.mean() > LARGEST_COVERAGE:
        return f"the lesion covers more than {LARGEST_COVERAGE:.0%} of the image"
    return None


def _noised(sample: Sample, boxes: Sequence[Box], makers: Makers, row_id: str) -> tuple[list[dict[str, Any]], float]:
    """The image with its lesion noised, as PNG, and the share of its pixels that the mask covers.

    Images without colour, however stored, get noise without colour: another kind would give the rejected side away.
    """
    pixels = np.asarray(open_rgb(sample.image))
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    mask = box_mask(boxes, *pixels.shape[:2])
    digest = hashlib.sha256(f"{makers.seed}/{row_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    noised = _png(Image.fromarray(diffuse(pixels, mask, makers.noise_step, rng)), f"{sample.image.stem}-noised.png")
    return [noised], float(mask.mean())


def _original(path: Path) -> dict[str, Any]:
    """The file as it is; more than 8 bits a channel become 8, as on the noised side, for few processors read them."""
    with Image.open(path) as opened:
        if is_deep(opened):
            return _png(open_rgb(path).convert("L"), f"{path.stem}.png")
    return {"bytes": path.read_bytes(), "path": path.name}


def _png(image: Image.Image, name: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": name}
