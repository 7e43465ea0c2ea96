"""Where commands write: asked before the work begins, and named when it ends; the questions file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmedpo.errors import InputError
from mmedpo.runs import packaged, writable
from tests.pictures import saved

Run = Callable[..., tuple[int, str]]
EVALUATE = ["--max-new-tokens", "4", "--max-new-tokens-report", "4", "--report-protocol", "huggingface"]


@pytest.mark.parametrize(
    "line",
    [  # of things that are not there: the output is looked at first
        "audit nowhere", "score nowhere", "quickstart",
        "train --dataset_name nowhere --model_name_or_path nowhere --use_cpu true --bf16 false",
        "evaluate --model nowhere --source nowhere", "compare nowhere nowhere", "questions --source nowhere",
        "evaluate --model nowhere --dataset nowhere --measure preference",
        "build folder --source {corpus} --chat none --judges none",
        "attention --model nowhere --adapter nowhere --source nowhere", "convert {corpus}",
        "curate --source nowhere --license cc0-1.0 --chat none --judges none",
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    line: str, run: Run, corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    code, output = run(*line.format(corpus=corpus).split(), "--output", tmp_path / "file" / "out")
    assert code == 2 and f"Cannot write {tmp_path / 'file' / 'out'}" in output.replace("\n", ""), output
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(InputError, match=f"No space left on the disk of {tmp_path}: 3 MiB are free"):
        writable.check(tmp_path / "new" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["curate --source {corpus} --license cc0-1.0", "train --config {recipe}"])
def test_a_template_that_is_missing_is_refused_before_the_work(
    line: str, run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = packaged.folder("recipes") / "quickstart.yaml"
    monkeypatch.setattr(packaged, "folder", lambda name: tmp_path / "nowhere")
    words = line.format(corpus=corpus, recipe=recipe).split()
    code, output = run(*words, *["--chat", "none", "--judges", "none"] * ("curate" in line), "--output", "out")
    assert code == 2 and "template cannot be read" in output
    assert list(tmp_path.iterdir()) == []


def test_commands_end_by_naming_what_they_wrote(run: Run, corpus: Path, tiny_model: Path, preferences: Path) -> None:
    evaluate = ["--model", tiny_model, "--source", corpus, "--split", "test", "--limit", 2, *EVALUATE]
    for words, last in (
        (["audit", preferences, "--output", "a"], "a: audit.html, audit.json"),
        (["evaluate", *evaluate, "--output", "e"], "e: predictions.jsonl, questions.jsonl, results.json, scores.jsonl"),
        (["score", "e", "--output", "s"], "s: predictions.jsonl, questions.jsonl, results.json, scores.jsonl"),
        (["compare", "e", "s", "--output", "c"], "c: comparison.json, report.html, table.md, table.tex"),
    ):
        code, output = run(*words)
        assert code == 0 and output.rstrip().split("\n")[-1] == last, output


def test_copies_of_an_image_are_counted_once(run: Run, make_source: Callable[..., Path]) -> None:
    images = {
        "a.png": saved("RGB"),
        "b.png": saved("RGB"),
        "c.png": saved("RGB", compress_level=0),
        "d.png": saved("L"),
    }
    rows = [{"image": name, "question": "Is it normal?", "answer": "yes"} for name in (*images, "a.png")]
    source = make_source([{"id": str(i), **row} for i, row in enumerate(rows)], images=images)
    code, output = run("questions", "--source", source, "--output", "q.jsonl")
    assert code == 0 and "q.jsonl: 5 questions about 2 images." in output
    code, output = run("questions", "--source", source, "--limit", 1, "--output", "one.jsonl")
    assert code == 0 and "one.jsonl: 1 question about 1 image." in output


@pytest.mark.parametrize("where", ["--source", "--dataset"])
def test_questions_are_those_that_evaluate_asks_and_score_takes(
    where: str, run: Run, corpus: Path, tiny_model: Path, preferences: Path, tmp_path: Path
) -> None:
    asked = [*(["--source", corpus, "--split", "test"] if where == "--source" else [where, preferences]), "--limit", 3]
    code, output = run("questions", *asked, "--output", "new/questions.jsonl")
    assert code == 0 and "new/questions.jsonl: 3 questions about " in output
    assert run("evaluate", "--model", tiny_model, *asked, *EVALUATE, "--output", "out")[0] == 0
    written = (tmp_path / "new" / "questions.jsonl").read_bytes()
    assert written == (tmp_path / "out" / "questions.jsonl").read_bytes()
    questions = [json.loads(line) for line in written.splitlines()]
    if where == "--source":
        assert all((corpus / question["image_id"]).exists() for question in questions)
    gold = [json.dumps({"id": question["id"], "prediction": question["reference"]}) for question in questions]
    (tmp_path / "theirs.jsonl").write_text("\n".join(gold))
    assert run("score", "--predictions", "theirs.jsonl", *asked, *EVALUATE[-2:], "--output", "theirs")[0] == 0
    metrics = json.loads((tmp_path / "theirs" / "results.json").read_text())["metrics"]
    assert metrics["overall_accuracy"] == 1.0
    code, output = run("questions", *asked, "--output", "new/questions.jsonl")
    assert code == 2 and "exists already" in output
