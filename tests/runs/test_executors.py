"""Tasks: their number and place do not change the result, nor does a kill; errors come back in one piece."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import works

from mmedpo.errors import InputError, Stopped, TasksFailed
from mmedpo.runs import run_folder
from mmedpo.runs import tasks as tasks_module
from mmedpo.runs.executors import Phase, Spread, run_phases
from mmedpo.runs.run_folder import locked, output_folder
from mmedpo.runs.tasks import Work, forget, ranks_of

HERE = Path(__file__).parent
EXPECTED = {f"{number}.txt": f"{number * number}\n" for number in range(works.NUMBERS)} | {
    "total.txt": f"{works.NUMBERS} {sum(number * number for number in range(works.NUMBERS))}\n"
}

RAISES = {"exit": "sys.exit(3)", "task": "raise ValueError"}  # lines of works.bad_end


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray cluster of this process, with two CPUs."""
    pytest.importorskip("datatrove", reason="tasks on Ray need mmedpo[cluster]")
    ray = pytest.importorskip("ray", reason="tasks on Ray need mmedpo[cluster]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        yield
        ray.shutdown()


def phases(folder: Path, tasks: int, ask: Work | None = None) -> list[Phase]:
    return [Phase("ask", ask or partial(works.numbers, folder), tasks), Phase("weigh", partial(works.total, folder))]


def texts(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.glob("*.txt")}


@pytest.mark.parametrize(
    ("executor", "tasks"),
    [("local", 1), ("local", 2), ("local", 16), ("ray", 2), pytest.param("ray", 16, marks=pytest.mark.slow)],
)
def test_run_phases_result_is_the_same_for_any_number_and_place_of_tasks(
    tmp_path: Path, executor: str, tasks: int, request: pytest.FixtureRequest
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray")
    run_phases(phases(tmp_path, tasks), tmp_path, Spread(executor=executor, tasks=tasks, workers=2))
    assert texts(tmp_path) == EXPECTED
    assert (tmp_path / "jobs").exists() == (tasks > 1 or executor == "ray")


def test_run_phases_tasks_import_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mmedpo").mkdir()
    (tmp_path / "mmedpo" / "__init__.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    run_phases(phases(tmp_path, 2), tmp_path, Spread(tasks=2, workers=2))
    assert texts(tmp_path) == EXPECTED


def test_run_phases_skips_finished_tasks_of_the_same_number_and_digest(tmp_path: Path) -> None:
    def run(tasks: int, digest: str) -> int:
        """Return the number of tasks that ran, of two phases."""
        log = tmp_path / "tasks.log"
        log.unlink(missing_ok=True)
        work = partial(works.numbers, tmp_path)
        run_phases([Phase("ask", work, tasks, digest=digest), Phase("write", work, tasks)], tmp_path, Spread())
        return len(log.read_text().splitlines()) if log.exists() else 0

    ran = [run(2, "a"), run(2, "a"), run(3, "a"), run(2, "a"), run(1, "a"), run(2, "a"), run(2, "b")]
    assert ran == [4, 0, 6, 2, 2, 4, 4]  # a phase that runs lets later ones run again


def test_run_phases_log_of_a_task_ends_with_what_it_took(tmp_path: Path) -> None:
    starter = bytearray(600 * 2**20)  # whose memory is not the task's
    run_phases([Phase("ask", partial(works.numbers, tmp_path), 2)], tmp_path, Spread())
    last = (tmp_path / "jobs/ask-2/logs/00001.log").read_text().splitlines()[-1]
    found = re.fullmatch(r"Finished: (\d+) s of CPU time, (\d+) MB of memory at most\.", last)
    assert found and int(found[1]) < 60 and 10 < int(found[2]) < len(starter) / 2**20


def test_run_phases_tasks_know_the_hosts_that_only_a_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks_module, "ONLY_IN_RECIPES", {"other.example"})  # their endpoints get no common key
    run_phases([Phase("ask", partial(works.untyped, tmp_path), 2)], tmp_path, Spread())
    assert texts(tmp_path) == {"0.txt": "other.example", "1.txt": "other.example"}


@pytest.mark.parametrize(("executor", "end"), [("local", "killed"), ("local", "error"), ("ray", "killed")])
def test_run_phases_finishes_other_tasks_and_resumes_the_failed_one(
    tmp_path: Path, executor: str, end: str, request: pytest.FixtureRequest
) -> None:
    if executor == "ray":
        request.getfixturevalue("ray")
    steps, spread = phases(tmp_path, 4, partial(works.once, tmp_path, end))[:1], Spread(executor=executor, workers=2)
    with pytest.raises(TasksFailed, match="ask: 1 of 4 tasks failed"):
        run_phases(steps, tmp_path, spread)
    missing = {f"{number}.txt" for number in range(1, works.NUMBERS, 4)}
    assert texts(tmp_path).keys() == EXPECTED.keys() - missing - {"total.txt"}
    run_phases(steps, tmp_path, spread)
    assert texts(tmp_path).items() == EXPECTED.items() - {("total.txt", EXPECTED["total.txt"])}
    assert sorted((tmp_path / "tasks.log").read_text().split()[::2]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("end", "kind", "said"),
    [
        (
            "input",
            InputError,
            "Some rows cannot be used.\n  - row 1 [image]: is missing\n  - row 2 [image]: is missing",
        ),
        ("stopped", Stopped, "The budget is spent."),
        ("killed", TasksFailed, "1-2 |  | killed by SIGKILL (out of memory?) | {log}"),
        ("exit", TasksFailed, "1-2 | tests/runs/works.py:{line} | SystemExit: 3 | {log}"),
        ("task", TasksFailed, "1-2 | tests/runs/works.py:{line} | ValueError: bad[31m number in task | {log}"),
    ],
)
def test_run_phases_errors_of_tasks_come_back_as_one(tmp_path: Path, end: str, kind: type, said: str) -> None:
    with pytest.raises(kind) as raised:
        run_phases([Phase("ask", partial(works.bad_end, end), 4)], tmp_path, Spread(workers=4))
    lines = (HERE / "works.py").read_text().splitlines()
    line = next((number for number, text in enumerate(lines, 1) if text.strip().startswith(RAISES.get(end, "-"))), 0)
    assert str(raised.value).endswith(said.format(line=line, log=tmp_path / "jobs/ask-4/logs/00001.log"))


def test_run_phases_full_disk_is_the_cause_of_failed_tasks(tmp_path: Path) -> None:
    with pytest.raises(TasksFailed) as raised:
        run_phases([Phase("ask", partial(works.bad_end, "disk"), 3)], tmp_path, Spread(workers=2))
    assert isinstance(raised.value.__cause__, OSError)
    assert raised.value.__cause__.errno == 28


@pytest.mark.parametrize("end", ["input", "task"])
def test_run_phases_one_task_raises_its_own_error(tmp_path: Path, end: str) -> None:
    with pytest.raises(InputError if end == "input" else ValueError):
        run_phases([Phase("ask", lambda rank, tasks: works.bad_end(end, rank + 1, tasks))], tmp_path, Spread())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("executor", "number"),
    [
        ("local", signal.SIGKILL), ("local", signal.SIGTERM), ("local", signal.SIGINT),
        pytest.param("ray", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_run_phases_tasks_end_with_the_process_that_started_them(tmp_path: Path, executor: str, number: int) -> None:
    driver = drive(tmp_path, executor)
    driver.send_signal(number)
    driver.communicate()
    wait_for(lambda: not any(alive(int(file.read_text())) for file in tmp_path.glob("*.pid")))
    assert len(texts(tmp_path)) < works.NUMBERS
    run_phases(phases(tmp_path, 4, partial(works.slow, tmp_path)), tmp_path, Spread(workers=4))
    assert texts(tmp_path) == EXPECTED


def test_run_phases_waits_for_a_task_that_a_killed_run_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    with suppress(KeyboardInterrupt), output_folder(output, {}) as folder:
        run_phases([Phase("ask", partial(works.numbers, folder), 3)], folder, Spread(workers=3))
        raise KeyboardInterrupt  # the working folder stays
    left = locked(folder / "jobs/ask-3/locks/00001", folder)
    monkeypatch.setattr(run_folder, "PATIENCE", 0.2)
    with pytest.raises(InputError, match="Another process works"), output_folder(output, {}, resume=True):
        pytest.fail("a task of the killed run still writes there")
    forget(folder, ["ask"])
    log = folder / "tasks.log"
    log.unlink()

    with ThreadPoolExecutor() as thread:
        again = thread.submit(run_phases, [Phase("ask", partial(works.numbers, folder), 3)], folder, Spread(workers=3))
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) == 2)
        left.release()
        again.result()
    assert log.read_text().split()[::2][-1] == "1"  # the task of that lock began last
    with output_folder(output, {}, resume=True):
        pass


@pytest.mark.slow
def test_run_phases_ray_repeats_the_task_of_a_killed_worker(tmp_path: Path) -> None:
    driver = drive(tmp_path, "ray")
    task = int(next(iter(tmp_path.glob("*.pid"))).read_text())
    worker = parent(parent(task))
    assert "RankWorker" in Path(f"/proc/{worker}/cmdline").read_text()
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: not alive(task), 2)  # before Ray starts it again
    driver.communicate()
    assert driver.returncode == 0
    assert texts(tmp_path).items() == EXPECTED.items() - {("total.txt", EXPECTED["total.txt"])}


def drive(folder: Path, executor: str) -> subprocess.Popen[bytes]:
    """Start slow tasks from another process; return when some of them are at work."""
    if executor == "ray":
        pytest.importorskip("datatrove", reason="tasks on Ray need mmedpo[cluster]")
        pytest.importorskip("ray", reason="tasks on Ray need mmedpo[cluster]")
    code = f"import works; works.drive({str(folder)!r}, {executor!r})"
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    wait_for(lambda: len(list(folder.glob("*.pid"))) >= 2 and len(texts(folder)) >= 4, 90)
    return driver


def test_run_phases_tasks_share_the_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    work = partial(works.numbers, tmp_path)
    run_phases([Phase("ask", work, 4, gpu=True)], tmp_path, Spread())
    with pytest.raises(InputError, match="--task-gpus is 3, and this machine offers 2"):
        run_phases([Phase("ask", work, 2, gpu=True)], tmp_path, Spread(task_gpus=3))
    run_phases([Phase("ask", work, 2, gpu=True)], tmp_path, Spread(task_gpus=2))
    run_phases([Phase("write", work, 2)], tmp_path, Spread(task_gpus=3))  # uses none, and as many tasks as CPUs
    used = [line.split()[1] for line in (tmp_path / "tasks.log").read_text().splitlines()]
    assert set(used[:4]) == {"5", "GPU-7"}
    assert used[4:] == ["5,GPU-7"] * 4


@pytest.mark.parametrize("spread", [Spread(executor="cloud"), Spread(tasks=0), Spread(workers=0)])
def test_run_phases_refuses_options_that_cannot_work(tmp_path: Path, spread: Spread) -> None:
    with pytest.raises(InputError, match=r"--(executor|tasks|workers) is"):
        run_phases(phases(tmp_path, 1), tmp_path, spread)


def test_ranks_of_names_runs() -> None:
    assert ranks_of([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def stat(process: int) -> list[str]:
    """Return what Linux says of a process after its name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def parent(process: int) -> int:
    return int(stat(process)[1])


def alive(process: int) -> bool:
    """Return whether a process runs; one that ended counts as ended before its parent has noticed."""
    try:
        return stat(process)[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)
