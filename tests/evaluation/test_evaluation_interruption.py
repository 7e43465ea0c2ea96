"""An evaluation that is killed at any moment ends with the very bytes of one that was not; so does a shared one.

Real processes and real SIGKILL; the model is a tiny one of random weights, whose answers are sampled.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from mmedpo.evaluation.answering import Answering, Generation, LocalModel
from mmedpo.evaluation.measures import opened
from mmedpo.evaluation.predict import answer, batches, evaluate, read_answers
from mmedpo.evaluation.questions import Asked, read
from mmedpo.evaluation.score import Scoring
from mmedpo.evaluation.settings import Settings
from mmedpo.models.chat.limits import Limits
from mmedpo.models.vision_language import VisionLanguageModel

FILES = ("questions.jsonl", "predictions.jsonl", "scores.jsonl")
GENERATION = Generation(8, 12, temperature=0.7, seed=1, batch_size=2)
SCORING = Scoring(meteor_variant="nltk_exact_stem")  # without Java's start in each process
OPTIONS = (
    *("--max_new_tokens", "8", "--max_new_tokens_report", "12", "--temperature", "0.7", "--seed", "1"),
    *("--limit", "30", "--meteor_variant", "nltk_exact_stem"),
)


def command(source: Path, model: Path, output: Path, launch: tuple[str, ...] = ()) -> list[str]:
    return [
        sys.executable, *launch, "-m", "mmedpo.cli", "evaluate", "--model", str(model), "--source", str(source),
        "--split", "test", *OPTIONS, "--batch_size", "2", "--output", str(output), "--resume",
    ]  # fmt: skip


def recorded(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    asked, model = read(Asked(corpus, split="test", limit=30, seed=1)), LocalModel(VisionLanguageModel(str(tiny_model)))
    evaluate(lambda tasks: model, asked, folder, GENERATION, SCORING)
    return recorded(folder)


def answered(partial: Path) -> int:
    return len(read_answers(partial).lines)


def kill_when(true: Callable[[], bool], typed: list[str], log: Path) -> None:
    with log.open("ab") as lines:
        process = subprocess.Popen(typed, stdout=lines, stderr=lines, start_new_session=True)
    while not true() and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, log.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_kills(
    corpus: Path, tiny_model: Path, tmp_path: Path, whole: dict[str, bytes], kills: int, scoring: bool = False
) -> None:
    chance = random.Random(0)
    output, partial, log = tmp_path / "killed", tmp_path / "killed.partial", tmp_path / "log"
    typed = command(corpus, tiny_model, output)
    count, done = len(whole["predictions.jsonl"].splitlines()), 0
    for number in range(kills):
        target = count * (number + 1) // (kills + 1)
        kill_when(lambda target=target: answered(partial) >= target, typed, log)
        time.sleep(chance.uniform(0, 0.01))
        assert done <= answered(partial) and not output.exists()
        done = answered(partial)
    assert 0 < done < count
    if scoring:  # between the scores and the name, or right after it
        kill_when((partial / "scores.jsonl").exists, typed, log)
    subprocess.run(typed, check=True, capture_output=True)
    assert recorded(output) == whole
    assert {file.name for file in output.iterdir()} == {*FILES, "results.json", ".settings.sha256"}
    assert not partial.exists()


def test_a_killed_evaluation_gives_the_same_bytes(corpus, tiny_model, tmp_path, whole):
    check_kills(corpus, tiny_model, tmp_path, whole, kills=1)


@pytest.mark.slow
def test_an_evaluation_killed_at_ten_moments_gives_the_same_bytes(corpus, tiny_model, tmp_path, whole):
    check_kills(corpus, tiny_model, tmp_path, whole, kills=10, scoring=True)


@pytest.mark.parametrize("tasks", [2, 3])
def test_tasks_that_share_the_folder_alone_answer_as_one(corpus, tiny_model, tmp_path, whole, tasks):
    asked, settings = read(Asked(corpus, split="test", limit=30, seed=1)), Settings(str(tiny_model), corpus)
    made, model = (
        batches(asked.questions, GENERATION),
        partial(opened, settings, Limits(), settings.model_spec.contents()),
    )
    work = pickle.dumps(partial(answer, model, asked, made, tmp_path, GENERATION))  # as another process gets it
    for rank, count in [(1, 4), *((rank, tasks) for rank in reversed(range(tasks)))]:  # begun by four
        pickle.loads(work)(rank, count)
    results = evaluate(never, asked, tmp_path, GENERATION, SCORING)
    assert recorded(tmp_path) == whole
    assert (results["model"], results["processes"]) == (tiny_model.name, 1) and results["seconds"] > 0


def never(tasks: int) -> Answering:
    raise AssertionError("everything is answered")


@pytest.mark.slow
def test_a_killed_task_is_finished_by_other_tasks(corpus, tiny_model, tmp_path, whole):
    output, partial, log = tmp_path / "killed", tmp_path / "killed.partial", tmp_path / "log"
    typed = command(corpus, tiny_model, output)
    with log.open("wb") as lines:
        process = subprocess.Popen([*typed, "--tasks", "2"], stdout=lines, stderr=lines)
    while not (partial / "answers/00001.journal").exists() and process.poll() is None:
        time.sleep(0.002)
    (worker,) = [one for one in psutil.Process(process.pid).children() if one.cmdline()[-2:-1] == ["1"]]
    worker.kill()
    assert process.wait() != 0 and "killed by SIGKILL" in log.read_text()
    assert 0 < answered(partial) < 30
    subprocess.run([*typed, "--tasks", "3"], check=True, capture_output=True)
    assert recorded(output) == whole
    assert {file.name for file in output.iterdir()} == {*FILES, "results.json", ".settings.sha256"}
    assert json.loads((output / "results.json").read_text())["processes"] == 3


def test_tasks_that_cannot_open_the_model_leave_nothing(corpus, tmp_path, run):
    words = ("evaluate", "--model", "http://me:pass@10.0.0.1/v1#m", "--source", corpus, "--output", tmp_path / "out")
    code, said = run(*words, "--tasks", "2")
    assert code == 2 and "without encryption" in said
    assert not list(tmp_path.glob("out*"))
