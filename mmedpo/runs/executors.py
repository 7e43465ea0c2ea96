"""Run the phases of a long command as tasks: in this process, in processes of this machine, on Ray or on Slurm.

Tasks are independent and idempotent and leave whole files or none. So the result does not depend on where they run, how
many there are, or what was killed. datatrove's local executor is not used: it waits for ever for a killed worker, and
the first error ends its other tasks.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from subprocess import Popen
from threading import Event, Thread
from typing import Any

from rich.progress import Progress

from mmedpo.errors import InputError
from mmedpo.runs.options import option
from mmedpo.runs.tasks import JOBS, POLL, SUBMITTED, Job, Work, forget, kill

EXECUTORS = ("local", "ray", "slurm")
LOOK = 1.0  # seconds between counts of finished tasks on other machines


@dataclass(kw_only=True)
class Spread:
    """Options of a command that has tasks. None of them changes its result."""

    executor: str = option("local", "Where tasks run: local (this machine), ray or slurm.")
    tasks: int = option(1, "Parts of the work that can run at the same time; 1 works in this process.")
    workers: int | None = option(
        None, "Most tasks at the same time; by default one for each GPU they use, or else CPU."
    )
    task_cpus: int = option(1, "CPUs of a task, on Ray and Slurm.")
    task_gpus: int = option(
        0, "GPUs of a task that uses models in its process; 0 takes one where this machine has some."
    )
    task_memory: int | None = option(None, "Memory of a task in GiB, on Ray and Slurm.")
    slurm_partition: str | None = option(None, "Slurm's partition.")
    slurm_gpu_partition: str | None = option(None, "Slurm's partition of tasks that use models in their process.")
    slurm_time: str = option("1-00:00:00", "Slurm's time limit of a task.")
    slurm_args: list[str] = field(default_factory=list, metadata={"help": "Options of sbatch, such as account=lab."})

    def check(self) -> None:
        """Raise InputError if the options cannot work."""
        wrong = [
            f"--{name} is {number}; it must be at least 1"
            for name in ("tasks", "workers", "task-cpus", "task-memory")
            if (number := getattr(self, name.replace("-", "_"))) is not None and number < 1
        ]
        if self.executor not in EXECUTORS:
            wrong.append(f"--executor is {self.executor!r}; use one of {', '.join(EXECUTORS)}")
        if (launched := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            wrong.append(
                f"{launched} processes were launched, and training alone is. Start this command as one process, with "
                f"--tasks {launched}"
            )
        if wrong:
            raise InputError("; ".join(wrong) + ".")


@dataclass(frozen=True)
class Phase:
    """Work that is complete before the next phase begins.

    Attributes:
        work: called with each rank in [0, tasks), and `tasks`.
        gpu: its tasks use models in their process, on a GPU where there is one.
        digest: of what it works on; tasks that finished with another one run again.
    """

    name: str
    work: Work
    tasks: int = 1
    gpu: bool = False
    digest: str = ""


def submitted(folder: Path, spread: Spread) -> bool:
    """Return whether an earlier call submitted work in `folder` to Slurm, which this call then resumes.

    Commands call it first, so that nothing is read for hours where the executor cannot work.

    Raises:
        Submitted: jobs of it are in the queue.
        InputError: they are, and these options name another executor: two tasks would write the same files; or this
            machine cannot reach the executor.
    """
    if spread.executor == "ray":
        _loaded("ray")
    elif spread.executor == "slurm":
        _loaded("slurm").check(spread)
    if not any((folder / JOBS).glob(f"*/{SUBMITTED}")):
        return False
    _loaded("slurm").look(folder, spread.executor == "slurm")
    return True


def run_phases(phases: Sequence[Phase], folder: Path, spread: Spread) -> None:
    """Run the phases one after another.

    Tasks that finished in an earlier run are skipped, if it had the same number of tasks. A phase of several tasks that
    runs lets all later ones run again; so does a run that stays in this process.

    Args:
        folder: the working folder, which all machines share. No task may move it.

    Raises:
        InputError: an option cannot work; Slurm's jobs still work in the folder; or by tasks.
        Stopped: by tasks; where they run in this process, any other error too.
        TasksFailed: tasks of a phase failed; its other tasks are finished.
        Submitted: unfinished phases are in Slurm's queue.
    """
    spread.check()
    submitted(folder, spread)
    if spread.executor == "slurm":
        _loaded("slurm").run(phases, folder, spread)
        return
    here = [spread.executor == "local" and phase.tasks == 1 for phase in phases]
    if all(here):
        forget(folder, [phase.name for phase in phases])
    for number, phase in enumerate(phases):
        if here[number]:
            phase.work(0, 1)
            continue
        job = Job.of(phase.name, phase.tasks, folder)
        job.renew(phase.digest)
        if not job.unfinished():
            continue
        job.prepare(phase.work)
        forget(folder, [later.name for later in phases[number + 1 :]])  # they used what changes now
        with _progress(job):
            if spread.executor == "local":
                _run_here(job, spread, phase.gpu)
            else:
                _loaded("ray").run(job, spread, spread.task_gpus * phase.gpu)
        job.raise_failures()


def _loaded(executor: str) -> Any:
    try:
        return import_module(f"mmedpo.runs.on_{executor}")
    except ImportError as error:
        raise InputError(f"--executor {executor} needs {error.name}: pip install 'mmedpo[cluster]'.") from None


@contextmanager
def _progress(job: Job) -> Iterator[None]:
    """Show a bar of finished tasks, wherever they run."""
    ended = Event()
    with Progress() as progress:
        bar = progress.add_task(job.name.capitalize(), total=job.tasks)

        def look() -> None:
            last = False
            while not last:
                last = ended.wait(LOOK)
                progress.update(bar, completed=len(job.finished()))

        thread = Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _run_here(job: Job, spread: Spread, gpu: bool) -> None:
    """Run the unfinished tasks of a job in processes of this machine, each with its own GPUs if they use some."""
    devices = _devices(spread.task_gpus) if gpu else []
    workers = spread.workers or len(devices) or os.cpu_count() or 1
    waiting, free = deque(job.unfinished()), deque(range(workers))
    running: dict[int, tuple[int, Popen[bytes]]] = {}  # by slot
    try:
        while waiting or running:
            while waiting and free:
                slot, rank = free.popleft(), waiting.popleft()
                own = {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else None
                running[slot] = rank, job.start(rank, own)
            time.sleep(POLL)
            for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                job.ended(*running.pop(slot))
                free.append(slot)
    finally:
        for _, process in running.values():
            kill(process)


def _devices(count: int) -> list[str]:
    """Return the GPUs that this process may use, `count` together; with 0, one by one, and none where there are none.

    Raises:
        InputError: there are fewer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        names = [str(number) for number in range(torch.cuda.device_count())]
    else:
        names = [name for name in visible.split(",") if name.strip()]
    if len(names) < count:
        raise InputError(f"--task-gpus is {count}, and this machine offers {len(names)}. Ask for fewer.")
    together = max(1, count)
    return [",".join(names[first : first + together]) for first in range(0, len(names) - together + 1, together)]
