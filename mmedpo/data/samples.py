"""`Sample`, one question about one image or several, and its reader from a row of a source's table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Any

from mmedpo.data import credentialed, findings, options, placeholders
from mmedpo.data.columns import MISSING_ANSWER, form_faults, group_name, row_of
from mmedpo.data.files import Files, find_file, relative_name, spelling
from mmedpo.data.tables import FAULT, as_text, form_fault, is_missing, parsed, read_table
from mmedpo.data.text import folded, words
from mmedpo.errors import Fault
from mmedpo.schema import TASKS

ANSWER_TYPES = {"closed": "closed_vqa", "open": "open_vqa", "choice": "choice_vqa", **{task: task for task in TASKS}}


class _Called:
    """Base of dataclasses that are pickled as a call with their fields, which halves the time of reading them."""

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, name) for name in self.__slots__)


@dataclass(frozen=True, slots=True)
class Box(_Called):
    """A rectangle in pixels, origin top left. `confidence` is in [0, 1]; boxes drawn by a person have 1."""

    label: str
    x: float
    y: float
    width: float
    height: float
    confidence: float = 1.0


@dataclass(frozen=True, slots=True)
class SampleImage(_Called):
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
class Sample(_Called):
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
        """Return the image's name in the source; of several images, their names with | between."""
        return "|".join(image.name for image in self.images)

    @property
    def image_digest(self) -> str:
        """Return the image's digest; of several images, one of their digests in order."""
        return joint_digest([image.digest for image in self.images])

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Return the boxes of all images."""
        return tuple(box for image in self.images for box in image.boxes)

    @property
    def prompt(self) -> str:
        """Return the text that a model is asked."""
        return options.asked(self.question, self.options)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of the images."""
        return tuple(image.file for image in self.images)

    def each(self) -> list[Sample]:
        """Return the sample once for each of its images, about that image alone."""
        return [replace(self, images=(image,)) for image in self.images]


def joint_digest(digests: Sequence[str]) -> str:
    """Return the digest of the images of one question, in order; of one image, its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("|".join(digests).encode()).hexdigest()


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
    names, name_fault = _image_names(row)
    (boxes, *_), box_fault = _boxes(row["boxes"])
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
    elif len(names) > 1:
        fault = ("images", "are several; questions are made from the labels of one image", repr(row["images"]))
    elif name_fault:
        fault = name_fault
    elif nothing := findings.fault(boxes, labels):
        fault = fault or ("labels", *nothing)
    if fault:
        yield where, {**row, FAULT: fault}
        return
    for changed in findings.ask(spelling(str(names[0])), [asdict(box) for box in boxes], labels, width):
        yield f"{where} ({changed['id']})", {**row, **changed}


def read_sample(
    where: str, row: dict[str, Any], root: Path, images: Files, name: str, license: str
) -> tuple[Sample | None, list[Fault]]:
    """Return the sample of one row, or None and all faults of the row."""
    names, name_fault = _image_names(row)
    column = "image" if row["images"] is None else "images"
    # Of faulty rows too: the folder of an image may mark the source.
    shown = [find_file(where, column, one, root, images) for one in names]
    if FAULT in row:
        return None, [Fault(where, *row[FAULT])]
    if faults := [Fault(where, *found) for found in form_faults(row)]:
        return None, faults
    answer, question = (as_text(row[column]).strip() for column in ("answer", "question"))
    if name_fault:
        faults.append(Fault(where, *name_fault))
    else:
        faults += [file for file in shown if isinstance(file, Fault)]
    pictures = [file for file in shown if isinstance(file, Path)]
    if len(set(pictures)) < len(pictures):
        faults.append(Fault(where, "images", "name one file twice; an image is shown once", repr(row["images"])))
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
    boxes, box_fault = _boxes(row["boxes"], len(names))
    if box_fault:
        faults.append(Fault(where, "boxes", *box_fault))
    if not credentialed.is_answer(row["credentialed"]):
        faults.append(Fault(where, "credentialed", "is neither true nor false", repr(row["credentialed"])))
    masks, heatmaps, confidence, region_faults = _regions(where, row, root, images, len(names))
    faults += region_faults
    if faults or task is None:
        return None, faults
    # `intern` stores a text that many rows share once.
    return Sample(
        id=as_text(row["id"]) or where,
        images=tuple(
            SampleImage(file, intern(relative_name(root, file)), boxed, masked, heat, confidence)
            for file, boxed, masked, heat in zip(pictures, boxes, masks, heatmaps, strict=True)
        ),
        question=question, answer=answer, task=task,
        patient_id=intern(group_name(row["patient_id"])) or None, split=intern(as_text(row["split"]).strip()),
        source=_line(row["source"]) or intern(name), license=_line(row["license"]) or intern(license), options=offered,
        **{column: _line(row[column]) or None for column in ("modality", "organ", "question_type", "question_set")},
    ), []  # fmt: skip


def _image_names(row: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the names of a row's images, and the fault or ()."""
    if row["images"] is None:
        missing = "is empty; every row needs the name of an image file"
        return [row["image"]], ("image", missing) if row["image"] is None else ()
    names = parsed(row["images"])
    names = [one.strip() for one in names.split("|")] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(one, str) and one.strip() for one in names):
        form = "are a list of names of image files, or one text with | between them"
        return [], ("images", form, repr(row["images"]))
    if row["image"] is not None and str(row["image"]) not in names:
        return names, ("image", "is none of the row's images; leave one of the columns empty", repr(row["image"]))
    return names, ()


def _place(entry: Mapping[str, Any], count: int) -> int | None:
    """Return which of `count` images a mark belongs to, the first by default; None if there is no such image."""
    place = 0 if entry.get("image") is None else entry["image"]
    return place if type(place) is int and 0 <= place < count else None


def _misplaced(count: int) -> str:
    images = "one image, 0" if count == 1 else f"{count} images, 0 to {count - 1}"
    return f"name an image that the row does not have; it has {images}"


def _regions(
    where: str, row: dict[str, Any], root: Path, files: Files, count: int
) -> tuple[list[tuple[Path, ...]], list[Path | None], float | None, list[Fault]]:
    """Return the files of masks and heat maps by image, their confidence, and faults.

    An entry is a file's name, or an object with its `file` and its `image`, counted from 0.
    """
    found: dict[str, list[list[Path]]] = {name: [[] for _ in range(count)] for name in ("masks", "heatmap")}
    faults = []
    for column, by_image in found.items():
        cell = parsed(row[column])
        for entry in cell if isinstance(cell, list) else [cell]:
            placed = isinstance(entry, dict) and "file" in entry
            name, place = (entry["file"], _place(entry, count)) if placed else (entry, 0)
            file = None if is_missing(name) else find_file(where, column, name, root, files)
            if wrong := form_fault(name):
                file = Fault(where, column, *wrong)
            elif place is None:
                file = Fault(where, column, _misplaced(count), repr(entry))
            if isinstance(file, Fault):
                faults.append(file)
            elif file and place is not None and place < count:
                by_image[place].append(file)
    if any(len(maps) > 1 for maps in found["heatmap"]):
        faults.append(Fault(where, "heatmap", "has several for one image; join them", repr(row["heatmap"])))
    confidence = None if row["confidence"] is None else _number(row["confidence"])
    if confidence is not None and not 0 <= confidence <= 1:
        faults.append(Fault(where, "confidence", "is not a number in [0, 1]", repr(row["confidence"])))
    masks, maps = [*map(tuple, found["masks"])], [next(iter(one), None) for one in found["heatmap"]]
    return masks, maps, confidence, faults


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


def _boxes(cell: Any, count: int = 1) -> tuple[list[tuple[Box, ...]], tuple[str, str] | None]:
    """Return the boxes of a row (a list, or one in a CSV cell) by image, and a fault's sentence and value, or None."""
    entries = [] if cell is None else parsed(cell)
    boxes: list[list[Box]] = [[] for _ in range(max(count, 1))]
    nothing: list[tuple[Box, ...]] = [() for _ in boxes]
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
            if (place := _place(entry, len(boxes))) is None:
                return nothing, (_misplaced(len(boxes)), repr(entry))
            boxes[place].append(Box(label, x, y, width, height, float(confidence)))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return nothing, ("boxes are a list of {label, x, y, width (w), height (h)} in pixels", repr(cell))
    for box in chain.from_iterable(boxes):
        finite = all(map(math.isfinite, (box.x, box.y, box.width, box.height)))
        if not finite or box.width <= 0 or box.height <= 0 or not 0 <= box.confidence <= 1:
            return nothing, ("a box needs a positive size in pixels and a confidence in [0, 1]", repr(box))
    return [*map(tuple, boxes)], None
