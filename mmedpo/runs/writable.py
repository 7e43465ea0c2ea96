"""Checks before work starts that its output can be written, and atomic writing of files."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryFile

from mmedpo.errors import DISK_FULL, InputError

LEAST = 64 * 2**20  # free bytes that a run needs to start


def check(output: Path, resume: bool = False, option: str = "--output") -> None:
    """Check that `output`, a file or folder, is absent (unless `resume`) and can be created with its parents.

    Args:
        option: its name on the command line.

    Raises:
        InputError: it exists, its place is not writable, or the disk is full.
    """
    output = placed(output, option)
    if "::" in str(output):  # fsspec reads it as a chain of file systems
        raise InputError(f"{output}: libraries give '::' in a path a meaning of its own. Choose another {option}.")
    if not resume:
        refuse_existing(output, option)
    exists(beside(output), option)
    place = next(parent for parent in output.parents if exists(parent))
    try:
        with TemporaryFile(dir=place):  # without a name, so that a kill leaves nothing
            free = shutil.disk_usage(place).free
    except OSError as error:
        raise _refused(output, error, option) from error
    if free < LEAST:
        raise InputError(f"No space left on the disk of {place}: {free / 2**20:.0f} MiB are free. Free some space.")


def placed(output: Path, option: str = "--output") -> Path:
    """Return `output` as an absolute path. Raises InputError if it is the root or begins with "~"."""
    if output.parts[:1] and output.parts[0].startswith("~"):
        raise InputError(
            f"{output}: '{output.parts[0]}' is not replaced by the home folder here (nor by a shell inside quotes or "
            f"after '='). Write the whole path, or choose another {option}."
        )
    output = output.resolve()
    if not output.name:
        raise InputError(f"{output} exists already; choose another {option}.")
    return output


def check_folder(folder: Path, option: str) -> None:
    """Check that files can be written in `folder`, which need not exist.

    Raises:
        InputError: it is a file, it is not writable, or the disk is full.
    """
    if exists(folder, option) and not folder.is_dir():
        raise InputError(f"{folder} is not a folder; choose another {option}.")
    check(folder / "file", resume=True, option=option)


def beside(output: Path) -> Path:
    """Return the temporary path of `output` while it is written, the longest of all its working names."""
    return output.with_name(f".{output.name}.writing")


def write_whole(output: Path, data: bytes) -> None:
    """Write a file through a temporary one, so that it is complete or absent."""
    working = beside(output)
    try:
        working.write_bytes(data)
        working.replace(output)
    finally:
        working.unlink(missing_ok=True)


def exists(output: Path, option: str = "--output") -> bool:
    try:
        return output.exists()
    except OSError as error:  # e.g. the name is too long
        raise _refused(output, error, option) from error


def refuse_existing(output: Path, option: str = "--output") -> None:
    if exists(output):
        raise InputError(f"{output} exists already; choose another {option} or remove it first.")


def make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise _refused(folder, error) from error


def _refused(output: Path, error: OSError, option: str = "--output") -> InputError:
    return InputError(f"Cannot write {output}: {error.strerror}. Choose another {option}.")
