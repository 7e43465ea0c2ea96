"""Attention of answers to the image before and after training, and its share inside lesion boxes.

The MMedPO paper shows such maps in figure 5. Attention is not an explanation: an answer need not rest on the tokens it
attends to. Averages over layers contain sinks, tokens that draw attention whatever they show. Compare the same model
before and after training; a single map says little.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from mmedpo.data.images import open_rgb
from mmedpo.data.samples import Box, Sample
from mmedpo.data.studies import together
from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import require_known
from mmedpo.evaluation.answering import identity
from mmedpo.evaluation.attention_picture import draw
from mmedpo.evaluation.attention_weights import answer_tokens, attending, layer_numbers, read
from mmedpo.evaluation.contents import QUESTIONS, keep
from mmedpo.evaluation.image_tokens import Grid, count, grids, overlaps, spread
from mmedpo.evaluation.metrics.base import Floats, mean
from mmedpo.evaluation.questions import of_sample
from mmedpo.evaluation.statistics import bootstrap, entry, tail
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs import formats
from mmedpo.runs.json_files import write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import versions

if TYPE_CHECKING:
    from PIL.Image import Image

ANSWERS = ("gold", "own")
RUNS = ("start", "adapter")
SHARES = ("on_image", "in_box", "lift")


@dataclass(frozen=True)
class Settings:
    """Settings of an attention reading.

    Attributes:
        answer: the answer whose tokens attend: "gold", or the model's "own" greedy one.
        layers: numbers and ranges as in "0,16-31", counted from the input; "all" takes every layer with attention.
        max_new_tokens: longest answer in tokens; a longer gold answer is truncated.

    Raises:
        InputError: an unknown answer, or layers that cannot be parsed.
    """

    answer: str = "gold"
    layers: str = "all"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        require_known("answer", self.answer, ANSWERS)
        layer_numbers(self.layers)


def boxed(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with lesion boxes, or all samples where none has a box.

    Raises:
        InputError: boxes outside of their image; all are listed.
    """
    chosen = [sample for sample in samples if sample.boxes]
    faults = [
        Fault(sample.id, "boxes", f"outside the image of {width} x {height} pixels; correct or remove it", repr(box))
        for sample in chosen
        for image in sample.images
        for width, height in [image.size]
        for box in image.boxes
        if box.x >= width or box.y >= height or box.x + box.width <= 0 or box.y + box.height <= 0
    ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'faults')} in the lesion boxes:", faults)
    return chosen or list(samples)


def lines(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return the lines of questions.jsonl, with lesion boxes."""
    return [
        {**of_sample(one).row(), "image_digest": one.image_digest, "boxes": [*map(asdict, one.boxes)]}
        for one in samples
    ]


def compare_attention(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    folder: Path,
    settings: Settings,
    record: dict[str, Any],
    seed: int = 0,
) -> dict[str, Any]:
    """Read each sample's attention without and with the model's adapter; write pictures and `attention.json`.

    Args:
        model: a model with an adapter; it is set to eager attention.
        samples: samples to read, one picture each.
        folder: working folder; samples in its ledger are skipped.
        settings: settings of the reading.
        record: further fields of attention.json (command, source, ...).
        seed: seed of the bootstrap.

    Returns:
        The content of attention.json (docs/files.md).

    Raises:
        InputError: a model of an unknown family, without eager attention or without the chosen layers.
    """
    layers = attending(model, settings.layers)
    digest = keep(lines(samples), folder / QUESTIONS)
    ledger = Ledger(folder / "attention.ledger")
    (folder / "pictures").mkdir(exist_ok=True)
    for number, sample in enumerate(track(samples, description="Reading attention")):
        if sample.id not in ledger:
            name = f"pictures/{number:05d}-{re.sub(r'[^A-Za-z0-9-]+', '_', sample.id)[:60]}.png"
            ledger.put(sample.id, _compare(model, sample, folder / name, settings, layers) | {"picture": name})
    rows = [ledger[sample.id] for sample in samples]
    result = {
        "format": formats.ATTENTION, **record, "questions_sha256": digest, "versions": versions(), "seed": seed,
        **identity(model), "settings": vars(settings), "samples": rows,
        "summary": summarise(rows, together(samples), seed),
    }  # fmt: skip
    write_json(folder / "attention.json", result)
    ledger.close()
    return result


def _compare(
    model: VisionLanguageModel, sample: Sample, picture: Path, settings: Settings, layers: Sequence[Any]
) -> dict[str, Any]:
    images = [*map(open_rgb, sample.files)]
    inputs = model.encode([(images, sample.prompt)])
    found = _grids(model, inputs, images, sample)
    visible = [seen(own, *image.size) for own, image in zip(found, images, strict=True)]
    forced = None
    if settings.answer == "gold":
        forced = answer_tokens(model.processor, sample.prompt, sample.answer, len(images))
    readings, heats, shares = {}, {}, {}
    for run, context in (("start", model.model.disable_adapter()), ("adapter", nullcontext())):
        with context:
            readings[run] = read(
                model, inputs, forced and forced[: settings.max_new_tokens], layers, settings.max_new_tokens
            )
        mass = readings[run].mass
        heats[run] = [spread(mass, own, *image.size) for own, image in zip(found, images, strict=True)]
        shares[run] = measure(mass, heats[run], visible, [image.boxes for image in sample.images])
        if readings[run].unanswered:
            shares[run] = dict.fromkeys(SHARES)
    answers = {run: reading.answer for run, reading in readings.items()}
    unanswered = {run: reading.unanswered for run, reading in readings.items() if reading.unanswered}
    said = answers | {run: f"nothing: {why}" for run, why in unanswered.items()}
    draw(picture, images, sample, heats, visible, shares, said)
    return {
        "id": sample.id, "image_id": sample.image_id, "image_digest": sample.image_digest,
        "question": sample.question, "answer": sample.answer,
        "answers": answers, **({"unanswered": unanswered} if unanswered else {}),
        "grids": [list(grid.tokens.shape) for own in found for grid in own],
        **{name: {run: shares[run][name] for run in RUNS} for name in SHARES},
    }  # fmt: skip


def _grids(model: VisionLanguageModel, inputs: Any, images: Sequence[Image], sample: Sample) -> list[list[Grid]]:
    """Return the grids of each image, whose tokens are numbered among those of all images in the prompt."""
    config, processor, begin, found = model.model.config, model.processor, 0, []
    for image in images:
        alone = inputs if len(images) == 1 else model.encode([(image, sample.prompt)])
        own = grids(config, processor, alone, image)
        found.append([replace(grid, tokens=grid.tokens + begin) for grid in own])
        begin += count(config, alone)
    if begin != count(config, inputs):
        raise InputError(
            f"{sample.id}: its {len(images)} images have {count(config, inputs)} image tokens together and {begin} one "
            f"by one, so that tokens of {type(processor).__name__} cannot be told apart. Ask about one image."
        )
    return found


def seen(grids: Sequence[Grid], width: int, height: int) -> np.ndarray:
    """Return a bool mask, height x width: True where an image token shows the pixel's centre.

    Pixels that the processor crops away are False.
    """
    inside = np.zeros((height, width), bool)
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    for left, top, right, bottom in (grid.edges for grid in grids):
        inside |= (top < y) & (y < bottom) & (left < x) & (x < right)
    return inside


def measure(
    mass: Floats, heats: Sequence[Floats], seen: Sequence[np.ndarray], boxes: Sequence[Sequence[Box]]
) -> dict[str, float | None]:
    """Return the shares of one answer's attention, over all images of the question.

    Args:
        mass: weight of each image token.
        heats: of each image height x width, `image_tokens.spread` of `mass`.
        seen: of each image bool, height x width, as `seen` returns it.
        boxes: lesion boxes of each image, in pixels.

    Returns:
        on_image: share of all attention on image tokens, [0, 1]; padding and ends of lines count.
        in_box: share of the attention in the images that lies in the boxes, [0, 1].
        lift: `in_box` divided by the boxes' share of the seen area; 1 for even attention.
        The last two are None where no box is seen.
    """
    marked = [cover(own, *heat.shape[::-1]) for own, heat in zip(boxes, heats, strict=True)]
    heat, there, marks = (np.concatenate([*map(np.ravel, each)]) for each in (heats, seen, marked))
    boxes_there = marks * there
    area = boxes_there.sum() / there.sum()
    shares: dict[str, float | None] = {"on_image": float(mass.sum()), "in_box": None, "lift": None}
    if area > 0 and heat.sum() > 0:
        in_box = (heat * boxes_there).sum() / heat.sum()
        shares |= {"in_box": float(in_box), "lift": float(in_box / area)}
    return shares


def cover(boxes: Sequence[Box], width: int, height: int) -> Floats:
    """Return the part of each pixel that lies in the boxes: height x width, in [0, 1]."""
    inside = np.zeros((height, width))
    for box in boxes:
        down = overlaps(np.array([box.y, box.y + box.height]), height)
        inside = np.maximum(inside, down.T @ overlaps(np.array([box.x, box.x + box.width]), width))
    return inside


def summarise(rows: Sequence[dict[str, Any]], images: Sequence[str], seed: int) -> dict[str, Any]:
    """Return mean shares over samples with 95 % intervals (bootstrap over `images`); differences are paired.

    Samples without an answer before or after training ("unanswered") have no shares. "in_box" and "lift" are means
    over the `n_boxed` samples with a seen box, and None where there are none.
    """
    result: dict[str, Any] = {
        "n": len(rows), "n_boxed": sum(None not in row["lift"].values() for row in rows),
        "images": len({*images}), "unanswered": sum("unanswered" in row for row in rows),
    }  # fmt: skip
    for name in SHARES:
        there = [place for place, row in enumerate(rows) if None not in row[name].values()]
        if not there:
            result[name] = None
            continue
        values = [[(rows[place][name][run], 1.0) for place in there] for run in RUNS]
        resampled = [images[place] for place in there]
        start, adapter = mean(bootstrap(values, resampled, seed))
        cut = tail(resampled)
        result[name] = {"start": entry(start, cut), "adapter": entry(adapter, cut, start)}
    return result


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Return the summary as a table, headings first: means over questions with 95 % intervals."""
    table = [["mean", "before", "after", "difference"]]
    for name in SHARES:
        if summary := result["summary"][name]:
            start, adapter = list(summary["start"].values()), list(summary["adapter"].values())
            table.append([name.replace("_", " "), _cell(start), _cell(adapter[:3]), _cell(adapter[3:], "+")])
    return table


def _cell(ends: Sequence[float], sign: str = "") -> str:
    value, low, high = (f"{end:{sign}.3f}" for end in ends)
    return f"{value} [{low}, {high}]"
