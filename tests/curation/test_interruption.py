"""A curation that is killed again and again ends with the very bytes of one that was not, and pays for no call twice.

Real processes, real SIGKILL, a real server on the loopback. The chat model behind it is a stand-in: canned words.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from standins import STANDINS

from mmedpo import cli
from mmedpo.curation import blocks
from mmedpo.curation.ask import ask, check
from mmedpo.curation.blocks import Curation
from mmedpo.curation.run import finish, prepare
from mmedpo.curation.settings import Settings
from mmedpo.curation.weigh import weigh
from mmedpo.curation.write import write
from mmedpo.runs.journal import Journal
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.run_folder import BLOCKS, CALLS, RESULTS, ROWS, WEIGHED
from tests.chat_server import Answer, ChatServer, Received
from tests.conftest import MakeSource
from tests.runs import fake_slurm

FINDINGS = ("nodule", "mass", "effusion", "fracture", "cyst")
SIDES = ("left", "right")
KINDS = ("task", "command", "all")  # what is killed
AT_ONCE, WORKERS = 16, 2  # requests of a task, and tasks
MARK = "MMEDPO_TESTED_RUN"  # in the environment of all processes of a run
AT_WORK = (BLOCKS, CALLS, RESULTS, ROWS, WEIGHED, "contents.json", "settings.json")


def digest(received: Received) -> str:
    return hashlib.sha256(json.dumps(received.body, sort_keys=True).encode()).hexdigest()


def answer(received: Received) -> Answer:
    """Wrong answers and scores that depend on nothing but the request; each names the request it answers."""
    name = digest(received)
    if "Now judge this case" in received.text:
        text = json.dumps({"score": int(name[:4], 16) % 11 / 10, "rationale": name})
    elif "Answers of the model:" in received.text:
        text = json.dumps({"choice": int(name[:4], 16) % 2, "kind": name})
    else:
        text = json.dumps({"answer": f"small {FINDINGS[int(name[:4], 16) % 5]} {name[:6]}", "kind": name})
    return Answer(text, delay=0.02)


def questions(count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        side, finding = SIDES[number % 2], FINDINGS[number % 5]
        box = {"label": finding, "x": 4 + number % 9, "y": 5, "w": 8, "h": 9}
        row = {"id": f"q{number}", "image": "ab"[number % 2] + ".png", "question": f"What is at place {number}?"}
        rows.append({**row, "answer": f"{side} lower {finding}", "boxes": [box]})
    return rows


def command(source: Path, output: Path, server: ChatServer, launch: list[str]) -> list[str]:
    judges = [f"{server.url}#judge-a", f"{server.url}#judge-b"]
    return [
        *launch, "-m", "mmedpo.cli", "curate", "--source", str(source), "--output", str(output),
        "--chat", f"{server.url}#writer", "--judges", *judges, "--rounds", "2", "--tolerance", "0.2",
        "--judges-below-bar", "go", "--concurrency", str(AT_ONCE), "--shard-size", "20KB", "--resume",
    ]  # fmt: skip


def start(typed: list[str], output: Path) -> subprocess.Popen[bytes]:
    output.parent.mkdir(exist_ok=True)
    with (output.parent / "log").open("ab") as log:
        environment = {**os.environ, MARK: str(output)}
        return subprocess.Popen(typed, stdout=log, stderr=log, start_new_session=True, env=environment)


def run(typed: list[str], output: Path) -> None:
    code = start(typed, output).wait()
    assert code == 0, (output.parent / "log").read_text()


def recorded(output: Path) -> dict[str, bytes]:
    """All files of a dataset folder, without what a run needs while it works."""
    files = [file.relative_to(output) for file in output.rglob("*") if file.is_file()]
    return {str(file): (output / file).read_bytes() for file in files if file.parts[0] not in AT_WORK}


def finished(output: Path) -> set[str]:
    """The digests of the requests whose answers are kept: in the cache, or in the journals of tasks elsewhere."""
    values = []
    cache = output.with_name("calls.sqlite")
    if cache.exists():
        with closing(sqlite3.connect(cache)) as database:
            values += [json.loads(value) for (value,) in database.execute("SELECT value FROM entries")]
    for file in (output.with_name("pairs.partial") / CALLS).glob("*.journal"):
        with closing(Journal(file)) as journal:
            values += journal.part("calls").values()
    texts = [json.loads(value["text"]) for value in values]
    return {text.get("rationale") or text["kind"] for text in texts}


def at_work(output: Path) -> list[psutil.Process]:
    """The processes of a run, wherever they were started, and all that they started."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(output):
                found |= {process, *process.children(recursive=True)}
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def work(typed: list[str], output: Path, until: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """Start the command until the condition is met, or the dataset is there.

    On Slurm it ends at once, and is to be typed again where tasks failed, and where all are finished.
    """
    for _ in range(5):
        process = start(typed, output)
        seen = time.monotonic()
        while not until() and not output.exists():
            if process.poll() is not None and time.monotonic() > seen + 0.3:
                if not at_work(output):
                    break
                seen = time.monotonic()
            time.sleep(0.005)
        else:
            return process
    raise AssertionError((output.parent / "log").read_text())


def kill(kind: str, process: subprocess.Popen[bytes], output: Path) -> None:
    """Kill the command, one of its tasks, or all that works for it."""
    tasks = [one for one in at_work(output) if "mmedpo.runs.tasks" in one.cmdline()]
    if kind == "task" and tasks:
        min(tasks, key=lambda one: one.pid).kill()
    elif kind == "all":
        while found := at_work(output):
            for one in found:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
    else:
        process.kill()
    process.wait()


def check_kills(
    make_source: MakeSource, tmp_path: Path, count: int, kills: int, more: Sequence[str] = (), executor: str = "local"
) -> None:
    """Kill runs `kills` times, in turn by each of `KINDS`, and compare what they leave with a run that was not killed.

    Args:
        more: words of the killed runs alone.
    """
    chance = random.Random(0)
    kinds = chance.sample(KINDS * (kills // len(KINDS)), kills)
    source = make_source(questions(count))
    with ChatServer() as server:
        server.answer = answer
        whole = tmp_path / "whole" / "pairs"
        run(command(source, whole, server, [sys.executable]), whole)
        calls = len({digest(received) for received in server.received})
        assert len(server.received) == calls
        while kinds:  # a run may be finished before all kills, since what was not killed goes on
            killed = tmp_path / f"{len(kinds)}" / "pairs"
            typed = [*command(source, killed, server, [sys.executable]), *more]
            server.received.clear()
            done = kill_run(typed, killed, server, calls, kinds, chance, executor)
            before = len(server.received)
            work(typed, killed, killed.exists).wait()
            assert not {digest(received) for received in server.received[before:]} & done
            assert len(finished(killed)) == calls
            assert without(recorded(killed), more) == without(recorded(whole), more)


def kill_run(
    typed: list[str], output: Path, server: ChatServer, calls: int, kinds: list[str], chance: random.Random,
    executor: str,
) -> set[str]:  # fmt: skip
    """Kill a run by the `kinds`, which are taken from the list, until it is finished; return what it need not ask."""
    done: set[str] = set()
    rows = output.with_name("pairs.partial") / "data"
    kills = len(kinds)
    for number in range(kills):
        # One kill before any work, most among the calls, the last ones where rows are written.
        before, written = len(server.received), len([*rows.glob("*")])
        asking = max(kills * 3 // 4 - number, 0)
        step = chance.randrange(1, max(2, 2 * (calls - len(done)) // (asking + 1)))
        target = before + step if asking else 2 * calls
        if number == 0:
            process = start(typed, output)
            time.sleep(chance.uniform(0, 1))
        else:
            process = work(
                typed, output,
                lambda target=target, written=written: (
                    len(server.received) >= target or len([*rows.glob("*")]) > written
                ),
            )  # fmt: skip
        time.sleep(chance.uniform(0, 0.05))
        if output.exists():
            break
        kind = kinds.pop()
        kill(kind, process, output)
        asked = {digest(received) for received in server.received[before:]}
        assert not asked & done, "a finished call was repeated"
        done = finished(output)
        assert len(asked - done) <= AT_ONCE * WORKERS
        if executor == "slurm" and kind == "all":
            subprocess.run([sys.executable, fake_slurm.__file__, "reboot", *["lost"] * (number % 2)], check=True)
    return done


def without(files: dict[str, bytes], words: Sequence[str]) -> dict[str, bytes]:
    """The files without these words of the command line."""
    return {name: data.replace(f" {' '.join(words)}".encode(), b"") for name, data in files.items()}


def test_a_run_killed_again_and_again_gives_the_same_bytes_and_repeats_no_call(
    make_source: MakeSource, tmp_path: Path
) -> None:
    check_kills(make_source, tmp_path, count=60, kills=3)


@pytest.mark.slow
@pytest.mark.parametrize(("tasks", "executor"), [(1, "local"), (3, "local"), (3, "ray"), (3, "slurm")])
def test_a_run_of_five_hundred_questions_killed_many_times(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, executor: str
) -> None:
    more = ["--tasks", str(tasks), "--workers", str(WORKERS)]
    if executor != "local":
        pytest.importorskip("datatrove", reason="needs mmedpo[cluster]")
        more += ["--executor", executor]
    if executor == "slurm":
        fake_slurm.install(tmp_path / "slurm", tmp_path / "bin", monkeypatch)
        more += ["--slurm-partition", "cpu"]
    check_kills(make_source, tmp_path, 500, 30, more, executor)


def test_a_spent_budget_stops_the_run_and_the_rest_is_asked_later(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat_server.answer = answer
    source, (whole, later) = make_source(questions(40)), (tmp_path / name / "pairs" for name in ("whole", "later"))

    def curate(output: Path, *words: str) -> int:
        output.parent.mkdir(exist_ok=True)
        chat_server.received.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mmedpo"])
            try:
                cli.main([*command(source, output, chat_server, [])[2:], *words])
            except SystemExit as end:
                return int(end.code or 0)
        return 0

    assert curate(whole) == 0
    calls = len(chat_server.received)
    assert curate(later, "--max_calls", "25") == 130
    assert len(chat_server.received) == 25 and not later.exists()
    said = " ".join(capsys.readouterr().err.split())
    assert "--max-calls 25" in said and "25 new calls" in said and "--resume" in said
    assert curate(later) == 0
    assert len(chat_server.received) == calls - 25
    assert recorded(later) == recorded(whole)


@pytest.mark.parametrize("tasks", [2, 3, 16])
def test_tasks_that_share_the_folder_alone_make_the_dataset_of_one(
    make_source: MakeSource, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)
    rows = [{**row, "answer": ("yes", "no", row["answer"])[i % 3]} for i, row in enumerate(questions(40))]
    settings = Settings(make_source(rows), model=str(tiny_model), samples=2, **STANDINS)
    made = []
    for name, count in (("one", 1), ("several", tasks)):
        (tmp_path / name).mkdir()
        curation = prepare(settings, tmp_path / name)
        if count > 1:
            check(curation)
        for phase in (ask, weigh, write):
            for rank in reversed(range(1 if phase is weigh else count)):
                phase(pickle.loads(pickle.dumps(curation)), rank, count)  # as another process gets it
        finish(curation)
        made.append(recorded(tmp_path / name))
    assert made[0] == made[1]


def test_tasks_on_other_machines_only_read_the_cache_and_no_answer_is_paid_twice(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)
    chat_server.answer = answer
    named = {"chat": f"{chat_server.url}#writer", "judges": [f"{chat_server.url}#judge"]}
    cache, folder = tmp_path / "calls.sqlite", tmp_path / "run"
    folder.mkdir()

    def begun() -> Curation:
        curation = prepare(Settings(make_source(questions(24)), **named), folder, cache=cache, judges_below_bar="go")
        curation = replace(curation, one_machine=False)
        curation.keep_calls()
        curation.copy_calls()
        return curation

    curation = begun()
    check(curation)
    for rank in (1, 0):
        ask(curation, rank, 2)
    calls = len(chat_server.received)
    assert calls > 48 and not cache.exists()
    shutil.rmtree(folder / RESULTS)  # answers alone are left, as of blocks that were being asked
    with closing(Ledger(cache)) as other:  # an open connection keeps new answers beside the file
        other.put("of another run", {"text": '{"kind": "of another run"}'})
        curation = begun()
        assert len(finished(tmp_path / "pairs")) == calls + 1
        for rank in range(3):
            ask(curation, rank, 3)
    assert len(chat_server.received) == calls
    weigh(curation)
    write(curation)
    assert sum(model["calls"] for model in finish(curation)["calls"].values()) == calls
