"""Writer of a preference dataset: Parquet files with the images inside."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo import schema
from mmedpo.data.images import Stored, fault
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import Fault, InputError

if TYPE_CHECKING:
    from datasets import Features

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


def _table(rows: list[dict[str, Any]], features: Features) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist([features.encode_example(row) for row in rows], schema=features.arrow_schema)


def _ids(files: Iterable[Path]) -> Iterator[str]:
    from pyarrow.parquet import read_table

    for file in files:
        yield from map(str, read_table(file, columns=["id"])["id"].to_pylist())


def repeats(ids: Callable[[], Iterable[str]]) -> list[Fault]:
    """Return a fault for each id that occurs more than once. `ids` is called again to name them."""
    hashes = Hashes()
    for id in ids():
        hashes.add(id)
    repeated = hashes.repeated()
    return schema.repeated_ids(Counter(id for id in ids() if hash(id) in repeated)) if repeated else []


def cut(sizes: Iterable[tuple[str, int]], shard_size: str = SHARD_SIZE) -> list[int]:
    """Return how many rows each file holds, of rows given as (id, bytes of images that are stored for it).

    A file ends soon after `shard_size` or `SHARD_ROWS` rows. The bytes may be estimates.

    Raises:
        InputError: `shard_size` is no size.
    """
    limit, lengths, held, size = shard_bytes(shard_size), list[int](), 0, 0
    for id, more in sizes:
        held, size = held + 1, size + more
        if _is_full(max(size / limit, held / SHARD_ROWS), id):
            lengths.append(held)
            held, size = 0, 0
    return [*lengths, held] if held else lengths


def write(rows: Iterable[dict[str, Any]], folder: Path, split: str, number: int, count: int) -> None:
    """Write one file, `folder/data/SPLIT-0000i-of-0000n.parquet`, whole or not at all; leave a finished one.

    Its bytes depend on its rows alone, so that tasks can write other files at the same time. Their ids are not compared
    with those of other files; see `repeats`.

    Args:
        rows: as for `save`. They are not iterated if the file exists.

    Raises:
        InputError: rows break a rule. It lists all faults.
    """
    file = _file(folder, split, number, count)
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    working = _working(file)
    rows = iter(rows)
    first = [*islice(rows, 1)]
    try:
        faults = _store(chain(first, rows), working, _features(first))
        _refuse(faults + repeats(lambda: _ids([working])))
        working.rename(file)
    finally:
        working.unlink(missing_ok=True)


def finish(folder: Path, split: str, count: int) -> None:
    """Remove what killed runs left of a split beside its `count` files.

    Raises:
        InputError: one of the files is missing.
    """
    files = {_file(folder, split, number, count) for number in range(count)}
    found = {*folder.glob(f"data/{split}-*"), *folder.glob(f"data/.{split}-*")}
    if missing := sorted(file.name for file in files - found):
        raise InputError(f"{folder} lacks {', '.join(missing)}. Run the command again with --resume.")
    for left in found - files:
        left.unlink(missing_ok=True)


def save(rows: Iterable[dict[str, Any]], folder: Path, split: str = "train", shard_size: str = SHARD_SIZE) -> None:
    """Stream rows to `folder/data/SPLIT-0000i-of-0000n.parquet`, with the schema and the images inside.

    A file ends as those of `cut`, by the bytes of its images. Equal rows give equal bytes. An image is stored once in a
    row group, which is full with `schema.ROWS_AT_ONCE` rows and, once half full, ends with the rows of an image. Other
    files of this split are removed.

    Args:
        rows: with images as {"bytes", "path"} and class labels by name.

    Raises:
        InputError: rows break a rule. It lists all faults, and no file is left.
    """
    limit, faults, working = shard_bytes(shard_size), list[Fault](), list[Path]()
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    try:
        rows = iter(rows)
        following = [*islice(rows, 1)]
        features = _features(following)
        while following or not working:
            working.append(_working(data / f"{split}-{len(working):05d}"))
            faults += _store(chain(following, rows), working[-1], features, limit)
            following = [*islice(rows, 1)]
        _refuse(faults + repeats(lambda: _ids(working)))
        for number, file in enumerate(working):
            file.rename(_file(folder, split, number, len(working)))
        finish(folder, split, len(working))
    finally:
        for file in working:
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: other splits
            data.rmdir()


def _file(folder: Path, split: str, number: int, count: int) -> Path:
    return folder / "data" / f"{split}-{number:05d}-of-{count:05d}.parquet"


def _working(file: Path) -> Path:
    """Return a temporary path beside a file. No two are equal: what a killed command left may still be written."""
    return file.with_name(f".{file.name}.{token_hex(4)}")


def _features(first: list[dict[str, Any]]) -> Features:
    return schema.features_of(first[0] if first else {})


def _store(rows: Iterator[dict[str, Any]], file: Path, features: Features, limit: int | None = None) -> list[Fault]:
    """Write rows to a Parquet file until it is full; return their faults."""
    from pyarrow.parquet import ParquetWriter

    faults, size = list[Fault](), 0
    waiting: list[dict[str, Any]] = []
    stored: set[bytes] = set()  # images of the waiting rows
    fault_of = lru_cache(schema.ROWS_AT_ONCE)(fault)

    def look(image: dict[str, Any]) -> str | None:
        return None if isinstance(image, Stored) and image.is_sound else fault_of(image["bytes"])

    def end_group() -> None:
        for row in waiting:  # not before: noising has decoded images of earlier rows by now
            faults.extend(schema.row_faults(row, look))
        if waiting:  # readers refuse a file whose first row group is empty
            writer.write_table(_table(waiting, features))
        waiting.clear()
        stored.clear()

    with ParquetWriter(file, features.arrow_schema, **LAYOUT) as writer:
        for held, row in enumerate(rows, 1):
            if _ends_group(waiting, row):
                end_group()
            waiting.append(row)
            new = {image["bytes"] for image in [*row["images"], *(row["rejected_images"] or [])]} - stored
            stored |= new
            size += sum(map(len, new))
            if limit is not None and _is_full(max(size / limit, held / SHARD_ROWS), row["id"]):
                break
        end_group()
    return faults


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise InputError(f"{number_of(len(faults), 'faults')} in the rows to be written:", faults)
