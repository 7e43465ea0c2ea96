"""Tasks on Slurm, against a small one that runs the scripts: chains, states, failures, machines that share no /tmp."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial
from pathlib import Path

import fake_slurm
import pytest
import works
from test_executors import EXPECTED, importable, phases, texts, wait_for  # noqa: F401  # a fixture

from mmedpo.errors import InputError, Submitted, TasksFailed
from mmedpo.runs.executors import Phase, Spread, run_phases
from mmedpo.runs.executors import submitted as look_for_jobs

pytest.importorskip("datatrove", reason="tasks on Slurm need mmedpo[cluster]")

SLURM = Spread(executor="slurm", tasks=3, slurm_partition="cpu")


@pytest.fixture(autouse=True)
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the small Slurm's jobs."""
    fake_slurm.install(tmp_path / "slurm", tmp_path / "bin", monkeypatch)
    return tmp_path / "slurm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs.partial"
    folder.mkdir()
    return folder


def submitted(phases: list[Phase], folder: Path, spread: Spread = SLURM) -> list[list[str]]:
    """Submit the phases, or ask for their state: rows of (phase, tasks, finished, running, waiting, failed, job)."""
    with pytest.raises(Submitted) as raised:
        run_phases(phases, folder, spread)
    assert raised.value.states[0] == ["phase", "tasks", "finished", "running", "waiting", "failed", "job"]
    return [list(row) for row in raised.value.states[1:]]


def wait_for_queue(seconds: float = 60) -> None:
    """Wait until no job is left."""
    words = ["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%j"]
    wait_for(lambda: not subprocess.check_output(words), seconds)


def test_run_phases_slurm_submits_a_chain_and_then_tells_its_state(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = [*phases(folder, 3, partial(works.slow, folder)), Phase("write", partial(works.copies, folder), 2)]
    assert [(row[0], row[1], row[-1]) for row in submitted(chain, folder)] == [
        ("ask", "3", "100"), ("weigh", "1", "101"), ("write", "2", "102"),
    ]  # fmt: skip
    wait_for(lambda: submitted(chain, folder)[0] == ["ask", "3", "0", "3", "0", "0", "100"])
    assert submitted(chain, folder)[1:] == [
        ["weigh", "1", "0", "0", "1", "0", "101"], ["write", "2", "0", "0", "2", "0", "102"],
    ]  # fmt: skip
    with pytest.raises(InputError, match="scancel 100 101 102"):
        run_phases(chain, folder, Spread(tasks=3))
    with monkeypatch.context() as elsewhere, pytest.raises(InputError, match="squeue not found"):
        elsewhere.setenv("PATH", "/usr/bin:/bin")
        run_phases(chain, folder, Spread(tasks=3))
    wait_for_queue()
    run_phases(chain, folder, SLURM)
    assert texts(folder) == EXPECTED | {"copy-0.txt": EXPECTED["total.txt"], "copy-1.txt": EXPECTED["total.txt"]}
    run_phases(chain[:1], folder, Spread(tasks=3))  # what is finished there is finished here


@pytest.mark.parametrize(
    ("end", "kind", "said"),
    [
        ("input", InputError, "Some rows cannot be used.\n  - row 1 [image]: is missing"),
        ("killed", TasksFailed, "1 |  | killed by SIGKILL (out of memory?) | {folder}/jobs/ask-3/logs/00001.log"),
        ("machine", TasksFailed, "1 |  | ended by Slurm: OUT_OF_MEMORY; see slurm_logs beside the log | {folder}/jobs"),
    ],
)
def test_run_phases_slurm_raises_the_errors_of_tasks_and_then_submits_what_is_missing(
    folder: Path, slurm: Path, end: str, kind: type, said: str
) -> None:
    chain = phases(folder, 3, partial(works.once, folder, end))
    submitted(chain, folder)
    wait_for_queue()
    with pytest.raises(kind) as raised:
        run_phases(chain, folder, SLURM)
    assert said.format(folder=folder) in str(raised.value)
    assert [row[2] for row in submitted(chain, folder)] == ["2", "0"]
    wait_for_queue()
    run_phases(chain, folder, SLURM)
    assert texts(folder) == EXPECTED
    assert len((folder / "tasks.log").read_text().splitlines()) == 3


def test_run_phases_slurm_machines_share_the_working_folder_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.setenv("TMPDIR", str(here))
    monkeypatch.setenv("FAKE_SLURM_HIDES", str(here))
    monkeypatch.setattr("tempfile.tempdir", None)
    chain = phases(folder, 3, partial(works.temporary, folder, here))
    submitted(chain, folder)
    wait_for_queue()
    run_phases(chain, folder, SLURM)
    assert texts(folder) == EXPECTED


def test_run_phases_slurm_asks_for_what_each_phase_needs(folder: Path, slurm: Path) -> None:
    spread = Spread(
        executor="slurm", workers=2, task_cpus=8, task_gpus=1, task_memory=64, slurm_partition="cpu",
        slurm_gpu_partition="gpu", slurm_time="02:00:00", slurm_args=["account=lab", "exclusive"],
    )  # fmt: skip
    chain = [Phase("ask", partial(works.numbers, folder), 3, gpu=True), Phase("weigh", partial(works.total, folder))]
    submitted(chain, folder, spread)
    lines = (folder / "jobs/ask-3/launch_script.slurm").read_text().splitlines()
    for wanted in (
        "partition=gpu", "gpus=1", "cpus-per-task=8", "mem=64G", "time=02:00:00", "array=0-2%2", "account=lab",
        "exclusive", "kill-on-invalid-dep=yes", "requeue",
    ):  # fmt: skip
        assert f"#SBATCH --{wanted}" in lines
    assert not [line for line in lines if "mem-per-cpu" in line or "qos" in line]
    lines = (folder / "jobs/weigh-1/launch_script.slurm").read_text().splitlines()
    assert "#SBATCH --partition=cpu" in lines
    assert not [line for line in lines if "gpus" in line]


def test_options_that_slurm_cannot_take_are_refused_before_anything_is_read(slurm: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --slurm-partition"):
        look_for_jobs(tmp_path / "never.partial", Spread(executor="slurm"))


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        (Spread(executor="slurm"), "needs --slurm-partition"),
        (Spread(executor="slurm", slurm_partition="none"), "nothing is submitted"),
        (
            Spread(executor="slurm", slurm_partition="cpu", slurm_gpu_partition="none", task_gpus=1),
            "nothing is submitted",
        ),
        (Spread(executor="slurm", slurm_partition="cpu\nrm"), "cannot be part of a Slurm script"),
        (Spread(executor="slurm", tasks=1001, slurm_partition="cpu"), "--tasks 1000 at most"),
        (
            Spread(executor="slurm", slurm_partition="cpu", slurm_args=["wrap=rm"]),
            "--slurm-args wrap: use one of account",
        ),
        (
            Spread(executor="slurm", slurm_partition="cpu", slurm_args=["account=$(rm)"]),
            "cannot be part of a Slurm script",
        ),
    ],
)
def test_run_phases_slurm_refuses_what_cannot_work(folder: Path, spread: Spread, said: str) -> None:
    chain = [*phases(folder, 2), Phase("write", partial(works.copies, folder), 2, gpu=True)]
    with pytest.raises(InputError, match=said):
        run_phases(chain, folder, spread)
    assert not subprocess.check_output(["squeue", "--me", "--noheader", "--array", "--format=%F|%K|%T|%j"])
    assert not list(folder.glob("jobs/*/slurm.json"))
