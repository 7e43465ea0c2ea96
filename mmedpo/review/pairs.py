"""Pairs of a dataset folder in any order: the facts of all rows in memory, images read when a pair is shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.data.text import unit_interval
from mmedpo.errors import InputError
from mmedpo.report.audit.measure import flaws_of
from mmedpo.report.audit.read import Pictures, Row, read_row

LIGHT = (  # columns without images
    "id", "prompt", "chosen", "rejected", "weight", "clinical_relevance", "dispreference", "task",
    "provenance.judgements",
)  # fmt: skip
ON_SAME_IMAGES = ("hallucinated_response", schema.REVERSED[0])  # kinds of pairs
GROUPS = 8  # row groups in memory
ORDERS = {
    "dataset": "as in the dataset",
    "random": "a seeded order",
    "disagreement": "judges who differ most first, then pairs with one judge or none",
    "weight": "highest weight first",
    "warnings": "pairs with flaws of the audit first",
}


class Pairs:
    """Training split of a preference dataset folder.

    Attributes:
        rows: facts of all rows as the audit reads them, without digests of images.
        place_of: place of each row by its id.

    Raises:
        InputError: no folder with Parquet files, or another schema.
    """

    def __init__(self, folder: Path) -> None:
        from pyarrow.parquet import ParquetFile

        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder. Give a dataset folder; download a dataset of the Hub first.")
        splits = loading.undecoded_splits(str(folder))
        split = splits.get("train", next(iter(splits.values())))
        if faults := schema.column_faults(split.features):
            raise InputError(f"{folder} is not a preference dataset, as `mmedpo curate` writes them:", faults)
        if not isinstance(split, loading.Undecoded):
            raise InputError(
                f"{folder} has no data/*.parquet files, as `mmedpo curate` writes them; give such a folder."
            )
        self.folder = folder
        self._names, self._stamps = split.files, [_stamp(file) for file in split.files]
        self._files = [ParquetFile(file) for file in split.files]
        self._places = [*self._all_places()]
        self._lock, self._group = Lock(), lru_cache(GROUPS)(self._read_group)
        pictures = Pictures()
        self.rows = [_facts(place, row, split.features, pictures) for place, row in enumerate(self._light())]
        self.place_of = {row.name: place for place, row in enumerate(self.rows)}

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, place: int) -> dict[str, Any]:
        """Return a row with undecoded images, and class labels by name; in any thread.

        Raises:
            InputError: the dataset was written anew since it was opened.
        """
        file, group, offset = self._places[place]
        if _stamp(self._names[file]) != self._stamps[file]:
            raise InputError(f"{self.folder} was written anew since it was opened. Start the command again.")
        with self._lock:
            row: dict[str, Any] = self._group(file, group).slice(offset, 1).to_pylist()[0]
        labels = {"dispreference": schema.DISPREFERENCES, "task": schema.TASKS}
        return row | {name: schema.label(row[name], names) or "" for name, names in labels.items()}

    def chosen(
        self,
        order: str = "dataset",
        kinds: Sequence[str] = (),
        tasks: Sequence[str] = (),
        first: int | None = None,
        seed: int = 0,
    ) -> list[int]:
        """Return the places of rows in the order in which they are shown.

        Args:
            order: one of `ORDERS`. Equal pairs come in a seeded order.
            kinds, tasks: labels to show; all by default.
            first: how many.

        Raises:
            InputError: an unknown order, kind or task, or no such pair.
        """
        for name, given, known in (
            ("order", [order], ORDERS), ("kind", kinds, schema.DISPREFERENCES), ("task", tasks, schema.TASKS),
        ):  # fmt: skip
            if wrong := [one for one in given if one not in known]:
                raise InputError(f"The {name} {wrong[0]!r} is unknown; use one of {', '.join(known)}.")
        shown = [
            place for place, row in enumerate(self.rows)
            if (not kinds or row.kind in kinds) and (not tasks or row.task in tasks)
        ]  # fmt: skip
        if not self.rows:
            raise InputError(f"{self.folder} has no rows; there is nothing to review.")
        if not shown:
            raise InputError(f"{self.folder} has no pair of these kinds and tasks; leave out --kind or --task.")
        if order != "dataset":
            shown.sort(
                key=lambda place: (_rank(order, self.rows[place]), unit_interval("review", seed, self.rows[place].name))
            )
        return shown[:first]

    def _read_group(self, file: int, group: int) -> Any:
        return self._files[file].read_row_group(group)

    def _all_places(self) -> Iterator[tuple[int, int, int]]:
        """Yield (file, row group, place in the group) of each row."""
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                for offset in range(file.metadata.row_group(group).num_rows):
                    yield number, group, offset

    def _light(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            for batch in file.iter_batches(columns=[*LIGHT]):
                yield from batch.to_pylist()


def _stamp(file: Any) -> tuple[int, int] | None:
    """Return time and size of a file; None for one that is gone."""
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def digest(row: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what a reviewer judges: texts, images and boxes of a row."""
    made = hashlib.sha256()
    for images in (row["images"], row["rejected_images"] or []):
        for image in images:
            made.update(hashlib.sha256(image["bytes"] or b"").digest())
        made.update(b"|")
    texts = [[(one["role"], one["content"]) for one in row[name]] for name in ("prompt", "chosen", "rejected")]
    about = row["provenance"] or {}
    boxes = [sorted(box.items()) for box in about.get("boxes") or []], about.get("box_images")
    made.update(repr((texts, boxes)).encode(errors="surrogatepass"))
    return made.hexdigest()


def spread(row: Row) -> float | None:
    """Return the difference between highest and lowest score of the last round's judges; None for fewer than two."""
    last = max((number for number, *_ in row.judgements), default=0)
    scores = [score for number, _, score, _ in row.judgements if number == last and score is not None]
    return max(scores) - min(scores) if len(scores) > 1 else None


def _facts(place: int, row: Mapping[str, Any], features: Mapping[str, Any], pictures: Pictures) -> Row:
    read = read_row(row, features, place, pictures)
    return read if read.kind in ON_SAME_IMAGES else replace(read, rejected_images=(b"not read",))


def _rank(order: str, row: Row) -> float:
    if order == "disagreement":
        found = spread(row)
        return 1.0 if found is None else -found
    if order == "weight":
        return -(row.weight or 0.0)
    return -len(flaws_of(row)) if order == "warnings" else 0.0
