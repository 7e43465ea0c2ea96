"""Digests of a model (of its weights, which other shards of them share, and of all that decides its answers) and of a
dataset."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mmedpo.data import hub, loading
from mmedpo.errors import InputError
from mmedpo.runs.run_folder import sha256

BLOCKS, SIZE = 64, 4096  # of a tensor that is not read whole, so many bytes are read at so many places
WHOLE, TOTAL = 16 << 20, 2 << 30  # bytes of a tensor that is read whole at most, and of all of them
PREFIXES = {"base_model", "model", "language_model"}  # which versions of transformers put in and leave out
# What decides a model's answers beside its weights, as transformers saves it.
BESIDE = (
    "config.json", "generation_config.json", "*processor_config.json", "tokenizer*.json", "*tokens*.json", "vocab*",
    "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*", "additional_chat_templates/*",
)  # fmt: skip
SETTLED = 2.0  # seconds after which a file that is written again surely has another time of change

T = TypeVar("T")


def _once(digest: Callable[..., T]) -> Callable[..., T]:
    """A digest of files that this process computes once, until one of them is written or replaced."""
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
    """SHA-256 (hexadecimal) of all tensors in a model's safetensors files, of a folder or the Hub.

    Of each tensor it takes name (without `PREFIXES`), dtype, shape and bytes, in whichever file it lies. Tensors above
    `WHOLE` bytes (less in models of very many tensors, `TOTAL`) give `BLOCKS` evenly spread blocks, so that a 7B model
    is read in seconds. A change between these blocks alone is not seen. A model saved with its tied weights twice, or
    with other renamings than `PREFIXES`, counts as another.

    Returns:
        None where there are no such files, or without `download` where the Hub's are not in the cache.

    Raises:
        InputError: a file is torn, or the Hub cannot be asked.
    """
    try:
        return _of_files(*_files(name, revision, download))
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error


def model_contents(name: str, revision: str | None = None, also: Sequence[str] = ()) -> str:
    """SHA-256 (hexadecimal) of all that decides a model's answers: `fingerprint`, and the bytes of its configurations,
    tokenizer, processor and chat templates (`BESIDE`). A copy has the same, whatever its folder is called.

    Args:
        name: folder, or Hub id, of which the files are downloaded where they are not in the cache.
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
    """SHA-256 (hexadecimal) of the bytes of the files that hold these splits of a dataset.

    They are the Parquet shards of a folder, or all its files where it has another layout; of a Hub dataset its copies
    in the cache. One that is streamed from the Hub is known by its commit, `revision`, alone.

    Raises:
        InputError: as `loading.load_splits`.
    """
    folder = Path(name)
    files = [file for file in loading.shards(name) if loading.split_of(file) in splits]
    if not files and folder.is_dir():
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _hidden(file.relative_to(folder))]
    elif not files and streaming:
        return revision
    elif not files:
        loaded = loading.load_splits(name, revision=revision)
        files = [Path(copy["filename"]) for split in sorted(splits) for copy in loaded[split].cache_files]
    found = hashlib.sha256()
    for file in files:
        place = file.relative_to(folder) if file.is_relative_to(folder) else file.name
        found.update(f"{place} {file_contents(file)}\n".encode())
    return found.hexdigest()


@_once
def file_contents(file: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    return sha256(file)


def _hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _folder(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of that name, or the one of the Hub's cache that holds the files of these patterns."""
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
    """Each tensor of a file: what its header says of it, and where its bytes begin and end."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))  # of the JSON header, which comes next
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
