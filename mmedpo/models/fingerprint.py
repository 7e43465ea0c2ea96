"""Digests of a model's weights, of all files that decide its answers, and of a dataset's files."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmedpo.data import answers, hub, loading
from mmedpo.errors import InputError
from mmedpo.runs.json_files import sha256

BLOCKS, SIZE = 64, 4096  # blocks read of a large tensor, and bytes of each
WHOLE, TOTAL = 16 << 20, 2 << 30  # most bytes read whole, of one tensor and of all tensors
PREFIXES = {"base_model", "model", "language_model"}  # parts of names that differ between transformers versions
# Files of transformers that decide a model's answers, beside its weights.
BESIDE = (
    "config.json", "generation_config.json", "*processor_config.json", "tokenizer*.json", "*tokens*.json", "vocab*",
    "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
SETTLED = 2.0  # seconds; a later change of a file always shows in its time stamp

T = TypeVar("T")


def _once(digest: Callable[..., T]) -> Callable[..., T]:
    """Cache a digest of files in this process until a file is written or replaced."""
    known: dict[tuple[Any, ...], T] = {}

    def asked(*files: Path) -> T:
        stats = [file.stat() for file in files]
        if any(time.time() - stat.st_ctime < SETTLED for stat in stats):
            return digest(*files)
        key = tuple(
            (file, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            for file, stat in zip(files, stats, strict=True)
        )
        if key not in known:
            known[key] = digest(*files)
        return known[key]

    return asked


def fingerprint(name: str, revision: str | None = None, download: bool = True) -> str | None:
    """Return the SHA-256 (hexadecimal) of all tensors in a model's safetensors files, from a folder or the Hub.

    It covers name (without `PREFIXES`), dtype, shape and bytes of each tensor, however the tensors are spread over
    files. Of tensors above `WHOLE` bytes, `BLOCKS` evenly spread blocks are read, so that a 7B model takes seconds;
    `TOTAL` lowers that limit in models with very many tensors. A change between the blocks goes unnoticed. Tied weights
    saved twice, or renamed beyond `PREFIXES`, give another fingerprint.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        download: False reads Hub files from the cache only.

    Returns:
        None without safetensors files, or without `download` where they are not in the cache.

    Raises:
        InputError: a file is torn, or the Hub cannot be asked.
    """
    try:
        return _of_files(*_files(name, revision, download))
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error


def model_contents(name: str, revision: str | None = None, also: Sequence[str] = ()) -> str:
    """Return the SHA-256 (hexadecimal) of all that decides a model's answers.

    It covers `fingerprint` and the bytes of configurations, tokenizer, processor and chat templates (`BESIDE`). A copy
    in another folder has the same digest.

    Args:
        name: folder or Hub id; missing Hub files are downloaded.
        revision: branch, tag or commit on the Hub.
        also: patterns of further files, such as pickled weights.

    Raises:
        InputError: there is no such folder, a file is torn, or the Hub cannot be asked.
    """
    patterns = (*BESIDE, *also)
    folder = _folder(name, revision, patterns)
    found = hashlib.sha256((fingerprint(name, revision) or "").encode())
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
        found.update(f"\n{file.relative_to(folder).as_posix()} {file_contents(file)}".encode())
    return found.hexdigest()


def dataset_contents(
    name: str, splits: Collection[str], revision: str | None = None, streaming: bool = False
) -> str | None:
    """Return the SHA-256 (hexadecimal) of the files that hold these splits of a dataset.

    These are a folder's Parquet shards, or all its files in another layout, or the cached copies of a Hub dataset. A
    dataset streamed from the Hub is identified by its commit, `revision`.

    Raises:
        InputError: as `loading.load_splits`.
    """
    if answers.named(name):
        return answers.contents(name, splits)
    folder = Path(name)
    files = [file for file in loading.shards(name) if loading.split_of(file) in splits]
    if not files and folder.is_dir():
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file.relative_to(folder))]
    elif not files and streaming:
        return revision
    elif not files:
        loaded = loading.load_splits(name, revision=revision)
        there = [loaded[split] for split in sorted(splits) if split in loaded]
        files = [Path(copy["filename"]) for split in there for copy in split.cache_files]
    found = hashlib.sha256()
    for file in files:
        place = file.relative_to(folder) if file.is_relative_to(folder) else file.name
        found.update(f"{place} {file_contents(file)}\n".encode())
    return found.hexdigest()


@_once
def file_contents(file: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file's bytes."""
    return sha256(file)


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _folder(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder itself, or the folder of the Hub's cache with the files of these patterns."""
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    if (folder := Path(name)).is_dir():
        return folder
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns]))
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        raise InputError(f"The model {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error


@_once
def _of_files(*files: Path) -> str | None:
    tensors = [(file, *tensor) for file in files for tensor in _tensors(file)]
    whole = min(WHOLE, TOTAL // max(len(tensors), 1))
    digests = sorted(_digest(*tensor, whole) for tensor in tensors)
    return hashlib.sha256(b"".join(digests)).hexdigest() if digests else None


def _files(name: str, revision: str | None, download: bool) -> list[Path]:
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
    from transformers.utils.hub import cached_file

    def find(file: str) -> Path | None:
        found = cached_file(
            name, file, revision=revision, local_files_only=not download,
            _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=download,
        )  # fmt: skip
        return None if found is None else Path(found)

    if single := find(SAFE_WEIGHTS_NAME):
        return [single]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index else []
    files = [find(shard) for shard in shards]
    return [] if None in files else [file for file in files if file is not None]


def _tensors(file: Path) -> list[tuple[str, int, int]]:
    """Return description (name, dtype, shape), first byte and end byte of each tensor in a file."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))  # of the JSON header that follows
        header = json.loads(opened.read(length))
    return [
        (f"{_plain(name)} {tensor['dtype']} {tensor['shape']} ", *(8 + length + at for at in tensor["data_offsets"]))
        for name, tensor in header.items()
        if name != "__metadata__"
    ]


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in PREFIXES)


def _digest(file: Path, described: str, begin: int, end: int, whole: int) -> bytes:
    size, places = end - begin, [begin]
    if size > whole:
        size, places = SIZE, [begin + (end - begin - SIZE) * block // (BLOCKS - 1) for block in range(BLOCKS)]
    found = hashlib.sha256(described.encode())
    with file.open("rb") as opened:
        for place in places:
            opened.seek(place)
            found.update(opened.read(size))
    return found.digest()
