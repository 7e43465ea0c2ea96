"""Real images, questions and lesion boxes, where they are at hand (never part of the project; see `shared_data`)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from standins import STANDINS

from mmedpo import schema
from mmedpo.curation.noise import box_mask
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import loading
from mmedpo.data.samples import Box
from mmedpo.data.sources import Source, read_source
from mmedpo.report.audit import audit
from mmedpo.runs.run_folder import output_folder

LIMIT = 40  # of the 193 questions about 54 X-rays of 1024 x 1024 pixels: all take half a minute

Curated = tuple[Dataset, dict[str, Any]]


def curate(source: Path, limit: int, output: Path) -> Curated:
    """The rows and the manifest of a curation of a real source, with offline stand-ins and the source's own boxes."""
    settings = Settings(source=source, limit=limit, **STANDINS)
    with output_folder(output, settings.record()) as folder:
        manifest = curate_folder(settings, folder)
    return loading.load(str(output)), manifest


@pytest.fixture(scope="module")
def vqa_rad(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(shared_data / "vqa-rad", 200, tmp_path_factory.mktemp("real") / "vqa-rad")


@pytest.fixture(scope="module")
def nih_bbox(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Curated:
    return curate(shared_data / "nih-bbox", LIMIT, tmp_path_factory.mktemp("real") / "nih-bbox")


@pytest.fixture(scope="module")
def nih_source(shared_data: Path) -> Source:
    return read_source(shared_data / "nih-bbox")


def test_vqa_rad_is_read_without_fault_and_split_by_image(shared_data: Path) -> None:
    source = read_source(shared_data / "vqa-rad", license="cc0-1.0")
    assert (len(source.samples), source.faults) == (2575, [])
    assert (source.split_by, source.license) == ("image", "cc0-1.0")
    homes: dict[str, set[str]] = {}
    for sample in source.samples:
        homes.setdefault(sample.image_id, set()).add(sample.split)
    assert len(homes) == 232 and all(len(splits) == 1 for splits in homes.values())


def test_integer_answers_of_vqa_rad_are_read_as_text(shared_data: Path) -> None:
    lines = (shared_data / "vqa-rad" / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    published = {str(row["qid"]): row["answer"] for row in map(json.loads, lines)}
    integers = {qid: str(answer) for qid, answer in published.items() if isinstance(answer, int)}
    assert len(integers) == 10
    samples = {sample.id: sample for sample in read_source(shared_data / "vqa-rad").samples}
    assert {qid: samples[qid].answer for qid in integers} == integers


def test_vqa_rad_gives_a_text_pair_or_a_reject_for_each_question(vqa_rad: Curated) -> None:
    dataset, manifest = vqa_rad
    kinds = Counter(schema.DISPREFERENCES[kind] for kind in dataset["dispreference"])
    assert manifest["counts"] == kinds == {"hallucinated_response": len(dataset)}
    assert manifest["rejects"]["no lesion was found"] == 200  # VQA-RAD has no boxes
    assert sum(manifest["rejects"].values()) + len(dataset) == 400
    assert len(dataset) > 150
    assert set(dataset["license"]) == {"unknown"}  # the table does not say, and no one was asked to guess


def test_vqa_rad_weights_differ_between_rows(vqa_rad: Curated) -> None:
    weights = np.array(vqa_rad[0]["weight"])
    assert weights.min() == 0.75 and weights.max() == 1.25
    assert len(set(weights.round(4))) > 2


def test_vqa_rad_pairs_in_the_matching_style_cannot_be_told_apart_by_their_form(
    shared_data: Path, tmp_path: Path
) -> None:
    with output_folder(tmp_path / "pairs", {}) as folder:
        curate_folder(Settings(source=shared_data / "vqa-rad", limit=800, localizer="none", **STANDINS), folder)
    found = audit(str(tmp_path / "pairs"))["style_shortcut"]
    assert found["pairs"] == 800 and 0.4 < found["auc"] < 0.65


def test_nih_boxes_become_questions_about_findings(nih_source: Source, shared_data: Path) -> None:
    assert nih_source.faults == []
    lines = (shared_data / "nih-bbox" / "boxes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    aside = [
        [box["label"].replace("Infiltrate", "Infiltration") for box in row["boxes"]
         if not box["x"] < row["width"] / 2 < box["x"] + box["w"]]
        for row in rows
    ]  # fmt: skip
    alone = [row for row, labels in zip(rows, aside, strict=True) if len(row["boxes"]) == 1 and labels == row["labels"]]
    asked = Counter(sample.id.split("-")[1] for sample in nih_source.samples)
    # In this list no image has two boxes of one finding.
    assert asked == {"present": 49, "side": sum(map(len, aside)), "what": len(alone), "absent": 54}
    assert nih_source.split_by == "patient"


def test_nih_questions_about_one_image_do_not_contradict_each_other(nih_source: Source) -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    for sample in nih_source.samples:
        answers.setdefault((sample.image_id, sample.question), set()).add(sample.answer)
    assert [key for key, found in answers.items() if len(found) > 1] == []


def test_nih_findings_that_are_labelled_or_boxed_are_not_called_absent(nih_source: Source, shared_data: Path) -> None:
    lines = (shared_data / "nih-bbox" / "boxes.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {f"images/{row['image']}": row for row in map(json.loads, lines)}
    absent = [sample for sample in nih_source.samples if sample.answer == "no"]
    assert len(absent) == 54
    for sample in absent:
        row = rows[sample.image_id]
        known = {*row["labels"], *(box["label"].replace("Infiltrate", "Infiltration") for box in row["boxes"])}
        assert sample.question not in {f"Is there {finding.lower()} in this image?" for finding in known}


def test_every_nih_lesion_is_noised_and_nothing_else(nih_bbox: Curated, shared_data: Path) -> None:
    dataset, manifest = nih_bbox
    visual = dataset.filter(lambda kinds: [kind == 1 for kind in kinds], input_columns="dispreference", batched=True)
    assert len(visual) == manifest["counts"]["lesion_noise"] > LIMIT / 2
    coverages = []
    for row in visual:
        made = row["provenance"]
        original = np.asarray(Image.open(shared_data / "nih-bbox" / made["image_id"]).convert("L"))
        before, after = (np.asarray(row[name][0].convert("L")) for name in ("images", "rejected_images"))
        assert np.array_equal(before, original)
        mask = box_mask([Box(**box) for box in made["boxes"]], *before.shape)
        assert np.array_equal(before[~mask], after[~mask])
        assert np.mean(before[mask] != after[mask]) > 0.9
        assert made["mask_coverage"] == pytest.approx(mask.mean())
        coverages.append(mask.mean())
    found = {"mean": np.mean(coverages), "max": max(coverages), "bound": 0.6}
    assert manifest["mask_coverage"] == pytest.approx(found)


def test_nih_boxes_in_the_rows_are_those_that_were_drawn(nih_bbox: Curated, shared_data: Path) -> None:
    lines = (shared_data / "nih-bbox" / "boxes.jsonl").read_text(encoding="utf-8").splitlines()
    drawn = {f"images/{row['image']}": row["boxes"] for row in map(json.loads, lines)}
    for made in (made for made in nih_bbox[0]["provenance"] if made["boxes"]):
        (box,) = made["boxes"]
        known = [(b["label"], b["x"], b["y"], b["w"], b["h"]) for b in drawn[made["image_id"]]]
        found = (box["x"], box["y"], box["width"], box["height"])
        assert any(box["label"] == label and found == pytest.approx(sides, rel=1e-6) for label, *sides in known)
