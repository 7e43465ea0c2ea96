"""Questions about one image that are right only together, from a source to a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedpo.evaluation.metrics import med_vqa, question_sets
from mmedpo.runs.json_files import read_json

Run = Callable[..., tuple[int, str]]
SETS = {"modality": ("yes", "no"), "entity": ("yes", "no", "yes", "no"), "abnormality": ("yes",), None: ("no",)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two images with a pair, four questions, one, and one without a set."""
    (tmp_path / "source").mkdir()
    rows = []
    for name, image in {"a": Image.linear_gradient("L"), "b": Image.radial_gradient("L")}.items():
        image.save(tmp_path / f"source/{name}.png")
        for kind, answers in SETS.items():
            for number, answer in enumerate(answers):
                question = {
                    "question": f"Is {kind} {number} shown?",
                    "answer": answer,
                    "question_type": kind or "other",
                }
                rows.append({"id": f"{name}-{kind}-{number}", "image": f"{name}.png", "question_set": kind, **question})
    (tmp_path / "source/samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "source"


def scored(run: Run, source: Path, name: str, wrong: set[str], *words: str) -> dict[str, Any]:
    """Score answers that are right but for the questions in `wrong`, or "yes" to all where `wrong` is empty."""
    assert run("questions", "--source", source, *words, "--output", f"{name}-questions.jsonl")[0] == 0
    rows = [json.loads(line) for line in Path(f"{name}-questions.jsonl").read_text().splitlines()]
    opposite = {"yes": "no", "no": "yes"}
    with Path(f"{name}.jsonl").open("w") as file:
        for row in rows:
            said = opposite[row["reference"]] if row["id"] in wrong else row["reference"]
            file.write(json.dumps({"question_id": row["id"], "text": said if wrong else "Yes."}) + "\n")
    assert run("score", "--predictions", f"{name}.jsonl", "--source", source, *words, "--output", name)[0] == 0
    found: dict[str, Any] = read_json(Path(name) / "results.json")["metrics"]
    return found


def test_a_set_is_right_only_as_a_whole(run: Run, source: Path) -> None:
    """Six sets; wrong are 1 of 2 and 1 of 4 questions, and one without a set."""
    found = scored(run, source, "some", {"a-modality-1", "b-entity-2", "a-None-0"})
    assert (found["question_set_accuracy"], found["n_question_sets"]) == (4 / 6, 6)
    assert found["closed_accuracy"] == 13 / 16
    yes = scored(run, source, "yes", set())  # right to 8 of 16 questions, and to the sets of one
    assert (yes["closed_accuracy"], yes["question_set_accuracy"]) == (8 / 16, 2 / 6)


def test_sets_are_compared_by_kind_of_question(run: Run, source: Path) -> None:
    scored(run, source, "yes", set())
    scored(run, source, "some", {"a-modality-1", "b-entity-2"})
    code, output = run("compare", "yes", "some", "--output", "table")
    assert code == 0 and "question_set_accuracy" in output
    groups = read_json(Path("table/comparison.json"))["groups"]["question_type"]
    values = {
        kind: tuple(group["metrics"]["question_set_accuracy"][name]["value"] for name in ("yes", "some"))
        for kind, group in groups.items()
        if "question_set_accuracy" in group["metrics"]
    }
    assert values == {"modality": (0, 1 / 2), "entity": (0, 1 / 2), "abnormality": (1, 1)}


def test_a_part_of_a_set_is_none(run: Run, source: Path) -> None:
    """A part is easier than the whole: --limit may take one question of a pair."""
    scored(run, source, "few", {"a-modality-1"}, "--limit", "9")
    rows = [json.loads(line) for line in Path("few/questions.jsonl").read_text().splitlines()]
    asked = [(row["image_id"], row["question_type"]) for row in rows]
    for row in rows:
        kind = None if row["question_type"] == "other" else row["question_type"]
        whole = kind and asked.count((row["image_id"], kind)) == len(SETS[kind])
        assert row.get("question_set") == (kind if whole else None)
    assert 0 < sum("question_set" in row for row in rows) < len(rows)


def test_sets_of_one_name_about_two_images_are_two() -> None:
    rows: list[dict[str, Any]] = [{"image_id": image, "question_set": "s"} for image in "aab"] + [{"image_id": "b"}]
    found = question_sets.with_sets(rows, [{"correct": score} for score in (1.0, 0.0, 1.0, 0.0)])
    assert [(row.get("set_correct"), row.get("set_share")) for row in found] == [
        (0, 1 / 2), (0, 1 / 2), (1, 1), (None, None),
    ]  # fmt: skip
    assert med_vqa.aggregate([{"verdict": "wrong", **row} for row in found])["question_set_accuracy"] == 1 / 2
    assert "n_question_sets" not in med_vqa.aggregate([{"verdict": "wrong", "correct": 0.0}])
