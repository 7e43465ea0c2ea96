"""Output folders that are whole or absent, and what is recorded in them.

A long command works in `OUTPUT.partial` and renames it to `OUTPUT` when all is done, so that a folder named
`OUTPUT` is always finished. `--resume` continues what `OUTPUT.partial` holds.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmedpo.errors import DISK_FULL, AlreadyFinished, InputError
from mmedpo.runs import bounded_json, checkout, writable
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import ALONE, COORDINATION, Processes

REPORTED_PACKAGES = (
    "mmedpo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "deepspeed",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "pillow",
)

SOURCE_FOLDER = "source"  # in a working folder: a source written out to be curated
SETTINGS = "settings.json"  # of a run, while it works
CONTENTS = "contents.json"  # of what it was given (models, datasets), by role, while it works
ROWS = "rows.ledger"  # of its source, by id (`changes.compare`), while it works
DIGESTS = ".settings.sha256"  # of both, when it is finished; JSON
CONTENTS_OF = "contents of "  # before the role of a content's digest in it
LOCK = ".lock"  # in a working folder: held by the process that works there
# What a run writes before its first result.
NO_WORK = (SETTINGS, CONTENTS, ROWS, LOCK, "questions.jsonl", "training.json", SOURCE_FOLDER, COORDINATION)
OS_ERROR = re.compile(r"\(os error (\d+)\)")
OPTION = re.compile(r"--?[\w-]+=")
SCHEME = re.compile(r"(?!https?:|file:)\w+:", re.IGNORECASE)  # detector:, local:, ...
MODELS = re.compile(r",\s*(?=[a-z]+:)")  # between the models of a list


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, through a temporary file so that a reader never sees half of it."""
    writable.write_whole(path, json_text(value).encode())


def json_text(value: Any) -> str:
    """`value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises InputError naming the file where it is missing, broken or none."""
    try:
        return bounded_json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder of a finished run.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the folder of a finished run.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); the run that wrote it did not finish.") from None


def read_object(path: Path) -> dict[str, Any]:
    """As `read_json`, for a file that holds a JSON object; raises InputError if it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds no JSON object; the run that wrote it did not finish.")
    return value


def sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, and the project's commit where it runs from a checkout."""
    found = {}
    for name in REPORTED_PACKAGES:
        with suppress(PackageNotFoundError):  # DeepSpeed is for Linux alone
            found[name] = version(name)
    if commit := checkout.commit(Path(__file__).resolve().parents[2]):
        found["commit"] = commit
    return found


def portable(name: str) -> str:
    """A name fit for a record that others read: of an endpoint's URL its model alone stays ("endpoint#model"), of any
    other neither user nor query; a path below the current folder becomes relative, any other that leaves it its last
    part, also inside an option ("--source=/a/b"), a model ("detector:/a/b"), a list of models, or JSON; all else
    stays."""
    if option := OPTION.match(name):
        return option[0] + portable(name[option.end() :])
    if name[:1] in ("[", "{"):
        with suppress(ValueError, SyntaxError):
            values = json.loads(name) if '"' in name else ast.literal_eval(name)
            return json.dumps(portable_values(values), ensure_ascii=False)
    return ",".join(map(_portable, MODELS.split(name)))


def portable_values(value: Any) -> Any:
    """JSON whose texts are `portable`."""
    if isinstance(value, dict):
        return {key: portable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable_values(item) for item in value]
    return portable(value) if isinstance(value, str) else value


def _portable(place: str) -> str:
    if scheme := SCHEME.match(place):
        return scheme[0] + _portable(place[scheme.end() :])
    place = place.removeprefix("file://")
    if place.lower().startswith(("http://", "https://")):
        url = urlsplit(place)
        plain = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        return f"endpoint#{_portable(url.fragment)}" if url.fragment else plain
    path, here = Path(place), Path.cwd()
    if path == Path.home():
        return "~"
    if path.is_relative_to(here) and here != Path(here.anchor):
        return str(path.relative_to(here))
    leaves = path.is_absolute() or place.startswith("~") or ".." in path.parts
    return path.name if leaves else place


@contextmanager
def output_folder(
    output: Path,
    settings: dict[str, Any],
    resume: bool = False,
    processes: Processes = ALONE,
    contents: Mapping[str, str | None] | None = None,
) -> Iterator[Path]:
    """Yield the working folder of a run; it becomes `output` if the block ends without an exception.

    `settings` (JSON-able) is kept in the working folder, and digests of it in the finished one; a resumed run must have
    the same. So it is with `contents`: by role, such as "model" or another name of a setting, the digest of what was
    given (`fingerprint.model_contents`), or None where there is none, as of an endpoint. Bad input found before any
    work was recorded removes the working folder; later errors and interruptions leave it for `--resume`. Of several
    processes only the first makes and renames folders; the others are given the same one.

    Raises:
        InputError: `output` or an interrupted run exists and `resume` is false; settings or contents differ; `output`
            cannot be written; another process is at work there; the disk is full.
        AlreadyFinished: `resume` and `output` is complete.
    """
    output = output.resolve()
    partial = output.with_name(output.name + ".partial")
    if resume and writable.exists(output / DIGESTS):
        _compare_digests(output, settings)
        _compare_contents(output, settings, contents or {})
        if processes.first:
            _drop_ledgers(output)  # of a run that was killed right after it had its name
        raise AlreadyFinished(f"{output} is finished; nothing to resume.")
    if not processes.first:
        writable.refuse_existing(output)
        processes.open(partial)
        _compare_contents(partial, settings, contents or {})  # something may be replaced while processes start
        yield partial
        return
    writable.check(output)
    fresh = not partial.exists()
    if not fresh and not resume:
        raise InputError(f"{partial} holds an interrupted run; continue it with --resume, or remove it first.")
    remedy = f"What was finished is kept in {partial}: free some space and run the same command with --resume."
    with _plain_faults(output, remedy), _locked(partial):
        try:
            _compare_digests(partial, settings)
            settle_settings(partial / SETTINGS, settings)
            settle_contents(partial, settings, contents or {})
            for ledger in partial.glob("*.ledger"):
                Ledger(ledger).forget()
            processes.open(partial)
            yield partial
            given = read_object(partial / CONTENTS)  # `settle_contents` may have been called since
            digests = _digests(settings) | {f"{CONTENTS_OF}{role}": digest for role, digest in given.items()}
            write_json(partial / DIGESTS, digests)
            (partial / SETTINGS).unlink()  # a source folder has one table, and this could be one
            (partial / CONTENTS).unlink()
            (partial / LOCK).unlink(missing_ok=True)
            partial.replace(output)
            _drop_ledgers(output)  # not before: a kill in between would lose what they hold
        except InputError:
            # A judge may refuse its key after hours of sampling: work that was recorded is kept.
            if fresh and not _holds_work(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the working folder and hold it alone: two runs that resume there would write the same files."""
    from filelock import FileLock, Timeout  # loads asyncio, which `mmedpo --help` does without

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
    """As `output_folder`, for work of seconds that cannot be resumed: nothing is left of what did not end.

    Raises:
        InputError: `output` or an interrupted run of its name exists; another process writes it; it cannot be written;
            the disk is full.
    """
    output = output.resolve()
    writable.check(output)
    interrupted = output.with_name(output.name + ".partial")
    if interrupted.exists():
        raise InputError(f"{interrupted} holds an interrupted run; choose another --output, or remove it first.")
    working = writable.beside(output)
    with _plain_faults(output, "Free some space and run the same command again."), _locked(working):
        try:
            writable.refuse_existing(output)  # the process that was at work a moment ago may have ended
            _empty(working)  # of a run that was killed
            yield working
            working.replace(output)
            (output / LOCK).unlink(missing_ok=True)  # not before: another process would lock a new one
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
    """What the operating system refuses, as InputError; `remedy`: what to do about a full disk."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = _system_error(error)
        if cause is not None and cause.errno in DISK_FULL:
            raise InputError(f"No space left on the disk of {output.parent}. {remedy}") from error
        if cause is not None and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise InputError(f"Cannot write {cause.filename or output}: {cause.strerror}.") from error
        raise


def _compare_digests(folder: Path, settings: dict[str, Any]) -> None:
    """Raise InputError if a finished run had other settings."""
    if not (folder / DIGESTS).exists():
        return
    before, now = read_json(folder / DIGESTS), _digests(settings)
    before = {key: digest for key, digest in before.items() if not key.startswith(CONTENTS_OF)}
    if differing := _differing(before, now):
        given = _leaves(settings)
        changes = [f"{key}: now {given.get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{folder} was finished with other settings. Repeat them, or choose another --output:", changes)
        )


def settle_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> None:
    """Record the contents of what the run of this working folder was given, or raise InputError if something else is
    recorded of them. What is not recorded yet may be added: a model is best looked for after all that costs less."""
    kept = _compare_contents(folder, settings, contents)
    write_json(folder / CONTENTS, kept | {role: digest for role, digest in contents.items() if digest})


def _compare_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> dict[str, Any]:
    """Return what is recorded, or raise InputError if some of it was replaced since, under its name."""
    before = read_object(folder / CONTENTS) if (folder / CONTENTS).exists() else {}
    if (folder / DIGESTS).exists():
        recorded = read_object(folder / DIGESTS)
        before |= {key.removeprefix(CONTENTS_OF): recorded[key] for key in recorded if key.startswith(CONTENTS_OF)}
    given, replaced = _leaves(settings), []
    for role in sorted(before.keys() & contents.keys()):  # what one of them lacks is a setting that differs
        if (new := contents[role]) and (old := before[role]) != new:
            name = f"{role} {given[role]}" if given.get(role) else role
            replaced.append(f"{name}: {old[:8]} -> {new[:8]}")
    if replaced:
        said = f"{folder}: of what this run was begun with, something was replaced since, under the same name. Results "
        said += "of the old and of the new would be mixed. Restore the old, or start a new --output:"
        raise InputError(_listed(said, replaced))
    return before


def _digests(settings: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each setting that is on. Not the settings themselves, which name folders and servers."""
    return {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
        for key, value in sorted(_leaves(settings).items())
        if value is not None and (value is not False or key not in settings)
    }


def _leaves(settings: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Settings of groups too, by the names "group.setting"."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _leaves(value, f"{group}{key}.") if isinstance(value, dict) else {f"{group}{key}": value}
    return found


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _listed(sentence: str, changes: list[str]) -> str:
    return "\n".join([sentence, *(f"  - {change}" for change in changes)])


def _drop_ledgers(folder: Path) -> None:
    for ledger in folder.glob("*.ledger*"):
        ledger.unlink(missing_ok=True)


def _holds_work(folder: Path) -> bool:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    return any(not file.parts[0].startswith(NO_WORK) for file in files)


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind `error`; libraries wrap it in their own, or name its number as Rust does."""
    while error is not None and not isinstance(error, OSError):
        if found := OS_ERROR.search(str(error)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__
    return error


def settle_settings(kept: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings to `kept`, or raise InputError if others are written there already."""
    now = json.loads(json.dumps(settings))  # tuples become lists, as they come back from the file
    before, after = (_leaves(each) for each in (read_json(kept) if kept.exists() else now, now))
    if differing := _differing(before, after):
        changes = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{kept.parent} was begun with other settings. Repeat them, or remove the folder:", changes)
        )
    write_json(kept, now)
