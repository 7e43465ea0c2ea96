"""Columns of a source's table: their accepted names, rows by those names, and notices about unread columns."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmedpo.data import options
from mmedpo.data.tables import as_text, form_fault, is_missing
from mmedpo.data.text import plain
from mmedpo.errors import InputError

COLUMNS = {  # accepted names of each column, in order of precedence; docs/curation.md lists them
    "id": ("id", "qid", "question_id"),
    "image": ("image", "image_name", "img_name", "image_path", "file_name"),
    "images": ("images",),
    "question": ("question", "prompt"),
    "answer": ("answer",),
    "options": ("options", "choices"),
    "report": ("report",),
    "findings": ("findings",),
    "impression": ("impression",),
    "task": ("task", "answer_type"),
    "split": ("split",),
    "patient_id": ("patient_id", "patient", "subject_id", "subject"),
    "study_id": ("study_id", "study", "study_instance_uid"),
    "boxes": ("boxes",),
    "masks": ("masks", "mask"),
    "heatmap": ("heatmap",),
    "confidence": ("confidence",),
    "modality": ("modality", "image_modality"),
    "organ": ("organ", "image_organ", "location", "body_part"),
    "question_type": ("question_type", "content_type", "question_category"),
    "question_set": ("question_set",),
    "labels": ("labels",),
    "width": ("width",),
    "source": ("source",),
    "license": ("license",),
    "credentialed": ("credentialed",),
}
OTHER_FORMS = (
    "images",
    "options",
    "boxes",
    "masks",
    "heatmap",
    "confidence",
    "labels",
    "width",
    "credentialed",
)  # columns of other types than text
SECTIONS = ("findings", "impression")  # of a report, in this order
REPORT_QUESTION = "Describe the findings in this image."
MISSING_ANSWER = "_answer"  # key of the cell that was read as a missing answer
# Columns that may identify a patient; attributes of a patient (age, date, ...) do not.
PATIENT = re.compile(
    r"(patient|subject|participant|person|mrn|study|exam|accession|visit|admission|encounter|empi"
    r"|^(p|pt|pat|case|hadm|mpi)(u?id|no|nr|num|number|key|code|name|identifier)$|^(pat|hadm|case|mpi)$)"
    r"(?!.*(age|sex|gender|race|ethnicity|date|time|year|position|orientation|weight|height|size|type|description)$)"
)
NAMELESS = frozenset((  # cells of a patient's or study's column that identify nobody, besides punctuation
    "unknown", "unk", "anonymous", "anonymized", "anonymised", "anonym", "anon", "deidentified", "de-identified",
    "missing", "unnamed", "not available", "not known", "redacted", "removed",
))  # fmt: skip
LIKENESS = 0.76  # least similarity of two names (difflib), above that of "age" and "image"
INDEX = re.compile(r"(unnamed\d+)?")  # pandas' name of the column of row numbers


@lru_cache(maxsize=4096)
def key(name: str) -> str:
    """Return the letters and digits of a column's name in lower case: "PatientID" and "patient_id" are equal."""
    return re.sub(r"[\W_]+", "", plain(name).casefold())


KNOWN = {key(name): column for column, names in COLUMNS.items() for name in names}


def row_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's row by `COLUMNS`, None where a value is missing (`tables.is_missing`)."""
    lettered = {*options.columns({*map(key, raw)})}
    cells = {key(name): cell for name, cell in reversed(list(raw.items())) if not _is_missing(name, cell, lettered)}
    row = {
        column: next((cells[key(name)] for name in names if key(name) in cells), None)
        for column, names in COLUMNS.items()
    }
    if row["options"] is None and lettered:
        row["options"] = options.gathered(cells, lettered)
    if row["answer"] is None:
        _fill_from_report(row)
        texts = [str(cell) for name, cell in raw.items() if KNOWN.get(key(name)) == "answer" and cell is not None]
        row[MISSING_ANSWER] = next((text for text in texts if text.strip()), None)
    return row


def group_name(cell: Any) -> str:
    """Return one spelling of a patient or study (1, 1.0, "1.0" and a full-width 1 are equal), "" for nobody."""
    name = " ".join(plain(as_text(cell)).split())
    nobody = name.casefold() in NAMELESS or not re.search(r"[^\W_]", name)
    return "" if nobody else re.sub(r"^(\d+)\.0+$", r"\1", name)


def _is_missing(name: str, cell: Any, lettered: Collection[str] = ()) -> bool:
    # "none" in lower case is an answer ("Which abnormality is seen?"); programs write a missing value as None.
    holds_answer = KNOWN.get(key(name)) == "answer" or key(name) in lettered
    return is_missing(cell) and not (holds_answer and isinstance(cell, str) and cell.strip() == "none")


def _fill_from_report(row: dict[str, Any]) -> None:
    """Fill answer, task and question of a row that has a report, or its findings and impression."""
    sections = [row["report"]] if row["report"] is not None else [row[name] for name in SECTIONS]
    texts = [str(text).strip() for text in sections if text is not None]
    if texts:
        row |= {"answer": " ".join(texts), "task": "report" if row["task"] is None else row["task"]}
        row["question"] = REPORT_QUESTION if row["question"] is None else row["question"]


def form_faults(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Yield column, sentence and value of a fault for each cell that should be text and is not."""
    for column in COLUMNS:
        if column not in OTHER_FORMS and (found := form_fault(row[column])):
            yield column, *found


def check_columns(table: Path, columns: Iterable[str]) -> None:
    """Raise InputError if a column that every question needs is missing."""
    columns = sorted(columns)
    found = {KNOWN.get(key(name)) for name in columns}
    needs = [] if "images" in found else ["image"]
    if not found & {"labels", "report", *SECTIONS}:
        needs += ["question", "answer"]
    missing = [f"{column} ({', '.join(_other_names(column))})" for column in needs if column not in found]
    if columns and missing:
        raise InputError(
            f"{table} has no column {', no '.join(missing)}; its columns are {', '.join(columns)}. Rename "
            "them. A CSV table separates columns by commas."
        )


def _other_names(column: str) -> list[str]:
    names = [*COLUMNS[column][1:], *(("report", *SECTIONS) if column == "answer" else ())]
    return [f"or {', '.join(names)}"] if names else []


def notices(name: str, columns: Iterable[str]) -> list[str]:
    """Return notices about columns that are not read, that mean the same, or that may identify patients.

    Args:
        name: of the source.
        columns: of the table, in its order.
    """
    by_column: dict[str | None, list[str]] = {}
    columns = [*columns]
    lettered = {*options.columns({*map(key, columns)})}
    for column in columns:
        if key(column) not in lettered and not INDEX.fullmatch(key(column)):
            by_column.setdefault(KNOWN.get(key(column)), []).append(column)
    unread = sorted(by_column.pop(None, []))
    sentences = []
    if unread:
        sentences.append(
            f"{name}: columns that are not read: {', '.join(map(_with_nearest, unread))}. docs/curation.md lists those "
            "that are."
        )
    for known, names in sorted(by_column.items(), key=lambda one: min(one[1])):
        if len(names) > 1:
            first = min(names, key=lambda one: [key(other) for other in COLUMNS[str(known)]].index(key(one)))
            sentences.append(
                f"{name}: columns {', '.join(sorted(names))} have the same meaning; {first} is used where it has a "
                "value."
            )
    alike = [column for column in unread if PATIENT.search(key(column))]
    if alike and "patient_id" not in by_column:
        sentences.append(
            f"{name}: {', '.join(alike)} may identify patients, but is not read, so one patient's images may be in "
            "several splits. Rename the column to patient_id if it does."
        )
    return sentences


def _with_nearest(column: str) -> str:
    names = {key(name): name for others in COLUMNS.values() for name in others if key(name)[:1] == key(column)[:1]}
    nearest = difflib.get_close_matches(key(column), names, n=1, cutoff=LIKENESS)
    return f"{column} (is it {names[nearest[0]]}?)" if nearest else column
