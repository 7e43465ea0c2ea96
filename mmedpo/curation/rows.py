"""Rows of the preference dataset, built from the results of the curation steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from statistics import fmean
from typing import Any

from mmedpo import schema
from mmedpo.curation.localize import NOT_FOUND, Region, read_regions
from mmedpo.curation.noise import DRAWN, Noise
from mmedpo.curation.noiser import KEPT, Noiser, mask_of, row_id
from mmedpo.curation.relevance import NOT_WRONG, ROUNDING
from mmedpo.curation.sampling import texts
from mmedpo.curation.text_pairs import GOLD, TARGET_MODEL
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.runs.journal import Part

TEXT_PAIR = "hallucinated_response"
BELOW = "its relevance is below --min-relevance"


@dataclass(frozen=True)
class Reject:
    """A pair that was not made: `reason` is for counting, `detail` the case, `step` one of the pipeline's.

    `task` and `step` are empty for a row of the source that became no question.
    """

    id: str
    dispreference: str
    reason: str
    detail: str
    task: str = ""
    step: str = ""


@dataclass(frozen=True)
class Precomputed:
    """Precomputed results for a source, and rows of it that give no sample.

    Attributes:
        rejects: those rows.
        answers: by sample id the rejected response, {"text", "made_by"}, or {"reason", "detail"} if there is none.
        scores: by sample id the clinical relevance of the rejected response, in [0, 1].
        regions: by sample id the lesion (`localize.Region.record`).
        questions: ids of samples to use whatever split and limit are.
    """

    rejects: list[Reject] = field(default_factory=list)
    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    regions: dict[str, dict[str, Any]] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)

    def of(self, ids: Iterable[str]) -> Precomputed:
        """Return the results of these samples."""
        own = list(ids)
        return Precomputed(
            answers={id: self.answers[id] for id in own if id in self.answers},
            scores={id: self.scores[id] for id in own if id in self.scores},
            regions={id: self.regions[id] for id in own if id in self.regions},
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """One future row: a sample, the kind of pair, and clinical relevance in [0, 1].

    Relevance is None if no judge was asked. A text pair with a `healthy` region is a control: both
    sides see noise there.
    """

    sample: Sample
    dispreference: str
    relevance: float | None
    healthy: Region | None = None
    healthy_image: int = 0  # number of the image that it is in

    @property
    def id(self) -> str:
        """Stable and unique id of the row."""
        return row_id(self.sample, schema.CONTROL.strip("/") if self.healthy else self.dispreference)

    @property
    def is_noised(self) -> bool:
        return self.dispreference != TEXT_PAIR or self.healthy is not None

    def regions(self, located: Mapping[str, Any] | Part) -> list[Region]:
        """Return where its images are noised; `located` has records of lesions by sample id."""
        count = len(self.sample.images)
        if self.healthy is None:
            return read_regions(located[self.sample.id], count)
        elsewhere = Region(reason=NOT_FOUND)
        return [self.healthy if place == self.healthy_image else elsewhere for place in range(count)]


@dataclass(frozen=True)
class Makers:
    """Makers of the rejected sides, recorded in every row's provenance."""

    target_model: str | None
    revision: str | None
    localizer: str
    mask_rule: str | None
    noise: Noise | None
    seed: int
    chosen: bool = False  # rows say who made the chosen side
    several: bool = False  # some question of the dataset has several images


def pair_up(
    samples: Sequence[Sample],
    steps: Mapping[str, Part],
    noise: Noise | None,
    least: float = 0.0,
    symmetric: bool = False,
) -> Iterator[tuple[Pair | None, Reject | None]]:
    """Yield each sample's pairs, and a reject for each pair that cannot be made.

    A step without results was not run. Without `noise` there are no visual pairs. Pairs whose relevance is below
    `least` are rejects. With `symmetric` there are reversed pairs beside the others.
    """
    kinds = [] if noise is None else [noise, *([replace(noise, reversed=True)] if symmetric else [])]
    for sample in samples:
        disputed = steps["dispute"].get(sample.id)
        if disputed is not None:
            yield _least(least, *_text_pair(sample, disputed, steps["judge"]))
        for kind in kinds:
            judged = steps["judge"].get(sample.id) if kind.reversed else None
            regions = read_regions(steps["locate"][sample.id], len(sample.images))
            yield _least(least, *_visual_pair(sample, regions, disputed, judged, kind))


def _least(least: float, pair: Pair | None, reject: Reject | None) -> tuple[Pair | None, Reject | None]:
    if pair is None or pair.relevance is None or pair.relevance >= least - ROUNDING:
        return pair, reject
    step = "judge" if pair.dispreference == TEXT_PAIR else "locate"
    detail = f"relevance {pair.relevance:.3g}, at least {least:g} asked for"
    return None, _reject(pair.sample, pair.dispreference, BELOW, detail, step)


def _reject(sample: Sample, dispreference: str, reason: str, detail: str, step: str) -> Reject:
    return Reject(sample.id, dispreference, reason, detail, sample.task, step)


def _text_pair(sample: Sample, disputed: Mapping[str, Any], judged: Part) -> tuple[Pair | None, Reject | None]:
    if "reason" in disputed:
        return None, _reject(sample, TEXT_PAIR, disputed["reason"], disputed["detail"], "dispute")
    relevance = judged.get(sample.id)
    if relevance is None:  # no judges: a panel records every sample, scored or not
        return Pair(sample, TEXT_PAIR, None), None
    if relevance["score"] is None:
        return None, _reject(sample, TEXT_PAIR, relevance["reason"], _last_rationale(relevance), "judge")
    return Pair(sample, TEXT_PAIR, relevance["score"]), None


def _last_rationale(judged: Mapping[str, Any]) -> str:
    last = (judged.get("judgements") or [{}])[-1]
    return str(last.get("rationale", ""))


def _visual_pair(
    sample: Sample,
    regions: Sequence[Region],
    disputed: Mapping[str, Any] | None,
    judged: Mapping[str, Any] | None,
    noise: Noise,
) -> tuple[Pair | None, Reject | None]:
    kind = noise.dispreference
    chosen = noise.noised([not region.reason for region in regions])
    if not any(chosen):
        first = next((region for region in regions if region.reason != NOT_FOUND), regions[0])
        return None, _reject(sample, kind, str(first.reason), first.query or "", "locate")
    if noise.reversed and (disputed is None or "reason" in disputed):
        return None, _reject(sample, kind, "no wrong answer to prefer on the noised image", "", "dispute")
    if judged and judged.get("reason") == NOT_WRONG:  # neither side would be worse than the other
        return None, _reject(sample, kind, NOT_WRONG, _last_rationale(judged), "judge")
    noised = [(image, region) for image, region, on in zip(sample.files, regions, chosen, strict=True) if on]
    if noise.method == "black":
        shown = ((images.pixels(image), region) for image, region in noised)
        if not any(pixels[mask_of(pixels, region, noise)].any() for pixels, region in shown):
            return None, _reject(sample, kind, "the region is black already", "", "locate")
    return Pair(sample, kind, max(region.confidence for _, region in noised)), None


def dataset_rows(
    pairs: Iterable[tuple[Pair, float, Mapping[str, Part]]], makers: Makers, offered: bool
) -> Iterator[dict[str, Any]]:
    """Yield the rows in order; images are noised as they are reached.

    Args:
        pairs: each with its weight and the results of its block by step.
        offered: some pair of the dataset has options, so that all rows have the column.
    """
    fields = [*schema.FEATURES["provenance"], *(schema.CHOSEN if makers.chosen else ())]
    fields += schema.SEVERAL if makers.several else ()
    embedded = lru_cache(KEPT)(images.embedded)
    noiser = Noiser(makers.noise, makers.seed, embedded) if makers.noise else None
    for pair, weight, steps in pairs:
        sample = pair.sample
        row: dict[str, Any] = {
            "id": pair.id,
            "images": [*map(embedded, sample.files)],
            "rejected_images": None,
            "prompt": _message("user", sample.prompt),
            "chosen": _message("assistant", sample.answer),
            "rejected": _message("assistant", sample.answer),
            "weight": weight,
            "clinical_relevance": pair.relevance,
            "dispreference": pair.dispreference,
            "task": sample.task,
            **({"options": list(sample.options) or None} if offered else {}),
            "source": sample.source,
            "license": sample.license,
        }
        provenance = {
            "sample_id": sample.id, "image_id": sample.image_id, "patient_id": sample.patient_id, "seed": makers.seed,
        }  # fmt: skip
        if pair.dispreference in (TEXT_PAIR, *schema.REVERSED):
            provenance |= _set_rejected(row, sample, steps, makers)
        if pair.is_noised:
            assert noiser is not None  # else there is no visual pair
            provenance |= _set_noised(row, pair, steps, makers, noiser)
        yield {**row, "provenance": {name: provenance.get(name) for name in fields}}


def _set_rejected(row: dict[str, Any], sample: Sample, steps: Mapping[str, Part], makers: Makers) -> dict[str, Any]:
    """Set the rejected response of a row; return its provenance."""
    found, judged = steps["dispute"][sample.id], steps["judge"].get(sample.id) or {}
    sampled = found["made_by"] == TARGET_MODEL
    row["rejected"] = _message("assistant", found["text"])
    chosen = found.get("chosen") or {}
    if chosen:
        row["chosen"] = _message("assistant", chosen["text"])
    return {
        "gold": sample.answer,
        "chosen_by": makers.target_model if chosen.get("made_by") == TARGET_MODEL else chosen.get("made_by", GOLD),
        "chosen_prompt_version": chosen.get("prompt_version"),
        "chosen_changes": chosen.get("changes"),
        "chosen_score": chosen.get("score"),
        "rejected_score": chosen.get("rejected_score"),
        "rejected_by": makers.target_model if sampled else found["made_by"],
        "revision": makers.revision if sampled else None,
        "prompt_version": found.get("prompt_version"),
        "candidates": texts(steps["sample"].get(sample.id)),
        "judgements": judged.get("judgements"),
        "agreed": judged.get("agreed"),
    }


def _set_noised(
    row: dict[str, Any], pair: Pair, steps: Mapping[str, Part], makers: Makers, noiser: Noiser
) -> dict[str, Any]:
    """Set the noised images of a row, on both sides of reversed pairs and controls; return its provenance."""
    noise, regions = noiser.noise, pair.regions(steps["locate"])
    made = noiser.each(pair.sample, regions)
    shown = [own if found is None else found[0] for own, found in zip(row["images"], made, strict=True)]
    one_image = pair.healthy is not None or pair.dispreference in schema.REVERSED
    if pair.dispreference in schema.REVERSED:
        row["images"], row["chosen"], row["rejected"] = shown, row["rejected"], row["chosen"]
    elif one_image:
        row["images"] = shown
    else:
        row["rejected_images"] = shown
    marked = [(place, box) for place, found in enumerate(made) if found for box in regions[place].boxes]
    return {
        "noise": noise.method, "noise_step": noise.step if noise.method == "diffusion" else None,
        "noise_edge": noise.edge, "noise_pixels": noise.pixels if noise.method in DRAWN else None,
        "noise_per": noise.per,
        "mask_coverage": fmean(found[1] for found in made if found), "localizer": makers.localizer,
        "query": next((region.query for region in regions if region.query), None), "mask_rule": makers.mask_rule,
        "boxes": [asdict(box) for _, box in marked], "box_images": [place for place, _ in marked],
        **({} if one_image else {"rejected_by": noise.method}),
    }  # fmt: skip


def _message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]
