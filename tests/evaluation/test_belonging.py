"""A comparison reads runs whose files belong together: digests that are recorded, and scores that are recomputed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.score import Scoring, finish, joined
from mmedpo.runs.run_folder import sha256


def run(folder: Path, answers: dict[str, str]) -> Path:
    """A finished evaluation of five questions, of which the last is a report."""
    folder.mkdir()
    kinds = ["closed_vqa", "closed_vqa", "open_vqa", "open_vqa", "report"]
    gold = ["yes", "no", "left lung", "a mass", "the heart is normal in size"]
    for name, lines in (
        ("questions", [{"id": f"q{i}", "image_id": f"i{i}", "task": task, "question": "?", "reference": text}
                       for i, (task, text) in enumerate(zip(kinds, gold, strict=True))]),
        ("predictions", [{"id": f"q{i}", "prediction": answers.get(f"q{i}", text)} for i, text in enumerate(gold)]),
    ):  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"format": "mmedpo.results/1", "name": folder.name, "questions_sha256": sha256(folder / "questions.jsonl")}
    finish(folder, joined(folder / "questions.jsonl", folder / "predictions.jsonl"), Scoring(), record)
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return [
        run(tmp_path / "start", {"q0": "no", "q4": "the heart is large"}),
        run(tmp_path / "after", {"q3": "a cyst"}),
    ]


def test_runs_whose_files_belong_together_are_compared(runs: list[Path]) -> None:
    found = compare(runs, resamples=20)["metrics"]["overall_accuracy"]
    assert (found["start"]["value"], found["after"]["value"]) == (0.75, 0.75)


def swap(name: str) -> Callable[[list[Path]], None]:
    return lambda runs: (runs[1] / name).write_bytes((runs[0] / name).read_bytes()) and None


def edit(name: str, **changes: Any) -> Callable[[list[Path]], None]:
    def change(runs: list[Path]) -> None:
        lines = [json.loads(line) for line in (runs[1] / name).read_text().splitlines()]
        (runs[1] / name).write_text("".join(json.dumps({**line, **changes}) + "\n" for line in lines))

    return change


def digest(**changes: Any) -> Callable[[list[Path]], None]:
    def change(runs: list[Path]) -> None:
        results = json.loads((runs[1] / "results.json").read_text())
        (runs[1] / "results.json").write_text(json.dumps(results | changes))

    return change


CHANGED = {
    "predictions of another run": (swap("predictions.jsonl"), "predictions.jsonl changed after"),
    "scores of another run": (swap("scores.jsonl"), "scores.jsonl changed after"),
    "other questions": (edit("questions.jsonl", organ="CHEST"), "questions.jsonl changed after"),
    "another digest": (digest(questions_sha256="0" * 64), "questions.jsonl changed after"),
    "digests that are none": (
        digest(files_sha256="0" * 64),
        "questions.jsonl, predictions.jsonl, scores.jsonl changed",
    ),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_file_that_is_not_what_was_recorded_is_refused(runs: list[Path], kind: str) -> None:
    change, said = CHANGED[kind]
    change(runs)
    with pytest.raises(InputError) as refused:
        compare(runs)
    assert f"after: {said}" in str(refused.value) and "Run `mmedpo evaluate` anew" in str(refused.value)


def test_scores_of_other_answers_are_refused_without_digests(runs: list[Path]) -> None:
    swap("predictions.jsonl")(runs)
    digest(files_sha256={})(runs)
    with pytest.raises(InputError) as refused:
        compare(runs)
    assert [(fault.row, fault.column) for fault in refused.value.faults] == [("q0", "scores"), ("q3", "scores")]
    assert "q0 [scores]: are not those of the prediction and the reference: verdict is 'correct', not " in str(
        refused.value
    )
