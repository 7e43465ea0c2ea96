"""Tasks on Ray, by datatrove's executor. Loads both, so it is imported only where it is asked for."""

from __future__ import annotations

import logging
import os
from functools import partial

import ray
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor
from loguru import logger

from mmedpo.errors import InputError
from mmedpo.runs.executors import Spread
from mmedpo.runs.tasks import Job, attend


class _Executor(RayPipelineExecutor):
    _run_for_rank = PipelineExecutor._run_for_rank  # that of Ray writes the logs of all jobs and users to /tmp/ray_logs


def run(job: Job, spread: Spread, gpus: int) -> None:
    """Run the unfinished tasks of a job on the running cluster (RAY_ADDRESS, or one on this machine), else a new one.

    Raises:
        InputError: no machine of the cluster has room for a task.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    logger.remove()
    logger.add(job.folder / "datatrove.log")
    try:
        _check_room(spread, gpus)
        executor = _Executor(
            [partial(attend, job)], job.tasks, spread.workers or -1, logging_dir=str(job.folder),
            cpus_per_task=spread.task_cpus, gpus_per_task=gpus,
            mem_per_cpu_gb=(spread.task_memory or 0) / spread.task_cpus,
        )  # fmt: skip
        executor.run()
    finally:
        logger.remove()
        if started:
            ray.shutdown()


def _check_room(spread: Spread, gpus: int) -> None:
    """Raise InputError if no machine has room for one task, since Ray would wait for such a machine for ever."""
    needed = {"CPU": spread.task_cpus, "GPU": gpus, "memory": (spread.task_memory or 0) * 2**30}
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    if not any(all(machine.get(name, 0) >= count for name, count in needed.items()) for machine in machines):
        wanted = f"{spread.task_cpus} CPUs, {gpus} GPUs and {spread.task_memory or 0} GiB"
        raise InputError(
            f"--executor ray: none of the {len(machines)} machines of the cluster has {wanted} for a task. Ask for "
            "less (--task-cpus, --task-gpus, --task-memory), or start larger machines first."
        )
