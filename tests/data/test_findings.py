"""Questions about boxed and labelled findings: one of a kind for each finding, and none that the boxes leave open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data.findings import KNOWN, VOCABULARY, ask
from mmedpo.data.sources import read_source

MakeSource = Callable[..., Path]

MASS = {"label": "Mass", "x": 600, "y": 100, "width": 100, "height": 100}  # on the right of a picture 1024 pixels wide
NODULE = {**MASS, "label": "Nodule"}
RIGHT = {"x": 100}  # the patient's right is shown on the left


NORMAL = ("No Finding",)


def made(
    boxes: Any = (), labels: Any = NORMAL, width: Any = 1024, image: str = "deep/a.png"
) -> dict[str, dict[str, Any]]:
    """The questions by their kind."""
    prefix = image.removesuffix(".png") + "-"
    return {question["id"].removeprefix(prefix): question for question in ask(image, boxes, labels, width)}


def asked(*boxes: dict[str, Any], labels: Any = NORMAL, width: Any = 1024) -> dict[str, tuple[str, str]]:
    """{kind: (question, answer)}, without the question about an absent finding."""
    found = made(boxes, labels, width)
    return {kind: (question["question"], question["answer"]) for kind, question in found.items() if kind != "absent"}


def absent(labels: Any, *boxes: dict[str, Any]) -> str | None:
    return made(boxes, labels).get("absent", {}).get("question")


def test_boxed_finding_is_asked_for_and_where_it_is_and_what_is_there() -> None:
    found = made([MASS])
    absent_finding = found["absent"]["question"].split()[2]
    assert absent_finding in VOCABULARY and absent_finding != "mass"
    assert found == {
        "present-1": {
            "id": "deep/a-present-1", "question": "Is there mass in this image?", "answer": "yes",
            "task": "closed_vqa", "boxes": [MASS],
        },
        "side-1": {
            "id": "deep/a-side-1", "question": "On which side of the patient is the mass?", "answer": "left",
            "task": "open_vqa", "boxes": [MASS],
        },
        "what-left": {
            "id": "deep/a-what-left", "question": "What abnormality is seen on the left side?", "answer": "mass",
            "task": "open_vqa", "boxes": [MASS],
        },
        "absent": {
            "id": "deep/a-absent", "question": f"Is there {absent_finding} in this image?", "answer": "no",
            "task": "closed_vqa", "boxes": [],
        },
    }  # fmt: skip


def test_no_id_names_a_finding() -> None:
    found = made([MASS, NODULE], ["Mass", "Nodule", "Edema"])
    assert len(found) == 5 and not any(name in id for id in found for name in ("mass", "nodule", *VOCABULARY))


def test_patients_right_is_shown_on_the_left() -> None:
    assert asked({**MASS, **RIGHT})["side-1"][1] == "right"
    assert "what-right" in asked({**MASS, **RIGHT}) and "what-left" not in asked({**MASS, **RIGHT})


@pytest.mark.parametrize(("x", "side"), [(412, "right"), (413, None), (511, None), (512, "left")])  # of 1024
def test_box_across_the_middle_has_no_side(x: float, side: str | None) -> None:
    assert asked({**MASS, "x": x}).get("side-1", (None, None))[1] == side


def test_nothing_is_asked_about_what_is_there_where_a_finding_was_not_boxed() -> None:
    assert list(asked(MASS, labels=["Mass", "Edema"])) == ["present-1", "side-1"]
    assert list(asked(MASS, labels=["Mass"])) == ["present-1", "side-1", "what-left"]


def test_side_follows_from_the_pictures_own_width() -> None:
    assert asked({**MASS, "x": 25, "width": 5}, width=32)["side-1"][1] == "left"
    assert asked({**MASS, "x": 25, "width": 5}, width=1024)["side-1"][1] == "right"


def test_nothing_is_asked_about_sides_without_a_width() -> None:
    assert list(asked(MASS, width=None)) == ["present-1"]


def test_two_findings_on_one_side_are_asked_for_but_not_what_is_there() -> None:
    assert list(asked(MASS, NODULE)) == ["present-1", "side-1", "present-2", "side-2"]


def test_one_finding_on_both_sides_is_nowhere_in_particular() -> None:
    found = asked(MASS, {**MASS, **RIGHT})
    assert list(found) == ["present-1", "what-right", "what-left"]
    assert found["what-right"][1] == found["what-left"][1] == "mass"


def test_question_has_the_boxes_it_is_about() -> None:
    other = {**MASS, **RIGHT}
    boxes = {kind: question["boxes"] for kind, question in made([MASS, other, NODULE]).items()}
    assert boxes["present-1"] == [MASS, other] and boxes["what-right"] == [other]
    assert boxes["present-2"] == boxes["side-2"] == [NODULE]
    assert boxes["absent"] == []


def test_two_boxes_of_a_finding_are_one_finding() -> None:
    assert list(asked(MASS, {**MASS, "y": 600})) == ["present-1", "side-1", "what-left"]


def test_infiltrate_is_infiltration_in_boxes_and_labels() -> None:
    box = {**MASS, "label": "Infiltrate"}
    assert asked(box)["present-1"][0] == "Is there infiltration in this image?"
    others = [name.title() for name in VOCABULARY if name != "infiltration"]
    assert absent(others, box) is None
    assert absent([*others, " Infiltrate "]) is None
    assert absent(others) == "Is there infiltration in this image?"


def test_image_with_every_finding_has_no_question_about_an_absent_one() -> None:
    assert made(labels=VOCABULARY) == {}


def test_no_finding_is_no_finding() -> None:
    assert list(made(labels=["No Finding"])) == ["absent"]


def test_absent_finding_depends_on_the_images_name_alone() -> None:
    assert absent(NORMAL) == absent(NORMAL)
    drawn = {made(image=f"{number}.png")["absent"]["question"] for number in range(60)}
    assert len(drawn) == len(VOCABULARY)


def test_rows_without_questions_are_read_by_their_findings(make_source: MakeSource) -> None:
    rows = [
        {
            "image": "a.png",
            "boxes": [{"label": "Mass", "x": 20, "y": 4, "w": 8, "h": 8}],
            "labels": ["Mass"],
            "width": 32,
            "patient_id": 7,
        },
        {"image": "b.png", "question": "What is seen?", "answer": "a mass", "labels": ["Mass"]},
    ]
    source = read_source(make_source(rows))
    assert source.faults == []
    boxes = {sample.id: len(sample.boxes) for sample in source.samples}
    assert boxes == {"a-present-1": 1, "a-side-1": 1, "a-what-left": 1, "a-absent": 0, "samples.jsonl:2": 0}
    assert [sample.patient_id for sample in source.samples] == ["7", "7", "7", "7", None]
    assert source.samples[1].answer == "left"


@pytest.mark.parametrize(
    ("labels", "never"),
    [
        ("Nodule/Mass|Pleural effusion", VOCABULARY),
        ("Cardiac enlargement|Pleural_Effusion", VOCABULARY),
        ("Consolidation|Pleural Effusion", VOCABULARY),
        ("Lung nodules", VOCABULARY),
        ("No effusion", VOCABULARY),
        (["Edema", "Opacity"], VOCABULARY),
        ("Nodule/Mass", ["nodule", "mass"]),
        ("Effusion, Mass", ["effusion", "mass"]),
        ("effusions; Masses|nan|", ["effusion", "mass"]),
        ("Infiltrates|Pleural_Thickening", ["infiltration"]),
        (["Consolidation", "nan"], []),
    ],
    ids=str,
)
def test_no_finding_that_a_label_may_mean_is_asked_for_as_absent(labels: Any, never: list[str]) -> None:
    asked_for = {
        found["question"].split()[2]
        for number in range(80)
        for found in ask(f"{number}.png", [], [labels] if isinstance(labels, str) else labels, None)
    }
    assert asked_for == set(VOCABULARY) - set(never)


@pytest.mark.parametrize("labels", ["[]", '["nan"]', [], ["nan", " "], "|", "Lung nodules", "Pleural_Effusion"])
def test_labels_that_leave_everything_open_are_a_fault_but_beside_boxes(make_source: MakeSource, labels: Any) -> None:
    box = {"label": "Mass", "x": 20, "y": 4, "w": 8, "h": 8}
    source = read_source(
        make_source([{"image": "a.png", "labels": labels}, {"image": "b.png", "labels": labels, "boxes": [box]}])
    )
    assert [(fault.row, fault.column) for fault in source.faults] == [("samples.jsonl:1", "labels")]
    assert all(name in source.faults[0].sentence for name in KNOWN) or "No Finding" in source.faults[0].sentence
    assert source.samples and not [sample for sample in source.samples if sample.answer == "no"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("labels", 7), ("labels", [None]), ("width", "wide"), ("width", -1), ("boxes", [{**MASS, "label": " "}])],
)
def test_findings_that_cannot_be_asked_about_are_faults(make_source: MakeSource, column: str, value: Any) -> None:
    good = {"image": "a.png", "boxes": [], "labels": ["Mass"], "width": 32}
    source = read_source(make_source([{**good, column: value}]))
    assert [fault.column for fault in source.faults] == [column] and source.samples == []


def test_csv_has_labels_and_boxes_as_text(make_source: MakeSource) -> None:
    box = '[{""label"": ""Mass"", ""x"": 20, ""y"": 4, ""w"": 8, ""h"": 8}]'
    text = f'image,labels,width,boxes\na.png,Mass|Edema,32,"{box}"\n'
    samples = read_source(make_source(text=text, table="boxes.csv")).samples
    assert [sample.id for sample in samples] == ["a-present-1", "a-side-1", "a-absent"]


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([{"label": "Mass", "x": 1}], id="incomplete"),
        pytest.param(["Mass"], id="no object"),
        pytest.param([{**MASS, "x": "left"}], id="not a number"),
        pytest.param([{**MASS, "width": 0}], id="no size"),
        pytest.param("[{", id="broken JSON"),
    ],
)
def test_faulty_boxes_of_findings_are_faults_of_the_row(make_source: MakeSource, boxes: Any) -> None:
    source = read_source(make_source([{"image": "a.png", "boxes": boxes, "labels": ["Mass"], "width": 32}]))
    assert source.samples == []
    assert "boxes" in {fault.column for fault in source.faults}
    assert {fault.row for fault in source.faults} == {"samples.jsonl:1"}
