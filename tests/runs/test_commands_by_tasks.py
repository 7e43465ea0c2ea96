"""`mmedpo curate` and `evaluate` by tasks: the same bytes from this process, local tasks, Ray and Slurm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from standins import WORDS
from test_on_slurm import slurm, wait_for_queue  # noqa: F401  # a fixture

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str]]  # `run` of tests/conftest.py; other rooms have a conftest too

HOW = {
    "local": ["--workers", "2"], "ray": ["--executor", "ray"],
    "slurm": ["--executor", "slurm", "--slurm-partition", "cpu"],
}  # fmt: skip


def content(folder: Path) -> dict[str, object]:
    files: dict[str, object] = {file.name: file.read_bytes() for file in (folder / "data").iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["command"], manifest["versions"]
    return files | {"manifest": manifest, "rejects": (folder / "rejects.jsonl").read_bytes()}


def check_executor(run: Run, words: list[object], tmp_path: Path, executor: str, phases: list[str]) -> None:
    """Write "one" with one task and "many" with three."""
    assert run(*words, tmp_path / "one")[0] == 0
    many = [*words, tmp_path / "many", "--tasks", "3", *HOW[executor]]
    code, said = run(*many)
    if executor == "slurm":
        for table in (said, run(*many)[1]):
            assert all(phase in table for phase in phases) and not (tmp_path / "many").exists()
        wait_for_queue(300)
        code, said = run(*many)
    assert code == 0, said
    assert not (tmp_path / "many" / "jobs").exists()


@pytest.mark.parametrize("executor", HOW)
def test_curate_writes_the_same_dataset_with_any_executor(
    corpus: Path, tmp_path: Path, executor: str, run: Run
) -> None:
    pytest.importorskip("datatrove", reason="needs mmedpo[cluster]")
    words = ["curate", *WORDS, "--source", corpus, "--split", "preference", "--shard-size", "20KB", "--output"]
    check_executor(run, words, tmp_path, executor, ["check", "write"])
    found = content(tmp_path / "many")
    assert found == content(tmp_path / "one")
    assert len(found) > 4  # several files are written, by tasks of their own


@pytest.mark.parametrize("executor", ["ray", "slurm"])
def test_evaluate_writes_the_same_answers_with_any_executor(
    preferences: Path, tiny_model: Path, tmp_path: Path, executor: str, run: Run
) -> None:
    pytest.importorskip("datatrove", reason="needs mmedpo[cluster]")
    words = ["evaluate", "--model", tiny_model, "--dataset", preferences, "--limit", 12, "--batch-size", 2]
    lengths = ["--temperature", "0.7", "--max-new-tokens", "8", "--max-new-tokens-report", "12", "--output"]
    check_executor(run, [*words, *lengths], tmp_path, executor, ["answer"])
    one, many = tmp_path / "one", tmp_path / "many"
    assert {file.name for file in one.iterdir()} == {file.name for file in many.iterdir()}
    for name in ("questions.jsonl", "predictions.jsonl", "scores.jsonl"):
        assert (one / name).read_bytes() == (many / name).read_bytes()
