"""Questions about several images: how a table gives them, and what belongs together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedpo.data import changes, splits
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.data.sources import read_source
from mmedpo.data.studies import linked, together

MakeSource = Callable[..., Path]
UNIQUE = "make ids unique"
STUDY = f"{UNIQUE}, or give the rows of one question about several images the same study_id"
BOX = {"label": "mass", "x": 1, "y": 2, "w": 3, "h": 4}
TWO = {"id": "q", "images": ["b.png", "a.png"], "question": "What is seen?", "answer": "a mass"}
FIRST, SECOND = ({"id": "q", "image": name, "study_id": "s", **WORDS} for name in ("b.png", "a.png") for WORDS in
                 [{"question": "What is seen?", "answer": "a mass"}])  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "table"),
    [
        ([TWO], {}),
        ([{**TWO, "images": "b.png | a.png"}], {}),
        ([{**TWO, "image": "a.png"}], {}),  # the column of one image names one of them
        ([FIRST, SECOND], {}),
        ([], {"text": "id,Images,question,answer\nq,b.png|a.png,What is seen?,a mass\n", "table": "t.csv"}),
        (
            [],
            {"text": 'id,images,question,answer\nq,"[""b.png"", ""a.png""]",What is seen?,a mass\n', "table": "t.csv"},
        ),
    ],
)
def test_images_of_a_question_are_read_in_their_order(
    make_source: MakeSource, rows: list[dict[str, Any]], table: dict[str, str]
) -> None:
    source = read_source(folder := make_source(rows, **table))
    (sample,) = source.samples
    assert (source.faults, [image.file for image in sample.images]) == ([], [folder / "b.png", folder / "a.png"])
    assert sample.image_id == "b.png|a.png"
    alone = {
        read_source(make_source([{**FIRST, "image": name}], name=name)).samples[0].image_digest
        for name in ("a.png", "b.png")
    }
    assert {image.digest for image in sample.images} == alone and sample.image_digest not in alone


def test_lesions_belong_to_the_image_that_they_name_or_to_the_first(make_source: MakeSource) -> None:
    np.save(make_source([]) / "heat.npy", np.eye(3))
    marks = {
        "boxes": [BOX, {**BOX, "x": 9, "image": 1}], "masks": ["a.png", {"file": "b.png", "image": 1}],
        "heatmap": {"file": "heat.npy", "image": 1},
    }  # fmt: skip
    folder = make_source([{**TWO, **marks}])
    (sample,) = read_source(folder).samples
    box = Box("mass", 1, 2, 3, 4)
    assert [image.boxes for image in sample.images] == [(box,), (replace(box, x=9),)]
    assert [image.masks for image in sample.images] == [(folder / "a.png",), (folder / "b.png",)]
    assert [image.heatmap for image in sample.images] == [None, folder / "heat.npy"]
    (sample,) = read_source(make_source([FIRST, {**SECOND, "boxes": [BOX]}])).samples  # of the row's own image
    assert [image.boxes for image in sample.images] == [(), (box,)]


@pytest.mark.parametrize(
    ("changed", "column", "said"),
    [
        ({"images": ["a.png", "a.png"]}, "images", "name one file twice"),
        ({"images": []}, "images", "are a list of names of image files"),
        ({"images": ["a.png", 3]}, "images", "are a list of names of image files"),
        ({"images": ["a.png", "c.png"]}, "images", "is not below the source folder"),
        ({"image": "c.png"}, "image", "is none of the row's images"),
        (
            {"boxes": [{**BOX, "image": 2}]},
            "boxes",
            "name an image that the row does not have; it has 2 images",
        ),
        ({"boxes": [{**BOX, "image": -1}]}, "boxes", "name an image that the row does not have"),
        ({"boxes": [{**BOX, "image": True}]}, "boxes", "name an image that the row does not have"),
        ({"masks": [{"file": "a.png", "image": "1"}]}, "masks", "name an image that the row does not have"),
        ({"heatmap": ["a.png", "b.png"]}, "heatmap", "has several for one image"),
        ({"question": None, "answer": None, "labels": ["mass"], "boxes": [BOX]}, "images", "are several"),
    ],
)
def test_wrong_images_and_marks_are_one_fault(
    make_source: MakeSource, changed: dict[str, Any], column: str, said: str
) -> None:
    (fault,) = read_source(make_source([{**TWO, **changed}])).faults
    assert fault.column == column and said in fault.sentence


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            {"study_id": None},
            STUDY,
        ),
        ({"study_id": "t"}, STUDY),
        ({"answer": "none"}, UNIQUE),
        ({"image": "b.png"}, UNIQUE),
        (
            {"modality": "CT", "split": "test"},
            f"{UNIQUE}, or write the same split, modality in all rows of the question",
        ),
    ],
)
def test_rows_of_one_id_that_are_not_one_question_are_faults(
    make_source: MakeSource, second: dict[str, Any], said: str
) -> None:
    source = read_source(make_source([FIRST, {**SECOND, **second}]))
    assert [fault.sentence for fault in source.faults] == [f"was used by samples.jsonl:1; {said}"]
    assert [image.name for sample in source.samples for image in sample.images] == ["b.png"]


@pytest.mark.parametrize("rows", [[FIRST, {**SECOND, "image": "c.png"}], [{**FIRST, "image": "c.png"}, SECOND]])
def test_a_question_with_a_faulty_row_is_left_out_whole(make_source: MakeSource, rows: list[dict[str, Any]]) -> None:
    source = read_source(make_source(rows))
    assert source.samples == [] and {fault.column for fault in source.faults} == {"image", "images"}


def question(id: str, *digests: str, patient: str | None = None) -> Sample:
    images = tuple(SampleImage(Path(one), one, digest=one) for one in digests)
    return Sample(id, images, "q", "a", "open_vqa", patient, "", "s", "l")


def test_images_shown_together_share_group_and_split() -> None:
    chain = [question("1", "a", "b"), question("2", "c", "b"), question("3", "c"), question("4", "d")]
    groups = together(chain)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    many = [question(str(n), f"{n}a", f"{n}b") for n in range(40)] + [question(f"{n}b", f"{n}b") for n in range(40)]
    made = splits.split(many, "patient")
    assert made.shared(None) == 0 and len(made.rows) == 3
    assert splits.Split([replace(many[0], split="train"), replace(many[40], split="test")]).shared("train") == 1


def test_a_patient_is_that_of_all_images_linked_by_questions(make_source: MakeSource) -> None:
    rows = [{**TWO, "patient_id": "p"}, {**TWO, "id": "r", "images": ["a.png"]}]
    assert [one.patient_id for one in read_source(make_source(rows)).samples] == ["p", "p"]
    rows[1]["patient_id"] = "other"
    assert {fault.column for fault in read_source(make_source(rows)).faults} == {"patient_id"}


def test_changes_compare_every_image() -> None:
    one, other = question("1", "a", "b"), question("1", "a", "c")
    ((_, before),), ((_, after),) = (list(changes.of_samples([sample])) for sample in (one, other))
    assert [name for name in after if before[name] != after[name]] == ["image"]


def test_images_are_linked_by_questions_that_show_them_together() -> None:
    found = linked([["a"], ["b", "c"], ["d"], ["c", "e"], ["b"], ["e"], ["f", "d"]])
    assert len({*found}) == 3 and found[0] == "a"
    assert found[1] == found[3] == found[4] == found[5] != found[2] == found[6]
    assert linked([["b"], ["a"], ["b"]]) == ["b", "a", "b"]  # of one image a question, itself
