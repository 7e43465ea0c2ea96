"""Loading of datasets from a folder or the Hub in any layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import answers, hub, safe_paths
from mmedpo.data.images import open_rgb
from mmedpo.data.text import number_of
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset
    from PIL.Image import Image

REMEDY = "Give a folder written by `mmedpo curate` or a Hub dataset id."
PATTERN = frozenset("*?[]{}")  # characters that `datasets` reads as a pattern
MODEL = ("config.json", "adapter_config.json")  # files of a model's folder, which `datasets` would read as rows
COUNTED = re.compile(r"-of-(\d{1,9})$")  # end of a shard's name


def load_splits(path: str, streaming: bool = False, revision: str | None = None) -> Any:
    """Load all splits of a dataset folder or Hub id, without checking rows.

    Args:
        path: a folder or a Hub id, or source:FOLDER for the gold answers of a source (`answers`).
        streaming: return an IterableDatasetDict, which copies nothing into the cache, instead of a DatasetDict.
        revision: of a dataset on the Hub.

    Raises:
        InputError: nothing there, nothing that `datasets` can read, or images outside of the dataset.
    """
    from datasets import config, load_dataset, load_dataset_builder
    from datasets.data_files import DataFilesList
    from datasets.exceptions import DatasetsError
    from pyarrow.dataset import ParquetFragmentScanOptions

    if answers.named(path):
        return answers.splits(path)
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # send no telemetry about folders of this machine
    if not path.strip() or not path.isprintable():
        raise InputError(f"{path!r} is not the name of a dataset. {REMEDY}")
    if Path(path).is_dir() and Path(path).name in ("", ".."):  # `datasets` asks for a name
        path = str(Path(path).resolve())
    # Pass files by name: if a card lists `configs`, `datasets` caches by the folder's name alone.
    files = _shards_by_split(path)
    if not files and Path(path).is_dir() and (held := sorted(PATTERN.intersection(str(Path(path).resolve())))):
        raise InputError(
            f"{path}: {' '.join(held)} in its path would be read as a pattern, since it has no data/*.parquet. Rename "
            "the folder."
        )
    if not files and any((Path(path) / name).is_file() for name in MODEL):
        raise InputError(f"{path}: is the folder of a model, without a dataset's data/*.parquet. {REMEDY}")
    try:
        if files:
            # Names in a plain list would be read as patterns.
            listed = {name: DataFilesList(list(map(str, own)), _states(own)) for name, own in files.items()}
            # Without this, Arrow reads a whole file ahead into memory.
            scan = ParquetFragmentScanOptions(pre_buffer=False)
            # By default a batch is a row group, whatever it unpacks to.
            found = load_dataset(
                "parquet", data_files=listed, streaming=streaming, fragment_scan_options=scan,
                batch_size=schema.ROWS_AT_ONCE,
            )  # fmt: skip
        else:
            card = load_dataset_builder(path, revision=revision).config.data_files or {}
            _refuse_rows_outside(path, [file for own in card.values() for file in own])
            found = load_dataset(path, streaming=streaming, revision=revision)
            if not streaming and _is_older(found, Path(path)):  # `datasets` compares times of files only
                found = load_dataset(path, download_mode="force_redownload")
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:  # RuntimeError: a dataset script
        raise _unread(path, error) from error
    if streaming:
        return type(found)({name: _guarded(path, split) for name, split in found.items()})
    for split in found.values():
        _refuse_files_outside(path, split.features, split.data)
    return found


@dataclass(frozen=True)
class Pictures:
    """Images of a split's rows. Pickled by name, since another machine may lack this one's cache."""

    name: str
    revision: str | None
    split: str
    rows: Any  # {"images": [{"bytes", "path"}]}

    def __call__(self, place: tuple[int, int]) -> Image:
        """Return an image, by the numbers of its row and in it, as RGB; in any thread."""
        row, number = place
        return open_rgb(self.rows[row]["images"][number])

    def __reduce__(self) -> Any:
        return pictures, (self.name, self.revision, self.split)


def pictures(name: str, revision: str | None, split: str, dataset: Dataset | None = None) -> Pictures:
    """Return the images of a split; `dataset` is the split, if it is already loaded."""
    dataset = load_splits(name, revision=revision)[split] if dataset is None else dataset
    return Pictures(name, revision, split, schema.undecoded(dataset.select_columns(["images"])))


def _unread(path: str, error: Exception) -> InputError:
    if "corresponds to no data" in str(error):
        return InputError(f"{path!r} has no rows. Give another dataset.")
    return InputError(
        f"{path!r} cannot be loaded as a dataset: {hub.why_unread(error, path).removesuffix('.')}. {REMEDY}"
    )


def _guarded(path: str, split: IterableDataset) -> IterableDataset:
    """Return a streamed split that checks rows before it reads their images."""
    features = split.features

    def check(rows: Any) -> Any:
        _refuse_files_outside(path, features or {}, rows)
        return rows

    read = split.with_format("arrow").map(check, batched=True, batch_size=schema.ROWS_AT_ONCE, features=features)
    return read.with_format(None)


def _refuse_rows_outside(path: str, files: Iterable[str | Path]) -> None:
    """Raise InputError where files of rows, which a card or a link of the dataset names, are no part of it."""
    here = Path(path).exists()

    def is_own(file: str) -> bool:
        remote = "://" in file
        return file.startswith("hf://") if not here else not remote and safe_paths.is_inside(Path(file), [Path(path)])

    if outside := sorted(file for file in map(str, files) if not is_own(file)):
        raise InputError(
            f"{path}: its card or a link names files outside of the dataset, such as {outside[0]!r}. Copy them into "
            "it, or load them from where they are."
        )


def _refuse_files_outside(path: str, features: Mapping[str, Any], rows: Any) -> None:
    """Raise InputError if rows of an Arrow table name image files outside of the dataset; rows may be from anybody."""
    from datasets import config

    homes = [Path(path)] if Path(path).exists() else [Path(config.HF_CACHE_HOME)]
    named = set(_named_files(features, rows))
    if outside := sorted(name for name in named if "://" in name or not safe_paths.is_inside(Path(name), homes)):
        raise InputError(
            f"{path}: names image files outside of the dataset ({outside[0]!r}{', ...' * (len(outside) > 1)}), which "
            "are not read. Write it again with its images inside, as `mmedpo curate` does."
        )


def _named_files(features: Mapping[str, Any], rows: Any) -> Iterator[str]:
    """Yield the paths of images whose bytes are not in an Arrow table."""
    from datasets import Image, List

    for name, feature in features.items():
        nested = isinstance(feature, List) and isinstance(feature.feature, Image)
        for chunk in rows.column(name).chunks if nested or isinstance(feature, Image) else ():
            images = chunk.flatten() if nested else chunk
            held = images.field("bytes")
            if held.null_count:
                yield from (path for path in images.field("path").filter(held.is_null()).to_pylist() if path)


def _states(files: list[Path]) -> list[tuple[str, ...]]:
    """Return times and sizes, by which `datasets` notices changed files. No copy or unpacking can set `st_ctime`."""
    stats = [file.stat() for file in files]
    return [tuple(map(str, (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size))) for stat in stats]


def _is_older(cached: Any, folder: Path) -> bool:
    """Return True if the cached copy of a folder is older than one of its files."""
    made = [Path(copy["filename"]).stat().st_mtime for split in cached.values() for copy in split.cache_files]
    changed = (file.stat().st_ctime for file in folder.rglob("*") if file.is_file())
    return bool(made) and min(made) <= max(changed, default=0.0)


def shards(path: str) -> list[Path]:
    """Return the Parquet files of a dataset folder; empty for another layout or a Hub id.

    Raises:
        InputError: one is a link that leads out of the folder.
    """
    files = sorted(Path(path).glob("data/*.parquet"))
    _refuse_rows_outside(path, files)
    return files


def split_of(shard: Path) -> str:
    return shard.name.split("-")[0]


def _shards_by_split(path: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in shards(path):
        found.setdefault(split_of(file), []).append(file.absolute())
    for split, files in found.items():
        _refuse_incomplete(path, split, files)
    return found


def _refuse_incomplete(path: str, split: str, files: list[Path]) -> None:
    """Raise InputError where the names of a split's files, SPLIT-0000i-of-0000n, are not those of one whole set."""
    counted = {int(number[1]) for file in files if (number := COUNTED.search(file.stem))}
    if not counted:
        return
    names = {f"{split}-{i:05d}-of-{max(counted):05d}" for i in range(max(counted))}
    if wrong := sorted(names ^ {file.stem for file in files}):
        missing = wrong[0] in names
        raise InputError(
            f"{path}: the file {wrong[0]}.parquet of its split {split!r} "
            + ("is missing. Copy or download the dataset again." if missing else
               f"does not belong to the split's {number_of(max(counted), 'files')}. Remove it.")
        )  # fmt: skip


@dataclass(frozen=True)
class Undecoded:
    """Rows of a folder's Parquet files, images as {"bytes", "path"}; each iteration streams them from disk."""

    path: str
    files: list[Path]
    features: Features  # of the first file; the others are cast to them

    def __iter__(self) -> Iterator[dict[str, Any]]:
        from datasets.table import table_cast
        from pyarrow import Table
        from pyarrow.parquet import ParquetFile

        expected = self.features.arrow_schema
        for file in self.files:
            # With flat memory `datasets` would read the whole footer again for each row group.
            with ParquetFile(file) as opened:
                for batch in opened.iter_batches(schema.ROWS_AT_ONCE):
                    table = table_cast(Table.from_batches([batch]), expected)
                    _refuse_files_outside(self.path, self.features, table)
                    yield from table.to_pylist()


def undecoded_splits(path: str) -> dict[str, Any]:
    """Stream the splits of `load_splits` with undecoded images; each has `features` and can be iterated again.

    Raises:
        InputError: as `load_splits`; while iterating, for image files outside of the dataset.
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
    # `reshard` reads by row groups instead of whole Parquet files.
    return found or {
        name: schema.undecoded(dataset).reshard() for name, dataset in load_splits(path, streaming=True).items()
    }


def load_pairs(path: str) -> Dataset:
    """Load the training split, else the first, of a folder or Hub id, with undecoded images and without row checks.

    Raises:
        InputError: no such dataset, or one without the schema's columns.
    """
    from datasets import concatenate_datasets

    splits = load_splits(path)
    if answers.named(path):
        return schema.undecoded(concatenate_datasets([*splits.values()]))
    dataset = splits.get("train", next(iter(splits.values())))
    faults = schema.column_faults(dataset.features)
    if faults:
        raise InputError(f"{path} is not a preference dataset, as `mmedpo curate` writes them:", faults)
    return schema.undecoded(dataset)


def load_split(path: str, split: str, streaming: bool = False, revision: str | None = None) -> Any:
    """Load one split, as `load_splits`.

    Raises:
        InputError: as `load_splits`, or no such split.
    """
    splits = load_splits(path, streaming, revision)
    if split not in splits:
        raise InputError(f"{path} has no split {split!r}; it has {', '.join(splits)}.")
    return splits[split]


def load(path: str, split: str = "train") -> Dataset:
    """Load one split of a preference dataset from a folder or a Hub id, and validate it.

    Raises:
        InputError: no such dataset or split, or rows that break the schema, with all faults.
    """
    dataset = load_split(path, split)
    faults = schema.validate(dataset)
    if faults:
        raise InputError(f"{path} (split {split!r}) breaks the preference schema:", faults)
    return dataset
