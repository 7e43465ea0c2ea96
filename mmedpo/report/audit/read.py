"""Read preference rows of any layout, one at a time: the schema's, TRL's, LLaVA's, plain texts.

Images are decoded once and kept as digests of their pixels. Rows are not kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.data.tables import FAULT, is_missing, read_table
from mmedpo.data.text import words
from mmedpo.errors import Fault, InputError
from mmedpo.report.audit.pictures import Pictures

NAMES = {  # field -> column names of datasets, the schema's first
    "id": ("id",),
    "prompt": ("prompt", "question"),
    "chosen": ("chosen", "conversations"),  # conversations: LLaVA's layout
    "rejected": ("rejected", "rejected_conversations"),
    "images": ("images", "image"),
    "rejected_images": ("rejected_images",),
    "weight": ("weight", "weighted_score"),
    "clinical_relevance": ("clinical_relevance",),
}
CHOSEN_SIDES = ("gold", "corrected", "ranked")
PLACEHOLDER = "<image>"  # in LLaVA's questions
REPORT_WORDS = 20  # without a task column, a longer chosen text is a report
HOW = (
    "Give a folder written by `mmedpo curate`, a Hub dataset id, or a .json or .jsonl file of rows, for example "
    '{"id", "image", "conversations", "rejected_conversations", "weighted_score"} (LLaVA\'s layout).'
)


@dataclass(frozen=True, slots=True)
class Row:
    """One row; fields whose columns are absent or of another type are None or empty."""

    name: str  # id, or row number
    kind: str
    task: str
    question: str
    chosen: str
    rejected: str
    images: tuple[bytes, ...]  # digests of pixels, or of the bytes or name where there are no pixels
    rejected_images: tuple[bytes, ...]
    weight: float | None
    relevance: float | None
    image_id: str | None
    patient_id: str | None
    mask_coverage: float | None
    agreed: bool | None
    judgements: tuple[tuple[int, str, float | None, bool], ...]  # round, judge, score, found not wrong
    makers: tuple[str, ...]  # names of the models that wrote the rejected text or found the lesion
    answer: str = ""  # the gold answer, where a dataset says it beside the chosen text
    chosen_side: str = ""  # one of `CHOSEN_SIDES`, where a dataset says it

    @property
    def same_images(self) -> bool:
        return not self.rejected_images or self.rejected_images == self.images

    @property
    def prefers_noised(self) -> bool:
        """True where the preferred side's image has noise: in reversed pairs and controls."""
        return self.kind in schema.REVERSED or (self.mask_coverage is not None and not self.rejected_images)

    @property
    def gold(self) -> str:
        """Correct text: the chosen one, except in a reversed pair."""
        return self.rejected if self.kind in schema.REVERSED else self.chosen

    @property
    def wrong(self) -> str:
        """Text that is not `gold`."""
        return self.chosen if self.kind in schema.REVERSED else self.rejected

    @property
    def is_report(self) -> bool:
        return self.task == "report" or (self.task not in schema.TASKS and len(words(self.gold)) > REPORT_WORDS)


@dataclass(frozen=True)
class Split:
    """One split of a dataset; each iteration reads it again and yields (raw row, `Row`)."""

    source: Iterable[Mapping[str, Any]]
    columns: Mapping[str, Any]  # name -> feature; None for a JSON file
    faults: list[Fault]  # of columns, and of lines that are not rows
    pictures: Pictures  # shared by all splits
    is_ours: bool = False  # the columns are the schema's

    def __iter__(self) -> Iterator[tuple[Mapping[str, Any], Row]]:
        for place, given in enumerate(_to_the_end(self.source), start=1):
            yield given, read_row(given, self.columns, place, self.pictures)

    def row_faults(self, given: Mapping[str, Any], row: Row) -> list[Fault]:
        """Return the faults of a row by the schema's rules, as far as its columns allow."""
        if self.is_ours:
            return schema.row_faults(given, self.pictures.fault)
        return _loose_faults(given, row, self.columns, self.pictures)


def _to_the_end(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    from datasets.exceptions import DatasetsError

    try:
        yield from rows
    except InputError:
        raise
    except (OSError, ValueError, DatasetsError) as error:
        raise InputError(
            f"The dataset cannot be read to its end: {str(error).removesuffix('.')}. Write or download it again."
        ) from error


def open_splits(path: str) -> dict[str, Split]:
    """Return the splits of a folder or Hub id, or the rows of a .json or .jsonl file as the split "train".

    Raises:
        InputError: nothing readable at `path`, or a file in which no row has a text.
    """
    if Path(path).is_file():
        return {"train": _open_file(Path(path))}
    splits, pictures = {}, Pictures()
    for name, rows in loading.undecoded_splits(path).items():
        features = rows.features
        faults = schema.column_faults(features)
        splits[name] = Split(rows, features, faults, pictures, is_ours=not faults)
    return splits


def _open_file(path: Path) -> Split:
    if path.suffix not in (".json", ".jsonl"):
        raise InputError(f"{path} is neither a folder nor a .json or .jsonl file. {HOW}")
    try:
        listed = list(read_table(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as preference rows: {error} {HOW}") from None
    rows = [{"id": place, **row} for place, row in listed if FAULT not in row]
    faults = [Fault(place, *row[FAULT]) for place, row in listed if FAULT in row]
    columns = {name: None for row in rows for name in row}
    if not any(_turns(_get(row, side)) for row in rows for side in ("chosen", "rejected")):
        raise InputError(f"{path}: none of {len(listed)} rows has a chosen or a rejected text. {HOW}")
    return Split(rows, columns, faults, Pictures())


def read_row(row: Mapping[str, Any], columns: Mapping[str, Any], place: int, pictures: Pictures) -> Row:
    """Return a row as the audit reads it; `place` names a row without an id, `columns` as in `Split`."""
    made = row["provenance"] if isinstance(row.get("provenance"), dict) else {}
    chosen = _turns(_get(row, "chosen"))
    asked = _turns(_get(row, "prompt")) or chosen[:-1]
    return Row(
        name=_name(_get(row, "id")) or f"row {place}",
        kind=_label(row.get("dispreference"), columns.get("dispreference")),
        task=_label(row.get("task"), columns.get("task")),
        question=asked[-1].replace(PLACEHOLDER, "").strip() if asked else "",
        chosen=chosen[-1] if chosen else "",
        rejected=(_turns(_get(row, "rejected")) or [""])[-1],
        images=_digests(_get(row, "images"), pictures),
        rejected_images=_digests(_get(row, "rejected_images"), pictures),
        weight=_number(_get(row, "weight")),
        relevance=_number(_get(row, "clinical_relevance")),
        image_id=_known(made.get("image_id")),
        patient_id=_known(made.get("patient_id")),
        mask_coverage=_number(made.get("mask_coverage")),
        agreed=made["agreed"] if isinstance(made.get("agreed"), bool) else None,
        judgements=tuple(
            (
                int(_number(entry.get("round")) or 1),
                str(entry.get("judge")),
                _number(entry.get("score")),
                str(entry.get("rationale")).startswith(schema.NOT_WRONG),
            )
            for entry in _listed(made.get("judgements"))
            if isinstance(entry, dict)
        ),
        makers=tuple(str(made[name]) for name in ("rejected_by", "localizer") if made.get(name)),
        answer=str(made.get("gold") or ""),
        chosen_side=chosen_side(made),
    )


def chosen_side(provenance: Mapping[str, Any]) -> str:
    """Return which of `CHOSEN_SIDES` a row has; "" where the dataset does not say it."""
    made_by = str(provenance.get("chosen_prompt_version") or "").partition("@")[0]
    said = {"correct": "corrected", "ranked": "ranked"}.get(made_by, "gold")
    return said if provenance.get("chosen_by") else ""


def _get(row: Mapping[str, Any], column: str) -> Any:
    return next((row[name] for name in NAMES[column] if row.get(name) is not None), None)


def _turns(messages: Any) -> list[str]:
    """Return the texts of a conversation of {"role", "content"} or LLaVA's {"from", "value"}; a text is one turn."""

    def text(turn: Any) -> str:
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else turn
        if isinstance(content, list):  # parts of a message: {"type": "text", "text"} beside images
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        return content if isinstance(content, str) else ""

    if messages is None:
        return []
    return [text(turn) for turn in (messages if isinstance(messages, list) else [messages])]


def _name(value: Any) -> str | None:
    return None if value is None else str(value).encode(errors="replace").decode()  # lone surrogates cannot be written


def _known(value: Any) -> str | None:
    return None if is_missing(value) else _name(value)


def _label(value: Any, feature: Any) -> str:
    if value is None:
        return "(none)"
    names = getattr(feature, "names", None)
    return str((names and schema.label(value, tuple(names))) or value)


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:
        return None


def _listed(value: Any) -> list[Any]:
    return [image for image in (value if isinstance(value, list) else [value]) if image is not None]


def _digests(value: Any, pictures: Pictures) -> tuple[bytes, ...]:
    def digest(image: Any) -> bytes:
        if isinstance(image, dict) and image.get("bytes"):
            return pictures.look(image).digest
        return hashlib.blake2b(str(image).encode(errors="replace"), digest_size=16).digest()

    return tuple(digest(image) for image in _listed(value))


def _loose_faults(given: Mapping[str, Any], row: Row, columns: Mapping[str, Any], pictures: Pictures) -> list[Fault]:
    """Return the faults of a row with other columns than the schema's, by the schema's rules that apply to them."""
    weight, kind = _get(given, "weight"), row.kind if row.kind in schema.DISPREFERENCES else schema.DISPREFERENCES[0]
    read = {
        **{side: [{"role": "assistant", "content": getattr(row, side)}] for side in ("chosen", "rejected")},
        "images": list(row.images), "weight": str(weight) if row.weight is None and weight is not None else row.weight,
    }  # fmt: skip
    known = {column: value for column, value in read.items() if any(name in columns for name in NAMES[column])}
    offered = given.get("options") or None
    unknown = row.task not in schema.TASKS or (row.task == "choice_vqa" and not offered)
    task = "report" if row.is_report else "open_vqa" if unknown else row.task
    rejected_images = None if row.same_images else list(row.rejected_images)
    rules = schema.broken_rules({**known, "rejected_images": rejected_images, "task": task, "dispreference": kind,
                                 "options": offered if task in ("choice_vqa", "closed_vqa") else None})  # fmt: skip
    faults = [Fault(row.name, column, sentence) for column, sentence in rules]
    for column in ("images", "rejected_images"):
        inside = [image for image in _listed(_get(given, column)) if isinstance(image, dict) and image.get("bytes")]
        faults += [Fault(row.name, column, sentence) for image in inside if (sentence := pictures.fault(image))]
    return faults
