"""Writer of a preference dataset: Parquet files with the images inside."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from mmedpo import schema
from mmedpo.data.images import fault
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import Fault, InputError

SHARD_SIZE = "500MB"  # bytes of images in one file
SHARD_ROWS = 20_000  # rows in one file: writers and readers hold the metadata of all its row groups in memory
SHARD_ENDS = 1 / 16  # share of the rows that may end a full shard
# A dictionary page of any size, so that pairs about one image store it once; an index to find pages.
LAYOUT: dict[str, Any] = {"dictionary_pagesize_limit": 2**31 - 1, "compression": "none", "write_page_index": True}


class Hashes:
    """64-bit hashes of values, eight bytes each, since texts would fill the memory."""

    def __init__(self) -> None:
        self._held = array("q")

    def add(self, value: Hashable) -> None:
        self._held.append(hash(value))

    def repeated(self) -> dict[int, int]:
        """Return the hashes that occur more than once, with their counts."""
        found, counts = np.unique(self._held, return_counts=True)
        return dict(zip(found[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True))


def shard_bytes(size: str) -> int:
    """Return the bytes of a size such as "500MB" or "64KB", in the notation of `datasets`.

    Raises:
        InputError: not a size, or not positive.
    """
    from datasets.utils.py_utils import convert_file_size_to_int

    try:
        number = int(convert_file_size_to_int(size))
    except ValueError:
        number = 0
    if number <= 0:
        raise InputError(f"The shard size {size!r} is not a size; give one such as 500MB or 64KB.")
    return number


def _is_full(filled: float, id: str) -> bool:
    """Return True if a shard ends with this row, where `filled` is its size as a multiple of the limit.

    The row's id decides where a full shard ends, so that later shards keep their boundaries when rows change. A new
    version of a dataset then uploads few shards.
    """
    return filled > 1 and (filled > 2 or unit_interval("shard", id) < SHARD_ENDS)


def _ends_group(rows: list[dict[str, Any]], following: dict[str, Any]) -> bool:
    half, full = schema.ROWS_AT_ONCE // 2, schema.ROWS_AT_ONCE
    return len(rows) == full or (len(rows) >= half and _image_id(rows[-1]) != _image_id(following))


def _image_id(row: dict[str, Any]) -> str | None:
    return (row["provenance"] or {}).get("image_id")


def _table(rows: list[dict[str, Any]]) -> Any:
    import pyarrow

    features = schema.features_of(rows[0])
    return pyarrow.Table.from_pylist([features.encode_example(row) for row in rows], schema=features.arrow_schema)


def _ids(shards: Iterable[Path]) -> Iterator[str]:
    from pyarrow.parquet import read_table

    for shard in shards:
        yield from map(str, read_table(shard, columns=["id"])["id"].to_pylist())


def save(rows: Iterable[dict[str, Any]], folder: Path, split: str = "train", shard_size: str = SHARD_SIZE) -> None:
    """Stream rows to `folder/data/SPLIT-0000i-of-0000n.parquet`, with the schema and the images inside.

    A file ends soon after `shard_size` of images or `SHARD_ROWS` rows. Equal rows give equal bytes. An image is stored
    once in a row group, which is full with `schema.ROWS_AT_ONCE` rows and, once half full, ends with the rows of an
    image. Files that an interrupted `save` left of this split are removed.

    Args:
        rows: with images as {"bytes", "path"} and class labels by name.

    Raises:
        InputError: rows break a rule. It lists all faults, and no file is left.
    """
    from pyarrow.parquet import ParquetWriter

    limit = shard_bytes(shard_size)
    fault_of = lru_cache(schema.ROWS_AT_ONCE)(fault)
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    ids = Hashes()
    faults: list[Fault] = []
    shards: list[Path] = []
    rows, more = iter(rows), True
    try:
        first = [*islice(rows, 1)]
        columns, rows = schema.features_of(first[0] if first else {}).arrow_schema, chain(first, rows)
        while more:
            more, size, held = False, 0, 0
            shards.append(data / f"{split}-{len(shards):05d}.partial")
            waiting: list[dict[str, Any]] = []
            stored: set[bytes] = set()  # images of the waiting rows
            with ParquetWriter(shards[-1], columns, **LAYOUT) as writer:
                for row in rows:
                    ids.add(str(row["id"]))
                    faults += schema.row_faults(row, lambda image: fault_of(image["bytes"]))
                    if _ends_group(waiting, row):
                        writer.write_table(_table(waiting))
                        waiting, stored = [], set()
                    waiting.append(row)
                    new = {image["bytes"] for image in [*row["images"], *(row["rejected_images"] or [])]} - stored
                    stored |= new
                    size += sum(map(len, new))
                    held += 1
                    if more := _is_full(max(size / limit, held / SHARD_ROWS), row["id"]):
                        break
                if waiting:  # readers refuse a file whose first row group is empty
                    writer.write_table(_table(waiting))
        if repeated := ids.repeated():
            faults += schema.repeated_ids(Counter(id for id in _ids(shards) if hash(id) in repeated))
        if faults:
            raise InputError(f"{number_of(len(faults), 'faults')} in the rows to be written:", faults)
        for left in {*data.glob(f"{split}-*")} - {*shards}:
            left.unlink()
        for number, shard in enumerate(shards):
            shard.rename(data / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
    finally:
        for shard in shards:
            shard.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: other splits
            data.rmdir()
