"""Run the phases of a long command as tasks: in this process, in processes of this machine, on Ray or on Slurm.

Tasks are independent and idempotent and leave whole files or none. So the result does not depend on where they run, how
many there are, or what was killed. datatrove's local executor is not used: it waits for ever for a killed worker, and
the first error ends its other tasks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen

from rich.progress import Progress

from mmedpo.errors import InputError
from mmedpo.runs.options import option
from mmedpo.runs.tasks import POLL, Job, Work, kill

EXECUTORS = ("local",)


@dataclass
class Spread:
    """Options of a command that has tasks. None of them changes its result."""

    executor: str = option("local", "Where tasks run: local (this machine).")
    tasks: int = option(1, "Parts of the work that can run at the same time; 1 works in this process.")
    workers: int | None = option(None, "Most tasks at the same time; by default one for each GPU, or else CPU.")

    def check(self) -> None:
        """Raise InputError if the options cannot work."""
        wrong = [
            f"--{name} is {number}; it must be at least 1"
            for name, number in (("tasks", self.tasks), ("workers", self.workers))
            if number is not None and number < 1
        ]
        if self.executor not in EXECUTORS:
            wrong.append(f"--executor is {self.executor!r}; use one of {', '.join(EXECUTORS)}")
        if wrong:
            raise InputError("; ".join(wrong) + ".")


@dataclass(frozen=True)
class Phase:
    """Work that is complete before the next phase begins.

    Attributes:
        work: called with each rank in [0, tasks), and `tasks`.
        gpu: its tasks need a GPU, where GPUs are asked for.
    """

    name: str
    work: Work
    tasks: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class State:
    """Tasks of one phase, counted."""

    phase: str
    tasks: int
    finished: int


def run_phases(phases: Sequence[Phase], folder: Path, spread: Spread) -> list[State]:
    """Run the phases one after another; finished tasks of an earlier run with the same number of tasks are skipped.

    Args:
        folder: the working folder, which all machines share.

    Returns:
        The state of each phase.

    Raises:
        InputError, Stopped: by tasks; where they run in this process, any other error too.
        TasksFailed: tasks of a phase failed; its other tasks are finished.
    """
    spread.check()
    for phase in phases:
        if phase.tasks == 1:
            phase.work(0, 1)
            continue
        job = Job.of(phase.name, phase.tasks, folder)
        job.prepare(phase.work)
        with Progress() as progress:
            bar = progress.add_task(phase.name.capitalize(), total=phase.tasks, completed=len(job.finished()))
            _run_here(job, spread.workers, partial(progress.advance, bar))
        job.raise_failures()
    return [State(phase.name, phase.tasks, phase.tasks) for phase in phases]


def _run_here(job: Job, workers: int | None, advance: Callable[[], object]) -> None:
    """Run the unfinished tasks of a job in processes of this machine, each with one of its GPUs."""
    devices = _devices()
    workers = workers or len(devices) or os.cpu_count() or 1
    waiting, free = deque(job.unfinished()), deque(range(workers))
    running: dict[int, tuple[int, Popen[bytes]]] = {}  # by slot
    try:
        while waiting or running:
            while waiting and free:
                slot, rank = free.popleft(), waiting.popleft()
                gpu = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else None
                running[slot] = rank, job.start(rank, gpu)
            time.sleep(POLL)
            for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                job.ended(*running.pop(slot))
                free.append(slot)
                advance()
    finally:
        for _, process in running.values():
            kill(process)


def _devices() -> list[str]:
    """Return the names of the GPUs that this process may use."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
