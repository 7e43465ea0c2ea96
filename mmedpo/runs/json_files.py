"""JSON files of runs, and digests of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mmedpo.errors import InputError
from mmedpo.runs import bounded_json, writable


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, complete or not at all (`writable.write_whole`)."""
    writable.write_whole(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """Return `value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_text(path: Path, remedy: str = "give the folder of a finished run") -> str:
    """Return a UTF-8 text file, without a byte order mark.

    Raises:
        InputError: the file is missing or unreadable; the message ends with `remedy`.
        UnicodeDecodeError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {remedy}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}.") from None


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return bounded_json.loads(read_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); the run that wrote it did not finish.") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        InputError: as `read_json`, or another JSON value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; the run that wrote it did not finish.")
    return value


def sha256(path: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
