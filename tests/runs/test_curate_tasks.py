"""`mmedpo curate` by tasks: the same dataset, byte by byte, from this process, local tasks, Ray and Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Run
from standins import WORDS
from test_on_slurm import slurm, wait_for_queue  # noqa: F401  # a fixture

pytestmark = pytest.mark.slow

HOW = {
    "local": ["--workers", "2"], "ray": ["--executor", "ray"],
    "slurm": ["--executor", "slurm", "--slurm-partition", "cpu"],
}  # fmt: skip


def content(folder: Path) -> dict[str, object]:
    files: dict[str, object] = {file.name: file.read_bytes() for file in (folder / "data").iterdir()}
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["command"], manifest["versions"]
    return files | {"manifest": manifest, "rejects": (folder / "rejects.jsonl").read_bytes()}


@pytest.mark.parametrize("executor", HOW)
def test_curate_writes_the_same_dataset_with_any_executor(
    corpus: Path, tmp_path: Path, executor: str, run: Run
) -> None:
    pytest.importorskip("datatrove", reason="needs mmedpo[cluster]")
    words = ["curate", *WORDS, "--source", corpus, "--split", "preference", "--shard-size", "20KB", "--output"]
    assert run(*words, tmp_path / "one")[0] == 0
    many = [*words, tmp_path / "many", "--tasks", "3", *HOW[executor]]
    code, said = run(*many)
    if executor == "slurm":
        for table in (said, run(*many)[1]):
            assert "check" in table and "write" in table and not (tmp_path / "many").exists()
        wait_for_queue(300)
        code, said = run(*many)
    assert code == 0, said
    found = content(tmp_path / "many")
    assert found == content(tmp_path / "one")
    assert len(found) > 4  # several files are written, by tasks of their own
    assert not (tmp_path / "many" / "jobs").exists()
