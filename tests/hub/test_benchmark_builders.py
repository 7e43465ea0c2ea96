"""Builders of benchmarks, each on a small tree in its published layout with invented content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data.sources import read_source

Run = Callable[..., tuple[int, str]]


def probed(name: str, kind: str, answer: Any = "yes", **changes: Any) -> dict[str, Any]:
    """Return a row as in ProbMed's test.json."""
    return {
        "id": name, "i": 0, "image": f"medicat/{name}.png", "image_type": "ct-scan_abdomen", "qa_type": kind,
        "question": f"Is there an invented {kind}?\n<image>", "answer": answer, "src_dataset": "MedICaT", **changes,
    }  # fmt: skip


PROBED = [
    probed("a", "modality_gt"),
    probed("a", "modality_hallu", "no"),
    probed("a", "abnormality", "Yes."),
    probed("a", "entity_gt_0"),
    probed("a", "entity_hallu_0", "no"),
    probed("a", "entity_hallu_0", "no"),  # a repeated kind
    probed("b", "entity_hallu", "no", image="probmed/medicat/b.png", image_type="X-ray - Chest"),
    probed("b", "grounding_gt_1", "maybe"),
    probed("b", "colour_gt"),
]


def probmed(root: Path, png: bytes, rows: Any = PROBED) -> Path:
    (root / "probmed/medicat").mkdir(parents=True)
    for name in "ab":
        (root / f"probmed/medicat/{name}.png").write_bytes(png)
    (root / "test.json").write_text(json.dumps(rows))
    return root


def test_probmed_becomes_a_source_of_question_sets(run: Run, png: bytes, tmp_path: Path) -> None:
    code, output = run(
        "build", "probmed", "--source", probmed(tmp_path / "ProbMed", png), "--output", "out", "--source-only"
    )
    assert code == 0 and "out: 9 rows read, 7 questions written." in output
    assert "the answer is neither yes nor no" in output and "the kind of question is unknown" in output
    source = read_source(Path("out"), "test")
    assert source.faults == [] and {sample.task for sample in source.samples} == {"closed_vqa"}
    assert [(sample.id, sample.answer, sample.question_type) for sample in source.samples] == [
        ("a-modality_gt", "yes", "modality"), ("a-modality_hallu", "no", "modality"),
        ("a-abnormality", "yes", "abnormality"), ("a-entity_gt_0", "yes", "entity"),
        ("a-entity_hallu_0", "no", "entity"), ("a-entity_hallu_0-2", "no", "entity"),
        ("b-entity_hallu", "no", "entity"),
    ]  # fmt: skip
    first, *_, last = source.samples
    assert (first.question, first.modality, first.organ) == ("Is there an invented modality_gt?", "ct-scan", "abdomen")
    assert (last.image_id, last.modality, last.organ) == ("probmed/medicat/b.png", "X-ray", "Chest")
    assert {path.name for path in Path("out").iterdir()} == {"samples.jsonl", "medicat", "probmed"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "medicat/none.png"}, "a-modality_gt [image]: is missing in the source"),
        ({"image": "../../secret.png"}, "a-modality_gt [image]: leads out of the source"),
        ({"qa_type": None}, "after row 0, it differs from what its authors publish"),
    ],
)
def test_broken_rows_of_probmed_are_named(
    run: Run, png: bytes, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    tree = probmed(tmp_path / "ProbMed", png, [{**PROBED[0], **changes}])
    code, output = run("build", "probmed", "--source", tree, "--output", "out", "--source-only")
    assert code == 2 and said in output and not Path("out").exists()


def test_source_only_is_no_curation_and_marks_restricted_data(run: Run, png: bytes, tmp_path: Path) -> None:
    tree = probmed(tmp_path / "ProbMed", png)
    words = ("build", "probmed", "--source", tree, "--output", "out", "--source-only")
    code, output = run(*words, "--keep-source", "kept", "--resume")
    assert code == 2 and "Leave out --keep-source, --resume." in output
    (tree / "CREDENTIALED").touch()
    assert run(*words)[0] == 0 and (tmp_path / "out/CREDENTIALED").exists()
    code, output = run("build", "folder", "--source", "out", "--license", "mit", "--output", "again", "--source-only")
    assert code == 2 and "is a source folder already. Leave out --source-only" in output
    assert not list(tmp_path.glob("again*"))
