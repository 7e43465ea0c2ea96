"""Fingerprint of a model's weights, which another folder, another name and other shards of them share."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from mmedpo import hub
from mmedpo.errors import InputError

BLOCKS, SIZE = 64, 4096  # of a tensor that is not read whole, so many bytes are read at so many places
WHOLE, TOTAL = 16 << 20, 2 << 30  # bytes of a tensor that is read whole at most, and of all of them
PREFIXES = {"base_model", "model", "language_model"}  # which versions of transformers put in and leave out


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
        files = _files(name, revision, download)
        tensors = [(file, *tensor) for file in files for tensor in _tensors(file)]
        whole = min(WHOLE, TOTAL // max(len(tensors), 1))
        digests = sorted(_digest(*tensor, whole) for tensor in tensors)
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error
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
