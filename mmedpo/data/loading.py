"""Datasets as they are loaded, from a folder or the Hub, in whatever layout; and whose data they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import credentialed, hub, safe_paths
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

PATTERN = frozenset("*?[]{}")  # characters of a path that `datasets` reads as a pattern
MODEL = ("config.json", "adapter_config.json")  # files of a model's folder, which would be read as rows
SAID = ["source", "license"]  # columns that tell whose data a row is


def load_splits(path: str, streaming: bool = False, revision: str | None = None) -> Any:
    """All splits of a dataset folder or Hub id, no rule checked: a DatasetDict, or where `streaming` an
    IterableDatasetDict, which copies nothing into the cache. `revision` is of a dataset on the Hub.

    Raises:
        InputError: nothing there, or nothing that `datasets` can read.
    """
    from datasets import config, load_dataset
    from datasets.data_files import DataFilesList
    from datasets.exceptions import DatasetsError
    from pyarrow.dataset import ParquetFragmentScanOptions

    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # nobody is told what is loaded, least of all a folder of this machine
    # Named files: where a folder's card lists `configs`, `datasets` would cache it by the folder's name alone.
    files = _shards_by_split(path)
    if not files and Path(path).is_dir() and (held := sorted(PATTERN.intersection(str(Path(path).resolve())))):
        raise InputError(
            f"{path}: {' '.join(held)} in the path of a folder without data/*.parquet would be read as a pattern. "
            "Rename the folder."
        )
    if not files and any((Path(path) / name).is_file() for name in MODEL):
        raise InputError(
            f"{path}: is the folder of a model and holds no dataset of data/*.parquet. Give a folder written by "
            "`mmedpo curate` or a Hub dataset id."
        )
    try:
        if files:
            # Lists of this kind are taken as they are; names of other lists would be read as patterns.
            listed = {name: DataFilesList(list(map(str, own)), _states(own)) for name, own in files.items()}
            # Arrow would read a whole file ahead, of however many gigabytes.
            scan = ParquetFragmentScanOptions(pre_buffer=False)
            found = load_dataset("parquet", data_files=listed, streaming=streaming, fragment_scan_options=scan)
        else:
            found = load_dataset(path, streaming=streaming, revision=revision)
            if not streaming and _is_older(found, Path(path)):  # `datasets` asks for times of files alone
                found = load_dataset(path, download_mode="force_redownload")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: it has a script
        raise _unread(path, error) from error
    if streaming:
        return type(found)({name: _guarded(path, split) for name, split in found.items()})
    for split in found.values():
        _refuse_files_outside(path, split.features, split.data)
    return found


def _unread(path: str, error: Exception) -> InputError:
    return InputError(
        f"{path!r} cannot be loaded as a dataset: {hub.why_unread(error, path).removesuffix('.')}. "
        "Give a folder written by `mmedpo curate` or a Hub dataset id."
    )


def _guarded(path: str, split: IterableDataset) -> IterableDataset:
    """A streamed split, whose rows are checked as they come and before an image is read."""
    features = split.features

    def check(rows: Any) -> Any:
        _refuse_files_outside(path, features or {}, rows)
        return rows

    read = split.with_format("arrow").map(check, batched=True, batch_size=schema.ROWS_AT_ONCE, features=features)
    return read.with_format(None)


def _refuse_files_outside(path: str, features: Mapping[str, Any], rows: Any) -> None:
    """Raise InputError where images are named, not held, and lie outside of the dataset: rows may be anybody's.

    Args:
        rows: an Arrow table.
    """
    from datasets import config

    homes = [Path(path)] if Path(path).exists() else [Path(config.HF_CACHE_HOME)]
    named = set(_named_files(features, rows))
    if outside := sorted(name for name in named if "://" in name or not safe_paths.is_inside(Path(name), homes)):
        raise InputError(
            f"{path}: {len(outside)} images are no part of the dataset but files elsewhere, such as {outside[0]!r}. "
            "Write it anew with its images inside, as `mmedpo curate` does."
        )


def _named_files(features: Mapping[str, Any], rows: Any) -> Iterator[str]:
    """Paths of images of which an Arrow table does not hold the bytes."""
    from datasets import Image, List

    for name, feature in features.items():
        nested = isinstance(feature, List) and isinstance(feature.feature, Image)
        for chunk in rows.column(name).chunks if nested or isinstance(feature, Image) else ():
            images = chunk.flatten() if nested else chunk
            held = images.field("bytes")
            if held.null_count:
                yield from (path for path in images.field("path").filter(held.is_null()).to_pylist() if path)


def _states(files: list[Path]) -> list[tuple[str, ...]]:
    """By which `datasets` knows files that changed. No copy or unpacking can set the time of change (`st_ctime`)."""
    stats = [file.stat() for file in files]
    return [tuple(map(str, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))) for stat in stats]


def _is_older(cached: Any, folder: Path) -> bool:
    """Whether a copy in the cache is older than a file of the folder that it was made of."""
    made = [Path(copy["filename"]).stat().st_mtime for split in cached.values() for copy in split.cache_files]
    changed = (file.stat().st_ctime for file in folder.rglob("*") if file.is_file())
    return bool(made) and min(made) <= max(changed, default=0.0)


def shards(path: str) -> list[Path]:
    """The Parquet files of a dataset folder; none where it has another layout, or is on the Hub."""
    return sorted(Path(path).glob("data/*.parquet"))


def split_of(shard: Path) -> str:
    return shard.name.split("-")[0]


def _shards_by_split(path: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in shards(path):
        found.setdefault(split_of(file), []).append(file.absolute())
    return found


@dataclass(frozen=True)
class Undecoded:
    """Rows of a folder's Parquet files, images as {"bytes", "path"}; iterating reads them anew, a few at a time."""

    path: str
    files: list[Path]
    features: Features  # of the first file, which the others keep to

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from datasets.table import table_cast
        from pyarrow import Table
        from pyarrow.parquet import ParquetFile

        expected = self.features.arrow_schema
        for file in self.files:
            # Not through `datasets`: to keep memory flat it would read the whole footer anew for each row group.
            with ParquetFile(file) as opened:
                for batch in opened.iter_batches(schema.ROWS_AT_ONCE):
                    table = table_cast(Table.from_batches([batch]), expected)
                    _refuse_files_outside(self.path, self.features, table)
                    yield from table.to_pylist()


def undecoded_splits(path: str) -> dict[str, Any]:
    """Splits as `load_splits` finds them, streamed, no image decoded: each has `features` and can be iterated again.

    Raises:
        InputError: as `load_splits`; while iterating, where images are named, not held, and lie outside of the dataset.
    """
    from datasets import Features
    from pyarrow.parquet import read_schema

    try:
        found = {
            name: Undecoded(path, files, Features.from_arrow_schema(read_schema(files[0])))
            for name, files in _shards_by_split(path).items()
        }
    except (OSError, ValueError) as error:
        raise _unread(path, error) from error
    # By row groups: a whole Parquet file at a time would be read ahead into memory.
    return found or {
        name: schema.undecoded(dataset).reshard() for name, dataset in load_splits(path, streaming=True).items()
    }


def credentialed_source(name: str | Path, revision: str | None = None, streaming: bool = False) -> str | None:
    """The credentialed source of a dataset (a folder or Hub id), by its manifest or by any of its rows; None: it has
    none. The one answer to whether a dataset is credentialed.

    Of a dataset that is streamed from the Hub no row is asked: where its manifest names no source either, it counts as
    credentialed by its own name.

    Raises:
        InputError: as `load_splits`.
    """
    name = str(name)
    if Path(name).exists() and credentialed.has_marker(Path(name)):
        return Path(name).resolve().name
    manifest = dataset_manifest(name, revision)
    if found := credentialed.first([manifest]):
        return found
    if streaming and not Path(name).exists():
        return None if manifest.get("source") else name
    return credentialed.first({"source": {"name": source, "license": terms}} for source, terms in _said(name, revision))


def _said(name: str, revision: str | None) -> set[tuple[Any, Any]]:
    """What the rows of all splits say: source and licence."""
    import pyarrow.parquet as parquet

    # Shards are not loaded: that would copy their images into the cache.
    tables = [parquet.read_table(file, columns=SAID) for file in shards(name)]
    if not tables:
        tables = [split.data.table for split in load_splits(name, revision=revision).values()]
    found: set[tuple[Any, Any]] = set()
    for table in tables:
        columns = [table[column].to_pylist() if column in table.column_names else [None] for column in SAID]
        found.update(zip_longest(*columns))
    return found


def dataset_manifest(name: str, revision: str | None) -> dict[str, Any]:
    """The manifest.json of a dataset folder or Hub dataset, empty where it has none."""
    return hub.recorded(name, "manifest.json", "dataset", revision) or {}


def load_pairs(path: str) -> Dataset:
    """The training split (else the first one) of a folder or Hub id, images undecoded; no row rule is checked.

    Raises:
        InputError: no such dataset, or one without the schema's columns.
    """
    splits = load_splits(path)
    dataset = splits.get("train", next(iter(splits.values())))
    faults = schema.column_faults(dataset.features)
    if faults:
        raise InputError(f"{path} is no preference dataset, as `mmedpo curate` writes them:", faults)
    return schema.undecoded(dataset)


def dataset_commit(name: str, revision: str | None) -> str | None:
    """The commit that a Hub dataset's revision is now; None for a folder, `revision` where the Hub is out of reach."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if Path(name).exists():
        return None
    with suppress(HfHubHTTPError, HTTPError, OSError, HFValidationError):  # whoever reads it, says what is missing
        return HfApi().dataset_info(name, revision=revision).sha
    return revision


def load_split(path: str, split: str, streaming: bool = False, revision: str | None = None) -> Any:
    """One of `load_splits`. Raises InputError where there is no such split."""
    splits = load_splits(path, streaming, revision)
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def load(path: str, split: str = "train") -> Dataset:
    """Load one split of a preference dataset from a folder or a Hub id, and check it.

    Raises:
        InputError: no such dataset or split, or rows that break the schema; all faults are reported together.
    """
    dataset = load_split(path, split)
    faults = schema.validate(dataset)
    if faults:
        raise InputError(f"{path} (split {split!r}) breaks the preference schema:", faults)
    return dataset
