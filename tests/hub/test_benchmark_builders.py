"""Builders of benchmarks, each on a small tree in its published layout with invented content."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from standins import WORDS

from mmedpo.data import loading
from mmedpo.data.sources import read_source
from mmedpo.runs.json_files import read_json

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
    assert all(sample.question_set == sample.question_type for sample in source.samples)
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


HEADS = {
    2: ["index", "Figure_path", "Caption", "Question", *(f"Choice {letter}" for letter in "ABCD"), "Answer", "split"],
    1: ["Figure_path", "Question", "Answer", *(f"Choice {letter}" for letter in "ABCD"), "Answer_label"],
}
CHOICES = (" A:Liver ", " B: Spleen", " C:Left kidney, upper pole", " D:NA")


def pmc_row(figure: str, answer: str, choices: tuple[str, ...] = CHOICES, label: str | None = None) -> list[str]:
    """Return a row of PMC-VQA: of the first release if it has a label, else of the second."""
    question = "Which invented organ is marked? "
    if label is not None:
        return [figure, question, answer, *choices, label]
    return ["7", figure, "An invented caption, with a comma.", question, *choices, answer, "test"]


def pmc_vqa(root: Path, tables: dict[str, list[list[str]]], folder: str, release: int = 2) -> Path:
    (root / folder).mkdir(parents=True)
    for name, image in {"PMC1_F1": Image.linear_gradient("L"), "PMC2_F1_1": Image.radial_gradient("L")}.items():
        image.save(root / folder / f"{name}.jpg")
    for stem, rows in tables.items():
        with (root / f"{stem}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([HEADS[release], *rows])
    return root


def zipped(root: Path, folder: str, archive: str) -> None:
    with zipfile.ZipFile(root / archive, "w") as file:
        for image in (root / folder).iterdir():
            file.write(image, f"{folder}/{image.name}")
    shutil.rmtree(root / folder)


@pytest.mark.parametrize("packed", [False, True])
def test_both_releases_of_pmc_vqa_become_multiple_choice(run: Run, tmp_path: Path, packed: bool) -> None:
    second = {"train_2": [pmc_row("PMC1_F1.jpg", "B")], "test_2": [pmc_row("PMC2_F1_1.jpg", "D")]}
    first = {
        "train": [pmc_row("PMC1_F1.jpg", "Left kidney, upper pole", label="C")],
        "test_clean": [pmc_row("PMC2_F1_1.jpg", " liver.", label=" A ")],
    }
    for release, tables, folder, archive in (
        (2, second, "figures", "images_2.zip"),
        (1, first, "images", "images.zip"),
    ):
        tree = pmc_vqa(tmp_path / f"PMC-VQA-{release}", tables, folder, release)
        if packed:
            zipped(tree, folder, archive)
        words = ("--source", tree, "--output", f"out{release}", "--source-only", "--release", release)
        code, output = run("build", "pmc_vqa", *words)
        assert code == 0 and f"out{release}: 2 rows read, 2 questions written." in output
        source = read_source(Path(f"out{release}"))
        assert source.faults == []
        train, test = source.samples
        assert (train.split, test.split, train.task, test.task) == ("train", "test", "choice_vqa", "choice_vqa")
        assert train.options == test.options == ("Liver", "Spleen", "Left kidney, upper pole", "NA")
        assert [train.answer, test.answer] == (
            ["Spleen", "NA"] if release == 2 else ["Left kidney, upper pole", "Liver"]
        )
        assert (train.id, train.image_id, train.question) == (
            "train-0", "images/PMC1_F1.jpg", "Which invented organ is marked?",
        )  # fmt: skip


def test_rows_of_pmc_vqa_that_give_no_question_are_counted(run: Run, tmp_path: Path) -> None:
    rows = [
        pmc_row("PMC1_F1.jpg", "Spleen", label="B"),
        pmc_row("PMC1_F1.jpg", "Spleen", label="C"),
        pmc_row("PMC1_F1.jpg", "Heart", label="A"),
        pmc_row("PMC1_F1.jpg", "Heart", label=""),
        pmc_row("PMC1_F1.jpg", "Spleen", label=""),  # its text says enough
        pmc_row("PMC1_F1.jpg", "", label="D"),  # its letter does
        ["PMC1_F1.jpg", " ", "Liver", *CHOICES, "A"],
        pmc_row("PMC1_F1.jpg", "Liver", (" A:Liver", " B:", " C:Heart", " D:Lung"), "A"),
        pmc_row("PMC1_F1.jpg", "Liver", (" A:Liver", " B: liver", " C:Heart", " D:Lung"), "A"),
    ]
    tree = pmc_vqa(tmp_path / "PMC-VQA", {"test_clean": rows}, "images", 1)
    words = ("build", "pmc_vqa", "--source", tree, "--release", "1", "--parts", "test", "--source-only")
    code, output = run(*words, "--output", "out")
    assert code == 0 and "out: 9 rows read, 3 questions written." in output
    for reason, count in {
        "the answer and its letter disagree": 2, "the answer is none of the options": 1,
        "the options hold an empty one": 1, "the options hold one twice": 1,
        "the question is missing": 1,
    }.items():  # fmt: skip
        assert re.search(rf"{reason}\W+{count}\b", output)
    assert [sample.answer for sample in read_source(Path("out")).samples] == ["Spleen", "Spleen", "NA"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "test-0 [image]: is missing in the source"),
        (("--release", "3"), "--release is 3; PMC-VQA has the releases 1 and 2"),
        (("--release", "1"), "has neither images/ nor images.zip"),
        (("--parts", "valid"), "--parts is 'valid'; use train or test"),
    ],
)
def test_what_pmc_vqa_lacks_is_named(run: Run, png: bytes, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    tree = pmc_vqa(tmp_path / "PMC-VQA", {"test_2": [pmc_row("PMC3_F1.jpg", "A")]}, "figures")
    given = ("--source", tree, "--output", "out", "--source-only", "--parts", "test", *words)
    code, output = run("build", "pmc_vqa", *given)
    assert code == 2 and said in output and not Path("out").exists()


def test_a_pair_of_pmc_vqa_rejects_another_option(run: Run, tmp_path: Path) -> None:
    rows = [pmc_row("PMC1_F1.jpg", "B"), pmc_row("PMC2_F1_1.jpg", "D"), pmc_row("PMC2_F1_1.jpg", "none of these")]
    tree = pmc_vqa(tmp_path / "PMC-VQA", {"train_2": rows}, "figures")
    assert run("build", "pmc_vqa", "--source", tree, "--parts", "train", "--output", "out", *WORDS)[0] == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["source"]["license"], manifest["rejects"]) == (
        "cc-by-sa-4.0", {"the answer is none of the options": 1},
    )  # fmt: skip
    pairs = [
        (row["chosen"][0]["content"], row["rejected"][0]["content"], row["options"]) for row in loading.load("out")
    ]
    assert sorted(chosen for chosen, _, _ in pairs) == ["NA", "Spleen"]
    assert all(rejected in {*offered} - {chosen} for chosen, rejected, offered in pairs)
