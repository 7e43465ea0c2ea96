"""Fingerprint of a model's weights, which another folder, another name and other shards of them share."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import BinaryIO

from mmedpo import hub
from mmedpo.errors import InputError

BLOCKS, SIZE = 4, 1024  # of each tensor so many bytes are read at so many places


def fingerprint(name: str, revision: str | None = None, download: bool = True) -> str | None:
    """SHA-256 (hexadecimal) of all tensors in a model's safetensors files, of a folder or the Hub.

    Of each tensor it takes dtype, shape and `BLOCKS` evenly spread blocks of bytes, whatever the tensor is called and
    in whichever file it lies: a training changes far more numbers than it leaves, and a 7B model is read in a moment.

    Returns:
        None where there are no such files, or without `download` where the Hub's are not in the cache.

    Raises:
        InputError: a file is torn, or the Hub cannot be asked.
    """
    try:
        files = _files(name, revision, download)
        tensors = {digest for file in files for digest in _tensors(file)}
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"The weights of {name!r} cannot be loaded: {hub.why_unread(error, name)}") from error
    return hashlib.sha256(b"".join(sorted(tensors))).hexdigest() if tensors else None


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


def _tensors(file: Path) -> list[bytes]:
    """A digest of each tensor of a file; the format begins with the length of its JSON header."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
        return [
            hashlib.sha256(
                f"{tensor['dtype']} {tensor['shape']} ".encode()
                + _sampled(opened, 8 + length + tensor["data_offsets"][0], 8 + length + tensor["data_offsets"][1])
            ).digest()
            for name, tensor in header.items()
            if name != "__metadata__"
        ]


def _sampled(opened: BinaryIO, begin: int, end: int) -> bytes:
    last = end - begin - SIZE
    places = sorted({begin + max(last, 0) * block // (BLOCKS - 1) for block in range(BLOCKS)})
    found = []
    for place in places:
        opened.seek(place)
        found.append(opened.read(min(SIZE, end - place)))
    return b"".join(found)
