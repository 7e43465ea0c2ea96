"""One question about one image (`Sample`), read from a row of a source's table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo import findings
from mmedpo.errors import Fault, InputError
from mmedpo.images import SUFFIXES, open_rgb
from mmedpo.schema import TASKS
from mmedpo.tables import FAULT, read_table
from mmedpo.text import polarity

COLUMNS = {
    "id": ("id", "qid", "question_id"),
    "image": ("image", "image_name", "img_name", "image_path", "file_name"),
    "question": ("question", "prompt"),
    "answer": ("answer", "report", "findings"),
    "task": ("task", "answer_type"),
    "split": ("split",),
    "patient_id": ("patient_id", "subject_id"),
    "boxes": ("boxes",),
    "masks": ("masks", "mask"),
    "heatmap": ("heatmap",),
    "confidence": ("confidence",),
    "modality": ("modality", "image_modality"),
    "organ": ("organ", "image_organ", "location", "body_part"),
    "question_type": ("question_type", "content_type", "question_category"),
    "labels": ("labels",),
    "width": ("width",),
    "source": ("source",),
    "license": ("license",),
    "credentialed": ("credentialed",),
}
ANSWER_TYPES = {"closed": "closed_vqa", "open": "open_vqa", "report": "report", **{task: task for task in TASKS}}
READ = (*SUFFIXES, ".npy")


@dataclass(frozen=True)
class Box:
    """A region in pixels, origin top left; `confidence` in [0, 1] is 1 for boxes drawn by a person."""

    label: str
    x: float
    y: float
    width: float
    height: float
    confidence: float = 1.0


@dataclass(frozen=True)
class Sample:
    """One question about one image: the unit that is curated, and that is asked in an evaluation."""

    id: str
    image: Path
    question: str
    answer: str
    task: str
    image_id: str
    patient_id: str | None
    split: str
    boxes: tuple[Box, ...]
    source: str
    license: str
    masks: tuple[Path, ...] = ()  # pictures of the image's size, black where no lesion is
    heatmap: Path | None = None  # a picture or a .npy array of two dimensions
    confidence: float | None = None  # in [0, 1]: of the masks or the heat map
    modality: str | None = None  # as the table has it ("X-Ray", "CT", ...)
    organ: str | None = None
    question_type: str | None = None  # "PRES, ABN" and the like, too
    image_digest: str = ""  # `images.digest`, set when the file is read: two files of one picture have one


def read_heat(file: Path) -> np.ndarray:
    """A heat map, float64 h x w, from 0 (cold) upwards: a picture (black is 0, white is 1) or a `.npy` array as it is.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    if file.suffix.lower() != ".npy":
        return np.asarray(open_rgb(file).convert("L")) / 255
    try:
        with file.open("rb") as opened:
            heat = np.lib.format.read_array(opened, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds on damaged files
        raise InputError(f"{file.name}: the array cannot be read ({error}); save it anew with numpy.save.") from None
    if heat.ndim != 2 or not heat.size or heat.dtype.kind not in "buif":
        given = f"this is {heat.dtype} of shape {heat.shape}"
        raise InputError(f"{file.name}: a heat map has 2 dimensions of real numbers; {given}.")
    if not 0 <= heat.min() <= heat.max() < math.inf:
        raise InputError(f"{file.name}: a heat map holds no NaN, no infinity and nothing below 0; scale it so.")
    return heat.astype(np.float64)


def questions(table: Path, columns: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row by `COLUMNS`), and gather the table's own columns."""
    for where, raw in read_table(table):
        columns.update(name for name in raw if name not in (FAULT, None))
        row = {
            column: next((raw[name] for name in names if raw.get(name) not in (None, "")), None)
            for column, names in COLUMNS.items()
        }
        if FAULT in raw:
            yield where, raw
        elif row["question"] is None and row["labels"] is not None:
            yield from _about_findings(where, row)
        else:
            yield where, row


def check_columns(table: Path, columns: set[str]) -> None:
    """Raise InputError if what every question needs is in no column."""
    needed = ("image", "labels") if "labels" in columns else ("image", "question", "answer")
    missing = [
        f"{column} (or {', '.join(COLUMNS[column][1:])})"
        for column in needed
        if not columns.intersection(COLUMNS[column])
    ]
    if columns and missing:
        raise InputError(
            f"{table} has no column {', no '.join(missing)}; its columns are {', '.join(sorted(columns))}. Rename "
            "them; a CSV table has commas between columns."
        )


def _about_findings(where: str, row: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions about an image's boxed findings, or its fault."""
    boxes, sentence = _boxes(row["boxes"])
    labels = row["labels"].split("|") if isinstance(row["labels"], str) else row["labels"]
    try:
        width = None if row["width"] is None else float(row["width"])
    except (TypeError, ValueError):
        width = math.nan
    fault = ("boxes", sentence) if sentence else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        fault = ("labels", f"are a list of findings, or one text with | between them, got {row['labels']!r}")
    elif width is not None and not 0 < width < math.inf:
        fault = ("width", f"is the image's in pixels, got {row['width']!r}")
    elif any(not box.label.strip() for box in boxes):
        fault = ("boxes", "each needs a label, the finding in it")
    elif row["image"] is None:
        fault = ("image", "is empty; every row needs the name of an image file")
    if fault:
        yield where, {**row, FAULT: fault}
        return
    for changed in findings.ask(str(row["image"]), [asdict(box) for box in boxes], labels, width):
        yield f"{where} ({changed['id']})", {**row, **changed}


def read_sample(
    where: str, row: dict[str, Any], root: Path, images: Mapping[str, list[Path]], name: str, license: str
) -> tuple[Sample | None, list[Fault]]:
    """The sample of one row, or what is wrong with the row: every fault, each with its remedy."""
    if FAULT in row:
        return None, [Fault(where, *row[FAULT])]
    faults = []
    answer, question = (_text(row[column]).strip() for column in ("answer", "question"))
    image = find_file(where, "image", row["image"], root, images)
    if row["image"] is None:
        image = Fault(where, "image", "is empty; every row needs the name of an image file")
    if isinstance(image, Fault):
        faults.append(image)
    if not question:
        faults.append(Fault(where, "question", "is empty; every row needs a question"))
    if not answer:
        faults.append(Fault(where, "answer", "is empty; every row needs a gold answer"))
    task = _task(row["task"], answer)
    if task is None:
        faults.append(Fault(where, "task", f"{row['task']!r} is unknown; use closed, open or report"))
    boxes, sentence = _boxes(row["boxes"])
    if sentence:
        faults.append(Fault(where, "boxes", sentence))
    masks, heatmap, confidence, region_faults = _regions(where, row, root, images)
    faults += region_faults
    if faults or isinstance(image, Fault) or task is None:
        return None, faults
    patient = _text(row["patient_id"]) or None
    return Sample(
        id=where if row["id"] is None else _text(row["id"]), image=image, question=question, answer=answer, task=task,
        image_id=image.relative_to(root).as_posix(), patient_id=patient,
        split=str(row["split"] or ""), boxes=boxes, source=_text(row["source"]) or name,
        license=_text(row["license"]) or license, masks=masks, heatmap=heatmap, confidence=confidence, image_digest="",
        **{column: " ".join(_text(row[column]).split()) or None for column in ("modality", "organ", "question_type")},
    ), []  # fmt: skip


def _regions(
    where: str, row: dict[str, Any], root: Path, images: Mapping[str, list[Path]]
) -> tuple[tuple[Path, ...], Path | None, float | None, list[Fault]]:
    """The files of masks and heat map and their confidence, or what is wrong with them."""
    found: dict[str, list[Path]] = {"masks": [], "heatmap": []}
    faults = []
    for column, name in [*(("masks", name) for name in _listed(row["masks"])), ("heatmap", row["heatmap"])]:
        file = None if name is None else find_file(where, column, name, root, images)
        if isinstance(file, Fault):
            faults.append(file)
        elif file:
            found[column].append(file)
    try:
        confidence = None if row["confidence"] is None else float(row["confidence"])
    except (TypeError, ValueError):
        confidence = math.nan
    if confidence is not None and not 0 <= confidence <= 1:
        faults.append(Fault(where, "confidence", f"{row['confidence']!r} is not a number in [0, 1]"))
    return tuple(found["masks"]), next(iter(found["heatmap"]), None), confidence, faults


def _listed(given: Any) -> list[Any]:
    """A cell as a list: one it is, one in JSON (in a CSV cell), or one of the cell alone."""
    if isinstance(given, str) and given.lstrip().startswith("["):
        with suppress(ValueError):
            given = json.loads(given)
    return given if isinstance(given, list) else [given]


def _text(value: Any) -> str:
    """A cell as text; half a surrogate pair, which no file can hold, becomes a replacement character."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode("utf-8")


def image_files(root: Path) -> dict[str, list[Path]]:
    """All image files and arrays below `root` by their base name."""
    images: dict[str, list[Path]] = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() in READ:
            images.setdefault(file.name, []).append(file)
    return images


def find_file(where: str, column: str, name: Any, root: Path, images: Mapping[str, list[Path]]) -> Path | Fault:
    """The file that `name` means (the one of that path, else the one whose path ends in it), or what is wrong."""
    given = Path(str(name))
    candidates = images.get(given.name, [])
    whole = [file for file in candidates if file.relative_to(root) == given]
    found = whole or [file for file in candidates if file.relative_to(root).parts[-len(given.parts) :] == given.parts]
    if not found:
        kinds = "" if given.suffix.lower() in READ else f" as one of {', '.join(READ)}"
        return Fault(where, column, f"{name!r} is not below the source folder{kinds}; add the file")
    if len(found) > 1:
        return Fault(where, column, f"{name!r} is the name of {len(found)} files; give its whole path")
    return found[0]


def _task(given: Any, answer: str) -> str | None:
    if given is None:
        return "closed_vqa" if polarity(answer) and len(answer) <= 3 else "open_vqa"
    return ANSWER_TYPES.get(str(given).strip().casefold())


def _boxes(given: Any) -> tuple[tuple[Box, ...], str | None]:
    """Boxes of a row (a list, or its JSON in a CSV cell), or what is wrong with them."""
    boxes = []
    try:
        entries = json.loads(given) if isinstance(given, str) else given or []
        for entry in entries:
            sides = (entry["x"], entry["y"], entry.get("width", entry.get("w")), entry.get("height", entry.get("h")))
            x, y, width, height = map(float, sides)
            boxes.append(Box(_text(entry.get("label")), x, y, width, height, float(entry.get("confidence", 1.0))))
    except (KeyError, TypeError, ValueError, AttributeError):
        return (), f"boxes are a list of {{label, x, y, width (w), height (h)}} in pixels, got {given!r}"
    for box in boxes:
        finite = all(map(math.isfinite, (box.x, box.y, box.width, box.height)))
        if not finite or box.width <= 0 or box.height <= 0 or not 0 <= box.confidence <= 1:
            return (), f"a box needs a positive size in pixels and a confidence in [0, 1], got {box}"
    return tuple(boxes), None
