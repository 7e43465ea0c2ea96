"""Works of tasks in tests: each task writes the numbers of its share, one file each."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from mmedpo.errors import Fault, InputError, Stopped
from mmedpo.runs.executors import Phase, Spread, run_phases
from mmedpo.runs.hosts import ONLY_IN_RECIPES
from mmedpo.runs.writable import write_whole

NUMBERS = 48


def numbers(folder: Path, rank: int, tasks: int) -> None:
    for number in range(rank, NUMBERS, tasks):
        write_whole(folder / f"{number}.txt", f"{number * number}\n".encode())
    with (folder / "tasks.log").open("a") as log:
        log.write(f"{rank} {os.environ['CUDA_VISIBLE_DEVICES'] or 'none'}\n")


def untyped(folder: Path, rank: int, tasks: int) -> None:
    write_whole(folder / f"{rank}.txt", " ".join(ONLY_IN_RECIPES).encode())


def total(folder: Path, rank: int, tasks: int) -> None:
    assert (rank, tasks) == (0, 1)
    found = sorted(int(file.read_text()) for file in folder.glob("[0-9]*.txt"))
    write_whole(folder / "total.txt", f"{len(found)} {sum(found)}\n".encode())


def once(folder: Path, end: str, rank: int, tasks: int) -> None:
    """Task 1 ends badly the first time."""
    if rank == 1 and not (folder / "ended").exists():
        (folder / "ended").touch()
        bad_end(end, rank, tasks)
    numbers(folder, rank, tasks)


def bad_end(end: str, rank: int, tasks: int) -> None:
    """End tasks 1 and 2 badly."""
    if rank not in (1, 2):
        return
    if end == "input":
        raise InputError("Some rows cannot be used.", [Fault(f"row {rank}", "image", "is missing")])
    if end == "stopped":
        raise Stopped("The budget is spent.")
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "machine":  # all of the task, and what watches it
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    if end == "disk":
        raise OSError(28, "No space left on device")
    if end == "exit":
        sys.exit(3)
    raise ValueError(f"bad\x1b[31m number in {end}")


def slow(folder: Path, rank: int, tasks: int) -> None:
    """Write the process's id, then the numbers slowly."""
    (folder / f"{rank}.pid").write_text(str(os.getpid()))
    for number in range(rank, NUMBERS, tasks):
        time.sleep(0.1)
        write_whole(folder / f"{number}.txt", f"{number * number}\n".encode())


def drive(folder: str, executor: str) -> None:
    """Start slow tasks, in a process that is to be killed."""
    work = partial(slow, Path(folder))
    run_phases([Phase("ask", work, 4)], Path(folder), Spread(executor=executor, workers=4))


def copies(folder: Path, rank: int, tasks: int) -> None:
    write_whole(folder / f"copy-{rank}.txt", (folder / "total.txt").read_bytes())


def temporary(folder: Path, elsewhere: Path, rank: int, tasks: int) -> None:
    """Use a temporary folder; that of the machine where the command was typed is out of sight."""
    assert not list(elsewhere.iterdir())
    with tempfile.NamedTemporaryFile() as file:
        assert elsewhere not in Path(file.name).parents
    numbers(folder, rank, tasks)
