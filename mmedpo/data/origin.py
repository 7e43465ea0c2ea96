"""Origin of a dataset: its manifest, its commit on the Hub, and whether its source is restricted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import answers, credentialed, hub, loading
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

MANIFEST = {  # types of entries
    "source": dict, "counts": dict, "rejects": dict, "weights": dict, "standins": list, "burnt_text": dict,
}  # fmt: skip
ORIGIN = ["source", "license"]  # columns that identify restricted rows


def credentialed_source(name: str | Path, revision: str | None = None, streaming: bool = False) -> str | None:
    """Return the restricted source of a dataset (a folder or Hub id), by its manifest or any row; None for others.

    Where no manifest names the source, the dataset's own name and path are looked at. Rows of a dataset streamed from
    the Hub are not read: without a source in its manifest it counts as restricted, under its own name.

    Raises:
        InputError: as `loading.load_splits`.
    """
    name = str(name)
    if answers.named(name):
        source = answers.read(name)
        return source.name if source.credentialed else None
    if Path(name).exists() and credentialed.has_marker(Path(name)):
        return Path(name).resolve().name
    manifest = dataset_manifest(name, revision)
    if found := credentialed.first([manifest]):
        return found
    here = Path(name).exists()
    if not manifest.get("source") and (credentialed.of_path(Path(name)) if here else credentialed.telling([name])):
        return Path(name).resolve().name if here else name
    if streaming and not here:
        return None if manifest.get("source") else name
    return credentialed.first(
        {"source": {"name": source, "license": terms}} for source, terms in _origins(name, revision)
    )


def _origins(name: str, revision: str | None) -> set[tuple[Any, Any]]:
    """Return the distinct (source, licence) of the rows of all splits."""
    found: set[tuple[Any, Any]] = set()
    for rows in _batches(name, revision):
        columns = [rows.column(column).to_pylist() if column in rows.schema.names else [None] for column in ORIGIN]
        found.update(zip_longest(*columns))
    return found


def _batches(name: str, revision: str | None) -> Iterator[RecordBatch]:
    """Yield the columns ORIGIN of all rows, few at a time: a dictionary can pack one long text for all of them."""
    from pyarrow.parquet import ParquetFile

    for file in (files := loading.shards(name)):  # loading them would copy their images into the cache
        with ParquetFile(file) as opened:
            yield from opened.iter_batches(schema.ROWS_AT_ONCE, columns=ORIGIN)
    for split in () if files else loading.load_splits(name, revision=revision).values():
        yield from split.data.table.to_batches(schema.ROWS_AT_ONCE)


def dataset_manifest(name: str, revision: str | None) -> dict[str, Any]:
    """Return the manifest.json of a dataset folder or Hub dataset, empty without one.

    Raises:
        InputError: an entry is of another type than `mmedpo curate` writes.
    """
    if answers.named(name):
        return {"source": answers.read(name).record(None)}
    manifest = hub.recorded(name, "manifest.json", "dataset", revision) or {}
    if wrong := [key for key, kind in MANIFEST.items() if not isinstance(manifest.get(key, kind()), kind)]:
        raise InputError(
            f"{name}: the entry {wrong[0]!r} of its manifest.json is not a {MANIFEST[wrong[0]].__name__}, as "
            "`mmedpo curate` writes it. Copy or download the dataset again."
        )
    return manifest


def is_local(name: str) -> bool:
    """Return True for a dataset that is a folder here, or a source's."""
    return answers.named(name) or Path(name).exists()


def dataset_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a Hub dataset's revision; None for a folder, `revision` if the Hub is out of reach."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if is_local(name):
        return None
    with suppress(HfHubHTTPError, HTTPError, OSError, HFValidationError):  # reported by the reader of the dataset
        return hub.commit_of(name, revision)
    return revision


def trained_datasets(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the datasets of a training.json: {"name", "revision", "is_local", "manifest"}, of a mixture with more."""
    one = {key: training.get(f"dataset_{key}") for key in ("revision", "is_local", "manifest")}
    return training.get("datasets") or [{"name": training.get("dataset"), **one}]
