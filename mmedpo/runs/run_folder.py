"""Output folders that are complete or absent, with records of settings and contents.

A long command works in `OUTPUT.partial` and renames it to `OUTPUT` at its end, so a folder named `OUTPUT` is always
finished. `--resume` continues `OUTPUT.partial`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmedpo.errors import DISK_FULL, AlreadyFinished, InputError
from mmedpo.runs import bounded_json, writable
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import ALONE, COORDINATION, Processes

SOURCE_FOLDER = "source"  # in a working folder: a source written for curation
SETTINGS = "settings.json"  # in a working folder: settings of the run
CONTENTS = "contents.json"  # in a working folder: digests of models and datasets by role
ROWS = "rows.ledger"  # in a working folder: rows of the source by id (`changes.compare`)
DIGESTS = ".settings.sha256"  # in a finished folder: JSON of digests of settings and contents
CONTENTS_OF = "contents of "  # in DIGESTS: prefix of the role of a content
PLACE_OF = "place of "  # in DIGESTS: prefix of a setting, for the digest of the path that it spells
LOCK = ".lock"  # in a working folder: held by its process
DURATION = "duration.json"  # in a training's working folder: its seconds so far
OF_RESUMPTION = ("*.ledger*", "checkpoint-*", DURATION, LOCK)
# Files that a run writes before its first result.
NO_WORK = (SETTINGS, CONTENTS, ROWS, LOCK, "questions.jsonl", "training.json", SOURCE_FOLDER, COORDINATION)
OS_ERROR = re.compile(r"\(os error (\d+)\)")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, complete or not at all (`writable.write_whole`)."""
    writable.write_whole(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """Return `value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the value of a JSON file.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return bounded_json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder of a finished run.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the folder of a finished run.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); the run that wrote it did not finish.") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        InputError: as `read_json`, or another JSON value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; the run that wrote it did not finish.")
    return value


def sha256(path: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def output_folder(
    output: Path,
    settings: dict[str, Any],
    resume: bool = False,
    processes: Processes = ALONE,
    contents: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Yield the working folder of a run; it becomes `output` if the block ends without an exception.

    An error before any work was recorded removes the working folder; later errors leave it for `--resume`.

    Args:
        output: the finished folder.
        settings: JSON-able, recorded in the working folder, and as digests in the finished one. A resumed run must
            have the same.
        resume: continue an interrupted run.
        processes: only the first creates and renames folders; the others get the same folder.
        contents: digests of inputs by role, such as "model" (`fingerprint.model_contents`); None for an endpoint. A
            resumed run must have the same.

    Raises:
        InputError: `output` or an interrupted run exists and `resume` is false; settings or contents differ; `output`
            is not writable; another process uses it; the disk is full.
        AlreadyFinished: `resume`, and `output` is complete.
    """
    output = writable.placed(output)
    partial = output.with_name(output.name + ".partial")
    if resume and writable.exists(output / DIGESTS):
        _compare_digests(output, settings)
        _compare_contents(output, settings, contents or {})
        if processes.first:
            _tidy(output)  # after a kill between the rename and its end
        raise AlreadyFinished(f"{output} is finished; nothing to resume.")
    if not processes.first:
        writable.refuse_existing(output)
        processes.open(partial)
        _compare_contents(partial, settings, contents or {})  # an input may be replaced while processes start
        yield partial
        return
    writable.check(output)
    fresh = not partial.exists()
    remedy = f"What was finished is kept in {partial}: free some space and run the same command with --resume."
    with _plain_faults(output, remedy), _locked(partial):
        try:
            writable.refuse_existing(output)  # another process may just have finished it
            if not fresh and not resume:
                raise InputError(f"{partial} holds an interrupted run; continue it with --resume, or remove it first.")
            _compare_digests(partial, settings)
            record_settings(partial / SETTINGS, settings)
            record_contents(partial, settings, contents or {})
            for ledger in partial.glob("*.ledger"):
                Ledger(ledger).forget()
            processes.open(partial)
            yield partial
            recorded = read_object(partial / CONTENTS)  # the block may have called `record_contents`
            digests = _digests(settings) | {f"{CONTENTS_OF}{role}": digest for role, digest in recorded.items()}
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
    from filelock import FileLock, Timeout  # imports asyncio, which would slow `mmedpo --help`

    writable.make(folder)
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        with suppress(NotImplementedError):  # a file system without locks
            lock.acquire()
    except Timeout:
        raise InputError(f"Another process is at work in {folder}; wait for its end, or stop it.") from None
    try:
        yield
    finally:
        lock.release()


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


def _compare_digests(folder: Path, settings: dict[str, Any]) -> None:
    """Raise InputError if the finished run had other settings."""
    if not (folder / DIGESTS).exists():
        return
    before, now = read_json(folder / DIGESTS), _digests(settings)
    kept = {key: digest for key, digest in before.items() if not key.startswith((CONTENTS_OF, PLACE_OF))}
    places = {key.removeprefix(PLACE_OF) for key, digest in before.items() if now.get(key) == digest}
    now = {key: digest for key, digest in now.items() if not key.startswith(PLACE_OF)}
    if differing := [key for key in _differing(kept, now) if key not in places]:
        changes = [f"{key}: now {_leaves(settings).get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{folder} was finished with other settings. Repeat them, or choose another --output:", changes)
        )


def record_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> None:
    """Record the digests of a run's inputs in its working folder, or raise InputError if others are recorded.

    May be called again with further roles, since a model's digest is expensive and other checks come first.
    """
    recorded = _compare_contents(folder, settings, contents)
    write_json(folder / CONTENTS, recorded | {role: digest for role, digest in contents.items() if digest})


def _compare_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the recorded digests, or raise InputError if an input was replaced under the same name."""
    before = read_object(folder / CONTENTS) if (folder / CONTENTS).exists() else {}
    if (folder / DIGESTS).exists():
        recorded = read_object(folder / DIGESTS)
        before |= {key.removeprefix(CONTENTS_OF): recorded[key] for key in recorded if key.startswith(CONTENTS_OF)}
    current, replaced = _leaves(settings), []
    for role in sorted(before.keys() & contents.keys()):  # a missing role shows as a differing setting
        if (new := contents[role]) and (old := before[role]) != new:
            name = f"{role} {current[role]}" if current.get(role) else role
            replaced.append(f"{name}: {old[:8]} -> {new[:8]}")
    if replaced:
        sentence = (
            f"{folder}: of what this run was begun with, something was replaced since, under the same name. Results "
            "of the old and of the new would be mixed. Restore the old, or start a new --output:"
        )
        raise InputError(_listed(sentence, replaced))
    return before


def _digests(settings: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each setting that is on, and of each path; the settings name folders and servers."""
    found = {
        key: value
        for key, value in sorted(_leaves(settings).items())
        if value is not None and (value is not False or key not in settings)
    }
    for key, value in list(found.items()):
        if isinstance(value, str) and value:
            with suppress(OSError, ValueError):
                found[f"{PLACE_OF}{key}"] = os.path.realpath(value, strict=True)
    return {key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for key, value in found.items()}


def _leaves(settings: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return settings with those of groups, under "group.setting"."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _leaves(value, f"{group}{key}.") if isinstance(value, dict) else {f"{group}{key}": value}
    return found


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _listed(sentence: str, changes: list[str]) -> str:
    return "\n".join([sentence, *(f"  - {change}" for change in changes)])


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


def record_settings(file: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings to `file`, or raise InputError if it holds others; a path may be spelt otherwise."""
    now = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    before, after = (_leaves(each) for each in (read_json(file) if file.exists() else now, now))
    differing = [key for key in _differing(before, after) if not _same_place(before.get(key), after.get(key))]
    if differing:
        changes = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{file.parent} was begun with other settings. Repeat them, or remove the folder:", changes)
        )
    write_json(file, now)


def _same_place(one: Any, other: Any) -> bool:
    """Return whether two settings spell one path: relative or absolute, or through a link."""
    named = isinstance(one, str) and isinstance(other, str) and one and other
    return bool(named) and os.path.realpath(one) == os.path.realpath(other)
