"""An evaluation that is killed at any moment ends with the very bytes of one that was not; so does a shared one.

Real processes and real SIGKILL; the model is a tiny one of random weights, whose answers are sampled.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.questions import Asked, read
from mmedpo.evaluation.score import Scoring
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import Processes

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
    evaluate(model, asked, folder, GENERATION, SCORING)
    return recorded(folder)


def answered(partial: Path) -> int:
    ledger = Ledger(partial / "answers.ledger")
    found = sum(1 for _ in ledger.values()) if ledger.path.exists() else 0
    ledger.close()
    return found


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


def test_processes_share_the_batches_and_the_first_has_the_results(corpus, tiny_model, tmp_path):
    """Two threads in place of processes: what they share is the folder alone."""
    greedy = Generation(8, 12, batch_size=2)
    asked, model = read(Asked(corpus, split="test", limit=20)), LocalModel(VisionLanguageModel(str(tiny_model)))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    evaluate(model, asked, tmp_path / "one", greedy, SCORING)
    found: dict[int, object] = {}

    def work(rank: int) -> None:
        found[rank] = evaluate(model, asked, tmp_path / "two", greedy, SCORING, processes=Processes(rank, 2, "now"))

    other = threading.Thread(target=work, args=(1,))
    other.start()
    work(0)
    other.join()
    assert recorded(tmp_path / "one") == recorded(tmp_path / "two")
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert found == {0: results, 1: None} and results["processes"] == 2


@pytest.mark.slow
def test_two_launched_processes_answer_as_one(corpus, tiny_model, tmp_path, whole):
    launch = (
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    )
    subprocess.run(command(corpus, tiny_model, tmp_path / "two", launch), check=True, capture_output=True)
    assert recorded(tmp_path / "two") == whole
