"""`Sample`, one question about one image, and its reader from a row of a source's table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np

from mmedpo.data import credentialed, findings, options, placeholders
from mmedpo.data.columns import MISSING_ANSWER, form_faults, group_name, row_of
from mmedpo.data.files import Files, find_file, relative_name, spelling
from mmedpo.data.image_modes import WIDE_PIXEL, refuse_bombs
from mmedpo.data.images import open_rgb
from mmedpo.data.tables import FAULT, as_text, form_fault, is_missing, parsed, read_table
from mmedpo.data.text import folded, words
from mmedpo.errors import Fault, InputError
from mmedpo.schema import TASKS

ANSWER_TYPES = {"closed": "closed_vqa", "open": "open_vqa", "choice": "choice_vqa", **{task: task for task in TASKS}}


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels, origin top left. `confidence` is in [0, 1]; boxes drawn by a person have 1."""

    label: str
    x: float
    y: float
    width: float
    height: float
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class SampleImage:
    """One image of a sample, with the lesions marked in it."""

    file: Path
    name: str  # path in the source
    boxes: tuple[Box, ...] = ()
    masks: tuple[Path, ...] = ()  # pictures of the image's size, black outside lesions
    heatmap: Path | None = None  # a picture, or a .npy array of two dimensions
    confidence: float | None = None  # of the masks or the heat map, in [0, 1]
    digest: str = ""  # `images.digest`, set when the file is read
    size: tuple[int, int] = (0, 0)  # width and height in pixels, set when the file is read


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one image or several: the unit of curation and evaluation."""

    id: str
    images: tuple[SampleImage, ...]  # in the order in which they are shown
    question: str
    answer: str
    task: str
    patient_id: str | None
    split: str
    source: str
    license: str
    modality: str | None = None  # as in the table ("X-Ray", "CT", ...)
    organ: str | None = None
    question_type: str | None = None  # as in the table; may be a list ("PRES, ABN")
    options: tuple[str, ...] = ()  # of multiple choice; `answer` is one of them
    question_set: str | None = None  # of its image, right only together

    @property
    def image_id(self) -> str:
        """Return the name of the images in the source."""
        return self.images[0].name

    @property
    def image_digest(self) -> str:
        """Return the digest of the images."""
        return self.images[0].digest

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Return the boxes of all images."""
        return self.images[0].boxes

    @property
    def prompt(self) -> str:
        """Return the text that a model is asked."""
        return options.asked(self.question, self.options)


def read_heat(file: Path) -> np.ndarray:
    """Return a heat map, float64 h x w, 0 (cold) or more: a picture in [0, 1], or the values of a `.npy` array.

    Raises:
        InputError: the file cannot be read, or its array is not two-dimensional, finite and non-negative.
    """
    if file.suffix.lower() != ".npy":
        return np.asarray(open_rgb(file).convert("L")) / 255
    try:
        with file.open("rb") as opened:
            refuse_bombs(file.stat().st_size, 1)
            heat = np.lib.format.read_array(opened, allow_pickle=False)
        refuse_bombs(heat.size, WIDE_PIXEL)
    except Exception as error:  # NumPy raises many kinds on damaged files
        raise InputError(f"{file.name}: the array cannot be read ({error}); save it again with numpy.save.") from None
    if heat.ndim != 2 or not heat.size or heat.dtype.kind not in "buif":
        actual = f"this is {heat.dtype} of shape {heat.shape}"
        raise InputError(f"{file.name}: a heat map has 2 dimensions of real numbers; {actual}.")
    if not 0 <= heat.min() <= heat.max() < math.inf:
        raise InputError(f"{file.name}: a heat map has no NaN, no infinity and nothing below 0; correct it.")
    return heat.astype(np.float64)


def questions(table: Path, columns: dict[str, None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row by `COLUMNS`), and add the table's columns to `columns`, in its order."""
    for where, raw in read_table(table):
        columns.update(dict.fromkeys(name for name in raw if name not in (FAULT, None)))
        row = row_of(raw)
        if FAULT in raw:
            yield where, {**row, FAULT: raw[FAULT]}
            continue
        if row["question"] is None and row["labels"] is not None:
            yield from _finding_questions(where, row)
        else:
            yield where, row


def _finding_questions(where: str, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the questions about an image's boxed findings, or its fault."""
    boxes, box_fault = _boxes(row["boxes"])
    labels = parsed(row["labels"])
    labels = [labels] if isinstance(labels, str) else labels
    width = None if row["width"] is None else _number(row["width"])
    fault: Any = ("boxes", *box_fault) if box_fault else next(form_faults(row), None)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        fault = ("labels", "are a list of findings, or one text with | between them", repr(row["labels"]))
    elif width is not None and not 0 < width < math.inf:
        fault = ("width", "is that of the image, in pixels", repr(row["width"]))
    elif any(not box.label.strip() for box in boxes):
        fault = ("boxes", "each needs a label, its finding")
    elif row["image"] is None:
        fault = ("image", "is empty; every row needs the name of an image file")
    elif nothing := findings.fault(boxes, labels):
        fault = fault or ("labels", *nothing)
    if fault:
        yield where, {**row, FAULT: fault}
        return
    for changed in findings.ask(spelling(str(row["image"])), [asdict(box) for box in boxes], labels, width):
        yield f"{where} ({changed['id']})", {**row, **changed}


def read_sample(
    where: str, row: dict[str, Any], root: Path, images: Files, name: str, license: str
) -> tuple[Sample | None, list[Fault]]:
    """Return the sample of one row, or None and all faults of the row."""
    image = find_file(where, "image", row["image"], root, images)  # of faulty rows too: its folder may mark the source
    if FAULT in row:
        return None, [Fault(where, *row[FAULT])]
    if faults := [Fault(where, *found) for found in form_faults(row)]:
        return None, faults
    answer, question = (as_text(row[column]).strip() for column in ("answer", "question"))
    if row["image"] is None:
        image = Fault(where, "image", "is empty; every row needs the name of an image file")
    if isinstance(image, Fault):
        faults.append(image)
    if not question:
        faults.append(Fault(where, "question", "is empty; every row needs a question"))
    if not answer:
        faults.append(Fault(where, "answer", *_missing_answer(row.get(MISSING_ANSWER))))
    for column, text in (("question", question), ("answer", answer)):
        if held := placeholders.fault(text):
            faults.append(Fault(where, column, held))
    offered, answer, option_faults = options.of_row(row["options"], answer)
    faults += [Fault(where, *found) for found in option_faults]
    task = _task(row["task"], answer, offered)
    if task is None:
        faults.append(Fault(where, "task", "is unknown; use closed, open, choice or report", repr(row["task"])))
    elif not option_faults and (unfit := options.task_fault(task, offered)):
        faults.append(Fault(where, "task", unfit))
    boxes, box_fault = _boxes(row["boxes"])
    if box_fault:
        faults.append(Fault(where, "boxes", *box_fault))
    if not credentialed.is_answer(row["credentialed"]):
        faults.append(Fault(where, "credentialed", "is neither true nor false", repr(row["credentialed"])))
    masks, heatmap, confidence, region_faults = _regions(where, row, root, images)
    faults += region_faults
    if faults or isinstance(image, Fault) or task is None:
        return None, faults
    # `intern` stores a text that many rows share once.
    shown = SampleImage(image, intern(relative_name(root, image)), boxes, masks, heatmap, confidence)
    return Sample(
        id=as_text(row["id"]) or where, images=(shown,), question=question, answer=answer, task=task,
        patient_id=intern(group_name(row["patient_id"])) or None, split=intern(as_text(row["split"]).strip()),
        source=_line(row["source"]) or intern(name), license=_line(row["license"]) or intern(license), options=offered,
        **{column: _line(row[column]) or None for column in ("modality", "organ", "question_type", "question_set")},
    ), []  # fmt: skip


def _regions(
    where: str, row: dict[str, Any], root: Path, images: Files
) -> tuple[tuple[Path, ...], Path | None, float | None, list[Fault]]:
    """Return the files of masks and heat map, their confidence, and faults."""
    found: dict[str, list[Path]] = {"masks": [], "heatmap": []}
    faults = []
    masks = parsed(row["masks"])
    masks = masks if isinstance(masks, list) else [masks]
    for column, name in [*(("masks", name) for name in masks), ("heatmap", row["heatmap"])]:
        wrong = form_fault(name)
        file = None if is_missing(name) else find_file(where, column, name, root, images)
        if wrong:
            file = Fault(where, column, *wrong)
        if isinstance(file, Fault):
            faults.append(file)
        elif file:
            found[column].append(file)
    confidence = None if row["confidence"] is None else _number(row["confidence"])
    if confidence is not None and not 0 <= confidence <= 1:
        faults.append(Fault(where, "confidence", "is not a number in [0, 1]", repr(row["confidence"])))
    return tuple(found["masks"]), next(iter(found["heatmap"]), None), confidence, faults


def _line(cell: Any) -> str:
    """Return a cell as one line, since notices and tables name it; stored once for all rows."""
    return intern(" ".join(as_text(cell).split()))


def _task(cell: Any, answer: str, offered: Sequence[str]) -> str | None:
    if cell is None and offered:
        return "closed_vqa" if {*map(folded, offered)} == {"yes", "no"} else "choice_vqa"
    if cell is None:
        return "closed_vqa" if words(answer) in (["yes"], ["no"]) else "open_vqa"
    return ANSWER_TYPES.get(folded(str(cell)))


def _missing_answer(spelt: Any) -> tuple[str, str | None]:
    if spelt is None:
        return "is empty; every row needs a gold answer or a report", None
    return "is a missing value; write the answer (the word none in small letters)", repr(spelt)


def _number(cell: Any) -> float:
    """Return a cell as a number, NaN where it is none."""
    try:
        return math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _boxes(cell: Any) -> tuple[tuple[Box, ...], tuple[str, str] | None]:
    """Return the boxes of a row (a list, or one in a CSV cell), and a fault's sentence and value, or None."""
    entries = [] if cell is None else parsed(cell)
    boxes = []
    try:
        if not isinstance(entries, list) or any(form_fault(entry.get("label")) for entry in entries):
            raise TypeError
        for entry in entries:
            sides = (entry["x"], entry["y"], entry.get("width", entry.get("w")), entry.get("height", entry.get("h")))
            confidence = 1.0 if entry.get("confidence") is None else entry["confidence"]
            if any(isinstance(number, bool) for number in (*sides, confidence)):
                raise TypeError
            x, y, width, height = map(float, sides)
            label = "" if is_missing(entry.get("label")) else intern(as_text(entry["label"]))
            boxes.append(Box(label, x, y, width, height, float(confidence)))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return (), ("boxes are a list of {label, x, y, width (w), height (h)} in pixels", repr(cell))
    for box in boxes:
        finite = all(map(math.isfinite, (box.x, box.y, box.width, box.height)))
        if not finite or box.width <= 0 or box.height <= 0 or not 0 <= box.confidence <= 1:
            return (), ("a box needs a positive size in pixels and a confidence in [0, 1]", repr(box))
    return tuple(boxes), None
