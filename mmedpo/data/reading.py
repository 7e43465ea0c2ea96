"""Images, masks and heat maps of a source, each decoded once before any work: by processes of this machine.

What was read of a file counts again while its size, its times and the versions of what read it are the same. Files at
fault are always read again.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track

from mmedpo.data.images import LIMIT_VARIABLE, UnusableImage, digest, open_rgb, read_heat
from mmedpo.errors import InputError
from mmedpo.runs import terminal
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import installed, versions

SHARE = 16 * 2**20  # bytes of images, a second or two to decode, for which a process is worth its start
BATCH = 256  # files that are remembered at a time
SETTLED = 2 * 10**9  # nanoseconds; a file changed later may change again without another time

Asked = tuple[str, Path]  # column of the table, and file


class Read(NamedTuple):
    """Digest ("" of a mask or heat map), width and height in pixels, and the fault's sentence or ""."""

    digest: str
    size: tuple[int, int]
    fault: str


def beside(file: Path) -> Path:
    """Return the file of what was read, for runs whose outputs or cache of calls lie where `file` does."""
    return file.resolve().with_name("images.ledger")


def read_files(asked: Sequence[Asked], known: Path | None = None) -> dict[Asked, Read]:
    """Decode files, to find the broken ones.

    Args:
        known: ledger of what was read before, which other runs may share.

    Raises:
        InputError: a decoder is missing or was killed, or the limit variable is no number.
    """
    stamps = {one: _stamp(one[1]) for one in asked}
    if known is None or sum(size for size, *_ in stamps.values()) < 2 * SHARE:
        return dict(zip(asked, _read_all(asked, _processes(asked, stamps)), strict=True))
    reader, found, new = _reader(), dict[Asked, Read](), dict[str, Any]()
    with closing(Ledger(known)) as ledger:
        for one in asked:
            kept = ledger.get(_key(one))
            if kept and kept["file"] == [reader, *stamps[one]]:
                found[one] = Read(kept["digest"], tuple(kept["size"]), "")
        missing = [one for one in asked if one not in found]
        for one, result in zip(missing, _read_all(missing, _processes(missing, stamps)), strict=True):
            found[one] = result
            if not result.fault and time.time_ns() - max(stamps[one][1:]) > SETTLED:
                new[_key(one)] = {"file": [reader, *stamps[one]], "digest": result.digest, "size": result.size}
            if len(new) == BATCH:
                ledger.update(new)
                new.clear()
        ledger.update(new)
    return found


def read(column: str, file: Path) -> Read:
    """Decode one file."""
    try:
        if column == "heatmap":
            read_heat(file)
            return Read("", (0, 0), "")
        picture = open_rgb(file, allow_flat=column != "image")
        return Read(digest(picture) if column == "image" else "", picture.size, "")
    except InputError as error:
        if column == "heatmap" or isinstance(error, UnusableImage):
            return Read("", (0, 0), str(error).rstrip("."))
        raise


def _key(one: Asked) -> str:
    return f"{one[0]} {one[1].absolute()}"


def _stamp(file: Path) -> tuple[int, int, int]:
    """Return size and times of a file; that of its inode changes with the content, whatever a copy sets."""
    with suppress(OSError):  # reading tells it
        found = file.stat()
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return 0, 0, 0


def _reader() -> str:
    """Return a digest of what decides how files are read."""
    made_of = versions(), installed(["numpy", "pydicom"]), os.environ.get(LIMIT_VARIABLE)
    return hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]


def _processes(asked: Sequence[Asked], stamps: Mapping[Asked, tuple[int, int, int]]) -> int:
    """Return how many processes are worth their start, at most one for each core that this one may use."""
    # Only some systems tell which cores a process may use.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(asked), sum(stamps[one][0] for one in asked) // SHARE)


def _read_all(asked: Sequence[Asked], count: int) -> Iterator[Read]:
    """Yield what is read of each file, in their order, by `count` processes."""
    shown = track(asked, "Reading images", disable=count < 2)
    if count < 2:
        yield from (read(*one) for one in shown)
        return
    # Not multiprocessing: it would import a user's script again, and does not name the file that kills a decoder.
    command = [sys.executable, "-P", "-m", "mmedpo.data.reading"]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for number, worker in enumerate(workers):
            assert worker.stdin is not None
            with suppress(BrokenPipeError), worker.stdin:  # one that ended at once is told below
                pickle.dump(asked[number::count], worker.stdin)
        for number, (_, file) in enumerate(shown):
            yield _result(workers[number % count], file)
    finally:
        for worker in workers:
            with worker:  # waits for its end
                worker.kill()


def _result(worker: subprocess.Popen[bytes], file: Path) -> Read:
    assert worker.stdout is not None
    try:
        found = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):
        code = worker.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise InputError(
            f"{file.name}: the process that decodes it {how}. Free some memory, or replace the file or drop the row."
        ) from None
    if isinstance(found, str):
        raise InputError(found)
    return Read(*found)


def main() -> None:
    """Read the files whose list is the standard input, and write each result to the standard output."""
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)  # end without a word, with the command
    terminal.silence_libraries()
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)  # what libraries print
        for one in pickle.load(sys.stdin.buffer):
            found: tuple[Any, ...] | str
            try:
                found = tuple(read(*one))
            except InputError as error:
                found = error.message
            pickle.dump(found, results)
            results.flush()


if __name__ == "__main__":
    main()
