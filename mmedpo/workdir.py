"""Output folders that are whole or absent, and what is recorded in them.

A long command works in `OUTPUT.partial` and renames it to `OUTPUT` as its last act, so that a folder named
`OUTPUT` is always finished. `--resume` continues what `OUTPUT.partial` holds.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.ledger import Ledger
from mmedpo.processes import ALONE, COORDINATION, Processes

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
NO_WORK = ("settings.json", "questions.jsonl", SOURCE_FOLDER, COORDINATION)  # what a run writes before its first result
ABSOLUTE_PATH = re.compile(r"(?<![^=:,\s])/(?!/)[^,]*")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, through a temporary file so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(json_text(value), encoding="utf-8")
    partial.replace(path)


def json_text(value: Any) -> str:
    """`value` as `write_json` writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises InputError naming the file where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder of a finished run.") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}); the run that wrote it did not finish.") from None


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on, and the project's commit where it runs from a checkout."""
    found = {name: version(name) for name in REPORTED_PACKAGES}
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / ".git").exists():
        commit = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        )
        if commit.returncode == 0:
            found["commit"] = commit.stdout.strip()
    return found


def portable(name: str) -> str:
    """A name fit for a record that others read: a path below the current folder becomes relative, any other absolute
    path its last part, also inside an option ("detector:/a/b"); a URL loses its user and password; all else stays."""

    def shortened(found: re.Match[str]) -> str:
        path = Path(found[0])
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name

    return ABSOLUTE_PATH.sub(shortened, re.sub(r"//[^/@\s]+@", "//", name))


@contextmanager
def output_folder(
    output: Path, settings: dict[str, Any], resume: bool = False, processes: Processes = ALONE
) -> Iterator[Path]:
    """Yield the working folder of a run; it becomes `output` if the block ends without an exception.

    `settings` (JSON-able) is kept in the working folder; a resumed run must have the same. Bad input found before
    any work was recorded removes the working folder; later errors and interruptions leave it for `--resume`.
    Of several processes only the first makes and renames folders; the others are given the same one.

    Raises:
        InputError: `output` or an interrupted run exists and `resume` is false; the settings differ; the disk is full.
        AlreadyFinished: `resume` and `output` is complete.
    """
    output = output.resolve()
    if output.exists():
        if resume:
            raise AlreadyFinished(f"{output} is finished; nothing to resume.")
        raise InputError(f"{output} exists already; choose another --output or remove it first.")
    partial = output.with_name(output.name + ".partial")
    if not processes.first:
        processes.open(partial)
        yield partial
        return
    fresh = not partial.exists()
    if not fresh and not resume:
        raise InputError(f"{partial} holds an interrupted run; continue it with --resume, or remove it first.")
    kept = partial / "settings.json"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        settle_settings(kept, settings)
        for ledger in partial.glob("*.ledger"):
            Ledger(ledger).forget()
        processes.open(partial)
        yield partial
        for scaffolding in (kept, *partial.glob("*.ledger*")):
            scaffolding.unlink()
        partial.replace(output)
    except InputError:
        # A judge may refuse its key after hours of sampling: work that was recorded is kept.
        if fresh and not _holds_work(partial):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except Exception as error:
        cause = _system_error(error)
        if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"No space left on the disk of {output.parent}. What was finished is kept in {partial}: "
                "free some space and run the same command with --resume."
            ) from error
        if cause is not None and cause.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise InputError(f"Cannot write {cause.filename or output}: {cause.strerror}.") from error
        raise


def _holds_work(folder: Path) -> bool:
    files = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    return any(not file.parts[0].startswith(NO_WORK) for file in files)


def _system_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind `error`; libraries wrap it in their own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error


def settle_settings(kept: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings to `kept`, or raise InputError if others are written there already."""
    now = json.loads(json.dumps(settings))  # tuples become lists, as they come back from the file
    before = read_json(kept) if kept.exists() else now
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        changes = "; ".join(f"{key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differing)
        raise InputError(f"{kept.parent} was begun with other settings ({changes}). Repeat them, or remove the folder.")
    write_json(kept, now)
