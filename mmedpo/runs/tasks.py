"""Tasks of a long command: each is a process of its own, `python -m mmedpo.runs.tasks JOB RANK`, on any machine.

A job is one phase with its number of tasks. Its folder, which all machines share, holds what a task needs and leaves:
`work.pickle`, `completions/00003` (datatrove's marker), `logs/00003.log`, `failures/00003.json`, and `locks/00003`,
which the task holds while it works.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo.errors import Fault, InputError, Stopped, TasksFailed
from mmedpo.runs import terminal
from mmedpo.runs.hosts import ONLY_IN_RECIPES
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.run_folder import JOBS, LOCKS, PATIENCE, locked
from mmedpo.runs.writable import make, write_whole

Work = Callable[[int, int], None]  # (rank, tasks); idempotent, and picklable: a partial of a module's function
WORK = "work.pickle"
DIGEST = "digest"  # of what the work is done on
SUBMITTED = "slurm.json"  # in the folder of a job that was submitted
ATTACHED = "--attached"  # a task that ends with the process that started it
POLL = 0.05  # seconds
ROWS = 20  # most rows of a table of failures


@dataclass(frozen=True)
class Job:
    """A phase with its number of tasks; `folder` is absolute. Another number of tasks is another job."""

    name: str
    folder: Path
    tasks: int

    @classmethod
    def of(cls, name: str, tasks: int, folder: Path) -> Job:
        """Return the job of a phase in the working folder `folder`."""
        return cls(name, folder.absolute() / JOBS / f"{name}-{tasks}", tasks)

    @classmethod
    def at(cls, folder: Path) -> Job:
        """Return the job that was prepared in its own folder."""
        name, _, tasks = folder.name.rpartition("-")
        return cls(name, folder, int(tasks))

    def renew(self, digest: str) -> None:
        """Forget all of an earlier run that worked on something with another digest."""
        known = self.folder / DIGEST
        if known.exists() and known.read_text() != digest:
            shutil.rmtree(self.folder)
        make(self.folder)
        write_whole(known, digest.encode())

    def prepare(self, work: Work) -> None:
        """Write what tasks need, and forget the failures of an earlier run."""
        for name in ("completions", "logs", "failures", LOCKS):
            make(self.folder / name)
        for file in (self.folder / "failures").iterdir():
            file.unlink()
        write_whole(self.folder / WORK, pickle.dumps((work, self.tasks, str(Path.cwd()), ONLY_IN_RECIPES)))

    def finished(self) -> set[int]:
        """Return the ranks of finished tasks."""
        folder = self.folder / "completions"
        return {int(file.name) for file in folder.iterdir()} if folder.is_dir() else set()

    def unfinished(self) -> list[int]:
        """Return the ranks of the other tasks, in order."""
        return sorted(set(range(self.tasks)) - self.finished())

    def log(self, rank: int) -> Path:
        return self.folder / "logs" / f"{rank:05d}.log"

    def _failure(self, rank: int) -> Path:
        return self.folder / "failures" / f"{rank:05d}.json"

    def start(self, rank: int, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start the process of a task. It ends with this process, however that ends."""
        self._failure(rank).unlink(missing_ok=True)
        with self.log(rank).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "mmedpo.runs.tasks", str(self.folder), str(rank), ATTACHED],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )  # fmt: skip

    def ended(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Mark a task whose process ended as finished or failed."""
        if process.returncode == 0:
            (self.folder / "completions" / f"{rank:05d}").touch()
        elif process.returncode > 0:
            self.fail(rank, f"ended with code {process.returncode}")
        else:
            killed = f"killed by {signal.Signals(-process.returncode).name}"
            self.fail(rank, killed + " (out of memory?)" * (process.returncode == -signal.SIGKILL))

    def fail(self, rank: int, how: str) -> None:
        """Record how a task ended, unless it recorded its own error."""
        if not self._failure(rank).exists():
            write_json(self._failure(rank), {"kind": "error", "message": how, "where": ""})

    def raise_failures(self) -> None:
        """Raise what its unfinished tasks raised, if any is unfinished.

        Raises:
            InputError, Stopped: all of them raised such.
            TasksFailed: otherwise.
        """
        failures = {rank: self._read_failure(rank) for rank in self.unfinished()}
        if not failures:
            return
        kinds = {failure["kind"] for failure in failures.values()}
        messages = "\n".join(dict.fromkeys(failure["message"] for failure in failures.values()))
        if kinds <= {"InputError", "Stopped"}:
            if not self.finished():
                shutil.rmtree(self.folder)  # nothing to resume: the working folder may go too
            if kinds == {"Stopped"}:
                raise Stopped(messages)
            faults = [Fault(**fault) for failure in failures.values() for fault in failure.get("faults", ())]
            raise InputError(messages, list(dict.fromkeys(faults)))
        numbers = {failure.get("errno", 0) for failure in failures.values()}
        cause = OSError(max(numbers), os.strerror(max(numbers))) if min(numbers) else None
        raise TasksFailed(self._said(failures)) from cause

    def _read_failure(self, rank: int) -> dict[str, Any]:
        file = self._failure(rank)
        return read_object(file) if file.exists() else {"kind": "error", "message": "left no error", "where": ""}

    def _said(self, failures: Mapping[int, Mapping[str, Any]]) -> str:
        """Return the table of failures; tasks that failed alike share a row, with the log of the first."""
        alike: dict[tuple[str, str], list[int]] = {}
        for rank, failure in failures.items():
            last = failure["message"].partition("\n")[0]
            alike.setdefault((failure.get("where", ""), last), []).append(rank)
        rows = [["task", "where", "error", "log"]]
        rows += [
            [ranks_of(ranks), where, error, str(self.log(ranks[0]))] for (where, error), ranks in alike.items()
        ][:ROWS]  # fmt: skip
        count = f"{len(failures)} of {self.tasks}"
        lines = [f"{self.name}: {count} tasks failed, the others are finished. Run again with --resume."]
        lines += [" | ".join(row) for row in rows]
        if len(alike) > ROWS:
            lines.append(f"... and {len(alike) - ROWS} other errors, see {self.folder / 'logs'}")
        return "\n".join(lines)


def forget(folder: Path, phases: Sequence[str]) -> None:
    """Let all tasks of these phases run again, for any number of tasks."""
    for name in phases:
        for markers in (folder / JOBS).glob(f"{name}-[0-9]*/completions"):
            shutil.rmtree(markers)


def ranks_of(ranks: Sequence[int]) -> str:
    """Return sorted ranks in short: 0-2, 5."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a task and all processes that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # a task leaves whole files or none
        process.wait()


def attend(job: Job, data: object, rank: int, tasks: int) -> None:
    """Run a task in a process of its own, as a step of datatrove's pipelines, which wait for ever for a killed one.

    Raises:
        ChildProcessError: the task failed.
    """
    parent = os.getppid()
    process = job.start(rank)
    try:
        while process.poll() is None and os.getppid() == parent:  # Ray starts the task of a killed worker elsewhere
            time.sleep(POLL)
    finally:
        kill(process)
    job.ended(rank, process)
    if process.returncode:
        raise ChildProcessError(f"Task {rank} of {tasks} failed, see {job.log(rank)}.")


def _failure_of(error: BaseException) -> dict[str, Any]:
    """Return an exception as JSON."""
    if isinstance(error, InputError):
        faults = [fault.record() for fault in error.faults]
        return {"kind": "InputError", "message": error.message, "faults": faults, "where": ""}
    if isinstance(error, Stopped):
        return {"kind": "Stopped", "message": str(error), "where": ""}
    frames = traceback.extract_tb(error.__traceback__)[1:]  # without `main`
    own = [frame for frame in frames if "mmedpo" in Path(frame.filename).parts[:-1]] or frames
    where = f"{'/'.join(Path(own[-1].filename).parts[-3:])}:{own[-1].lineno}" if own else ""
    last = terminal.plain(traceback.format_exception_only(error)[-1].strip())
    system = {"errno": error.errno} if isinstance(error, OSError) and error.errno else {}
    return {"kind": "error", "message": last, "where": where, **system}


def _memory() -> str:
    """Return what to print of this process's largest memory; "" where the system does not say it.

    `getrusage` is of no use: what it says at the start of a process is the memory of the one that started it.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return f", {int(found[1]) // 1024:,} MB of memory at most" if found else ""


def _end_with_starter() -> None:
    """End this process and its children when the other end of its standard input is closed."""
    os.read(0, 1)  # sys.stdin has a lock, which a thread must not hold at the end of the process
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(folder: Path, rank: int) -> None:
    """Run one task of the job in `folder`, and print what it took; on an error, record it and exit with code 1."""
    terminal.guard()
    terminal.silence_libraries()
    try:
        held = locked(folder / LOCKS / f"{rank:05d}", folder, PATIENCE)  # a task of a killed run may still end
        work, tasks, place, untyped = pickle.loads((folder / WORK).read_bytes())
        ONLY_IN_RECIPES.update(untyped)
        if Path(place).is_dir():  # paths in recorded settings may be relative
            os.chdir(place)
        work(rank, tasks)
    except BaseException as error:
        write_json(folder / "failures" / f"{rank:05d}.json", _failure_of(error))
        traceback.print_exc()
        sys.exit(1)
    held.release()
    terminal.say(f"Finished: {round(time.process_time()):,} s of CPU time{_memory()}.")


if __name__ == "__main__":
    if ATTACHED in sys.argv:
        threading.Thread(target=_end_with_starter, daemon=True).start()
    main(Path(sys.argv[1]), int(sys.argv[2]))
