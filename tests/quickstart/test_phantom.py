"""The phantom corpus: deterministic, balanced, and with every lesion where its box says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedpo.data.sources import read_source
from mmedpo.quickstart import phantom
from mmedpo.schema import TASKS

IMAGES = {"train": 60, "test": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    phantom.write(folder, IMAGES, seed=3)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_corpus_depends_on_the_seed_alone(folder: Path, tmp_path: Path) -> None:
    for seed in (3, 4):
        phantom.write(tmp_path / str(seed), IMAGES, seed)
    assert contents(tmp_path / "3") == contents(folder)
    assert contents(tmp_path / "4") != contents(folder)


def test_corpus_is_a_faultless_source_with_its_own_split(folder: Path) -> None:
    source = read_source(folder)
    assert (source.faults, source.split_by, source.name, source.license) == ([], "source", "phantom", "cc0-1.0")
    for split, count in IMAGES.items():
        assert len({sample.image_id for sample in source.samples if sample.split == split}) == count
    assert {sample.task for sample in source.samples} == {*TASKS} - {"choice_vqa"}


def test_images_are_grey_and_small(folder: Path) -> None:
    for file in (folder / "images").iterdir():
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("L", (phantom.SIZE, phantom.SIZE))


def test_boxes_lie_in_the_image_on_the_side_that_is_said(rows: list[dict[str, object]]) -> None:
    boxed = [row for row in rows if str(row["question"]).startswith("What is seen in the")]
    assert boxed
    for row in boxed:
        (box,) = row["boxes"]
        assert box["label"] == row["answer"]
        assert box["x"] >= 0 and box["x"] + box["width"] <= phantom.SIZE
        assert box["y"] >= 0 and box["y"] + box["height"] <= phantom.SIZE
        drawn_left = box["x"] + box["width"] / 2 < phantom.SIZE / 2  # where the patient's right side is shown
        assert ("right lung" in row["question"]) == drawn_left


@pytest.mark.parametrize("finding", phantom.FINDINGS)
def test_a_lesion_changes_its_box_and_nothing_outside_it(finding: str) -> None:
    image, lungs = phantom._chest(np.random.default_rng(0))
    drawn, (x, y, width, height) = phantom._draw(image, finding, lungs["right"], "lower", np.random.default_rng(1))
    changed = np.abs(drawn - image) > 0.02  # of 1: fainter edges are not seen
    inside = np.zeros_like(changed)
    inside[int(y) : int(np.ceil(y + height)) + 1, int(x) : int(np.ceil(x + width)) + 1] = True
    assert changed[inside].mean() > 0.25
    assert not changed[~inside].any()


def test_closed_answers_are_balanced(rows: list[dict[str, object]]) -> None:
    answers = [row["answer"] for row in rows if row["task"] == "closed_vqa"]
    # Every phantom has one absent finding; four of five also a present one, and the clear-lung answers are mixed.
    assert set(answers) == {"yes", "no"}
    assert answers.count("yes") / len(answers) == pytest.approx(0.5, abs=0.1)


def test_questions_of_one_image_do_not_contradict_each_other(rows: list[dict[str, object]]) -> None:
    answers: dict[object, set[object]] = {}
    for row in rows:
        answers.setdefault((row["image"], row["question"]), set()).add(row["answer"])
    assert all(len(found) == 1 for found in answers.values())


def test_report_names_each_lesion_and_each_clear_lung() -> None:
    nodule = phantom.Lesion("nodule", "left", "upper", (0, 0, 1, 1))
    opacity = phantom.Lesion("opacity", "right", "middle", (0, 0, 1, 1))
    assert phantom.report([]) == "The right lung is clear. The left lung is clear."
    assert phantom.report([nodule]) == "The right lung is clear. There is a nodule in the left upper zone."
    assert phantom.report([nodule, opacity]) == (
        "There is an opacity in the right middle zone. There is a nodule in the left upper zone."
    )
