"""Tasks on Slurm, by datatrove's executor: all phases are submitted at once, each after the one before."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from mmedpo.errors import InputError, Submitted
from mmedpo.runs.executors import Phase, Spread
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.tasks import JOBS, SUBMITTED, Job, attend, forget

MOST = 1000  # elements of an array; Slurm's MaxArraySize is 1001 where nobody changed it
OPTIONS = (  # of sbatch that a recipe may set; none of them runs anything
    "account", "comment", "constraint", "exclude", "exclusive", "gres", "licenses", "mail-type", "mail-user", "nice",
    "nodelist", "qos", "reservation",
)  # fmt: skip
PLAIN = re.compile(r"[\w.,:;@+=&|!*/-]+")  # of values and paths in a script, where datatrove quotes nothing

HEADING = ["phase", "tasks", "finished", "running", "waiting", "failed", "job"]


class _Executor(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Submit no further job: datatrove's statistics are of documents."""

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, Any]:
        """Return the options of sbatch, without memory by CPU: --task-memory, or the partition's own."""
        return {name: value for name, value in super().get_sbatch_args(max_array).items() if name != "mem-per-cpu"}


def look(folder: Path, may_queue: bool) -> None:
    """Raise Submitted if jobs of this working folder are in Slurm's queue; InputError unless they `may_queue`."""
    records, queue = _records(folder), _queue()
    ids = [queue[record["name"]][0] for record in records.values() if record["name"] in queue]
    if ids and not may_queue:
        raise InputError(
            f"Slurm's jobs {', '.join(ids)} work in {folder}. Wait for their end (--executor slurm shows it), or end "
            f"them: scancel {' '.join(ids)}."
        )
    if ids:
        raise Submitted([HEADING, *(_state(job, record, queue) for job, record in records.items())])


def _records(folder: Path) -> dict[Job, dict[str, Any]]:
    """Return what is recorded of the submitted jobs of a working folder, in the order of their phases."""
    files = (folder / JOBS).glob(f"*/{SUBMITTED}")
    found = {Job.at(file.parent): read_object(file) for file in files}
    return dict(sorted(found.items(), key=lambda one: one[1]["place"]))


def run(phases: Sequence[Phase], folder: Path, spread: Spread) -> None:
    """Submit the unfinished phases, none of which is in the queue; return if all are finished.

    Raises:
        Submitted: they are submitted.
        InputError, Stopped, TasksFailed: by tasks that were submitted before; the next call submits them again.
        InputError: an option cannot work, or Slurm refuses a job or does not answer.
    """
    jobs = [Job.of(phase.name, phase.tasks, folder) for phase in phases]
    check(spread, jobs)
    for phase, job in zip(phases, jobs, strict=True):
        job.renew(phase.digest)
    if not any(job.unfinished() for job in jobs):
        return
    before = _records(folder)
    for job, record in before.items():
        _explain(job, record)
        (job.folder / SUBMITTED).unlink()
    for job in jobs:
        if job in before:
            job.raise_failures()
    _submit(phases, jobs, folder, spread)


def check(spread: Spread, jobs: Sequence[Job] = ()) -> None:
    """Raise InputError if the options, the paths or this machine do not fit Slurm."""
    wrong = [] if spread.slurm_partition else ["--executor slurm needs --slurm-partition (sinfo lists them)"]
    values = [spread.slurm_partition or "", spread.slurm_gpu_partition or "", spread.slurm_time, *spread.slurm_args]
    wrong += [f"{value!r} cannot be part of a Slurm script" for value in values if value and not PLAIN.fullmatch(value)]
    for name in (argument.partition("=")[0] for argument in spread.slurm_args):
        if name not in OPTIONS:
            wrong.append(f"--slurm-args {name}: use one of {', '.join(OPTIONS)}, as in account=lab")
    if spread.tasks > MOST:
        wrong.append(f"{spread.tasks} tasks are more than an array of Slurm's holds: --tasks {MOST} at most")
    for job in jobs:
        if not PLAIN.fullmatch(str(job.folder)):
            wrong.append(
                f"{job.folder}: choose an --output without spaces and special characters, which go to a script"
            )
    if missing := [name for name in ("sbatch", "squeue") if not shutil.which(name)]:
        wrong.append(f"{' and '.join(missing)} not found: run this on a login node of a Slurm cluster")
    if wrong:
        raise InputError("; ".join(dict.fromkeys(wrong)) + ".")


def _submit(phases: Sequence[Phase], jobs: Sequence[Job], folder: Path, spread: Spread) -> None:
    """Submit all phases from the first unfinished one on."""
    begun = next(number for number, job in enumerate(jobs) if job.unfinished())
    forget(folder, [job.name for job in jobs[begun + 1 :]])
    ids: dict[Job, str] = {}
    logger.remove()
    try:
        for phase, job in zip(phases[begun:], jobs[begun:], strict=True):
            job.prepare(phase.work)
            # The name is recorded before the job exists, so that no kill leaves a job that the next call does not know.
            name = f"{folder.stem}-{job.name}-{token_hex(4)}"
            write_json(job.folder / SUBMITTED, {"place": len(ids), "name": name, "ranks": job.unfinished()})
            executor = _executor(phase, job, spread, name, next(reversed(ids.values()), None))
            executor.launch_job()
            ids[job] = executor.job_id
    except BaseException as error:
        if ids:  # the first phases alone are of no use
            subprocess.run(["scancel", *ids.values()], check=False)
        for job in jobs:
            (job.folder / SUBMITTED).unlink(missing_ok=True)
        if isinstance(error, subprocess.CalledProcessError):
            raise InputError(
                "sbatch refused a job, see its message above; nothing is submitted. Check the options --slurm-* and "
                f"--task-*; its script is {jobs[begun + len(ids)].folder / 'launch_script.slurm'}."
            ) from error
        raise
    queue = _queue()
    raise Submitted([HEADING, *(_state(job, record, queue) for job, record in _records(folder).items())])


def _executor(phase: Phase, job: Job, spread: Spread, name: str, after: str | None) -> _Executor:
    given = dict(argument.partition("=")[::2] for argument in spread.slurm_args)
    memory = {"mem": f"{spread.task_memory}G"} if spread.task_memory else {}
    partition = (spread.slurm_gpu_partition if phase.gpu else None) or spread.slurm_partition
    return _Executor(
        [partial(attend, job)], job.tasks, spread.slurm_time, partition, cpus_per_task=spread.task_cpus,
        gpus_per_task=spread.task_gpus * phase.gpu, workers=spread.workers or -1, job_name=name, qos=None,
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH", depends_job_id=after, max_array_size=MOST,
        sbatch_args={**memory, "kill-on-invalid-dep": "yes", **given}, logging_dir=str(job.folder),
        with_srun=False,  # since Slurm 22.05, srun does not take over --cpus-per-task
    )  # fmt: skip


def _queue() -> dict[str, tuple[str, dict[int, str]]]:
    """Return this user's jobs in Slurm's queue by name: id, and states by element of the array."""
    found: dict[str, tuple[str, dict[int, str]]] = {}
    for line in _ask("squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%j"):
        job, element, state, name = line.split("|", 3)
        if element.isdecimal():
            found.setdefault(name, (job, {}))[1][int(element)] = state
    return found


def _state(job: Job, record: Mapping[str, Any], queue: Mapping[str, tuple[str, Mapping[int, str]]]) -> list[str]:
    """Return a row of the table of states; a task that left the queue unfinished has failed."""
    unfinished = set(job.unfinished())
    number, states = queue.get(record["name"], ("", {}))
    found = [states.get(place) for place, rank in enumerate(record["ranks"]) if rank in unfinished]
    waiting, failed = found.count("PENDING"), found.count(None)
    counts = (job.tasks, job.tasks - len(unfinished), len(found) - waiting - failed, waiting, failed)
    return [job.name, *map(str, counts), number]


def _explain(job: Job, record: Mapping[str, Any]) -> None:
    """Record why tasks ended that left no error: out of memory, time, a lost machine. Slurm may keep no accounts."""
    unfinished = set(job.unfinished())
    if not unfinished or not shutil.which("sacct"):
        return
    words = ("--noheader", "--parsable2", "--allocations", "--array", "--format=JobID,State", "--name", record["name"])
    for line in _ask("sacct", *words, needed=False):
        element, state = line.split("|")[:2]
        place = element.rpartition("_")[2]
        if place.isdecimal() and (rank := record["ranks"][int(place)]) in unfinished and state != "COMPLETED":
            job.fail(rank, f"ended by Slurm: {state}; see slurm_logs beside the log")


def _ask(*words: str, needed: bool = True) -> list[str]:
    """Return the lines that a program of Slurm prints."""
    if not shutil.which(words[0]):
        raise InputError(f"{words[0]} not found, and Slurm may be at work. Run this on a login node of its cluster.")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and needed:
        raise InputError(f"{words[0]} failed: {done.stderr.strip() or done.stdout.strip()}. Try again later.")
    return done.stdout.split("\n")[:-1] if not done.returncode else []
