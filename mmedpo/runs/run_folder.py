"""Output folders that are complete or absent, with records of settings and contents.

A long command works in `OUTPUT.partial` and renames it to `OUTPUT` at its end, so a folder named `OUTPUT` is always
finished. `--resume` continues `OUTPUT.partial`.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.errors import DISK_FULL, AlreadyFinished, InputError
from mmedpo.runs import writable
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.recorded import (
    CONTENTS,
    CONTENTS_OF,
    DIGESTS,
    SETTINGS,
    compare_contents,
    compare_settings,
    digests_of,
    record_contents,
    record_settings,
)

if TYPE_CHECKING:
    from filelock import FileLock

SOURCE_FOLDER = "source"  # in a working folder: a source written for curation
ROWS = "rows.ledger"  # in a working folder: rows of the source by id (`changes.compare`)
JOBS = "jobs"  # in a working folder: what tasks need and leave (`runs.tasks`)
LOCK = ".lock"  # in a working folder: held by its process
LOCKS = "locks"  # in the folder of a job: held by its tasks
PATIENCE = 60.0  # seconds in which tasks end after the command that started them was killed
# In a curation's working folder: samples and models, results of the steps, calls, weighed pairs, masked images.
BLOCKS, RESULTS, CALLS, WEIGHED, MASKED = "blocks", "results", "calls", "weighed", "masked"
ANSWERS = "answers"  # in an evaluation's working folder: answers of its tasks
OF_RESUMPTION = (
    "*.ledger*", "checkpoint-*", LOCK, JOBS, BLOCKS, RESULTS, CALLS, WEIGHED, MASKED, ANSWERS,
)  # fmt: skip
# Files that a run writes before its first result.
NO_WORK = (
    SETTINGS, CONTENTS, ROWS, LOCK, "questions.jsonl", "training.json", SOURCE_FOLDER, BLOCKS,
)  # fmt: skip
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def working_folder(output: Path) -> Path:
    """Return the folder in which a run works that is to write `output`."""
    output = writable.placed(output)
    return output.with_name(output.name + ".partial")


@contextmanager
def output_folder(
    output: Path,
    settings: dict[str, Any],
    resume: bool = False,
    contents: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Yield the working folder of a run; it becomes `output` if the block ends without an exception.

    An error before any work was recorded removes the working folder; later errors leave it for `--resume`.

    Args:
        output: the finished folder.
        settings: JSON-able, recorded in the working folder, and as digests in the finished one. A resumed run must
            have the same.
        resume: continue an interrupted run.
        contents: digests of inputs by role, such as "model" (`fingerprint.model_contents`); None for an endpoint. A
            resumed run must have the same.

    Raises:
        InputError: `output` or an interrupted run exists and `resume` is false; settings or contents differ; `output`
            is not writable; another process uses it; the disk is full.
        AlreadyFinished: `resume`, and `output` is complete.
    """
    output, partial = writable.placed(output), working_folder(output)
    if resume and writable.exists(output / DIGESTS):
        compare_settings(output, settings)
        compare_contents(output, settings, contents or {})
        _tidy(output)  # after a kill between the rename and its end
        raise AlreadyFinished(f"{output} is finished; nothing to resume.")
    writable.check(output)
    fresh = not partial.exists()
    remedy = f"Finished work is kept in {partial}: free some space and run the same command with --resume."
    with _plain_faults(output, remedy), _locked(partial):
        try:
            writable.refuse_existing(output)  # another process may just have finished it
            if not fresh and not resume:
                raise InputError(f"{partial} holds an interrupted run; continue it with --resume, or remove it first.")
            compare_settings(partial, settings)
            record_settings(partial / SETTINGS, settings)
            record_contents(partial, settings, contents or {})
            for ledger in partial.glob("*.ledger"):
                Ledger(ledger).forget()
            yield partial
            recorded = read_object(partial / CONTENTS)  # the block may have called `record_contents`
            digests = digests_of(settings) | {f"{CONTENTS_OF}{role}": digest for role, digest in recorded.items()}
            write_json(partial / DIGESTS, digests)
            (partial / SETTINGS).unlink()  # in a source folder it would count as a second table
            (partial / CONTENTS).unlink()
            partial.replace(output)
            _tidy(output)  # after the rename, so that a kill in between loses no work
        except Exception as error:
            # Keep recorded work: a judge may refuse its key after hours of sampling.
            if (fresh or output.exists()) and not _is_full(error) and not _holds_work(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the working folder and lock it, since two runs resumed there would write the same files."""
    writable.make(folder)
    lock = locked(folder / LOCK, folder)
    try:
        for held in folder.glob(f"{JOBS}/*/{LOCKS}/*"):
            locked(held, folder, PATIENCE).release()
        yield
    finally:
        lock.release()


def locked(file: Path, folder: Path, seconds: float = 0) -> FileLock:
    """Return a lock that this process holds until its end, or until it is released.

    Args:
        folder: the working folder, for the message.
        seconds: to wait for another process.

    Raises:
        InputError: another process holds the lock.
    """
    from filelock import FileLock, Timeout  # imports asyncio, which would slow `mmedpo --help`

    lock = FileLock(file, timeout=seconds)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        raise InputError(f"Another process works in {folder}; wait for its end, or stop it.") from None
    return lock


@contextmanager
def short_folder(output: Path) -> Iterator[Path]:
    """Yield the working folder of a short run, which becomes `output`; an error leaves nothing, to resume or otherwise.

    Raises:
        InputError: `output` or an interrupted run of its name exists; another process uses it; it is not writable; the
            disk is full.
    """
    output = writable.placed(output)
    writable.check(output)
    interrupted = output.with_name(output.name + ".partial")
    if interrupted.exists():
        raise InputError(f"{interrupted} holds an interrupted run; choose another --output, or remove it first.")
    with scratch_folder(output) as working:
        writable.refuse_existing(output)  # another process may just have finished it
        yield working
        working.replace(output)
        (output / LOCK).unlink(missing_ok=True)  # after the rename, else another process could lock a new file


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside `output`, which is removed at the end; after a kill, by the next run of its name.

    Raises:
        InputError: another process uses it; it is not writable; the disk is full.
    """
    working = writable.beside(output)
    with _plain_faults(output, "Free some space and run the same command again."), _locked(working):
        try:
            _empty(working)
            yield working
        finally:
            shutil.rmtree(working, ignore_errors=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


@contextmanager
def _plain_faults(output: Path, remedy: str) -> Iterator[None]:
    """Raise errors of the operating system as InputError; `remedy` is that for a full disk."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = _system_error(error)
        if _is_full(error):
            raise InputError(f"No space left on the disk of {output.parent}. {remedy}") from error
        if cause is not None and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            where = cause.filename or output
            raise InputError(f"Cannot read or write {where}: {cause.strerror}. Check its permissions.") from error
        raise


def _tidy(folder: Path) -> None:
    """Remove from a finished folder what only `--resume` needs; its lock too, which is free from the rename on."""
    for left in (entry for pattern in OF_RESUMPTION for entry in folder.glob(pattern)):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)


def _holds_work(folder: Path) -> bool:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    return any(not file.parts[0].startswith(NO_WORK) for file in files)


def _is_full(error: Exception) -> bool:
    cause = _system_error(error)
    return cause is not None and cause.errno in DISK_FULL


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the operating system's error that caused `error`; Rust libraries name its number in the text."""
    while error is not None and not isinstance(error, OSError):
        if found := OS_ERROR.search(str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__
    return error
