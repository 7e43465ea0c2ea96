"""Columns of a source's table: the names that are read, what is said of others, and reports."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.curation.plan import open_source
from mmedpo.curation.settings import Settings
from mmedpo.data.columns import COLUMNS, REPORT_QUESTION
from mmedpo.data.sources import read_source
from mmedpo.evaluation import questions

MakeSource = Callable[..., Path]
WHOLE = {"id": "q1", "image": "a.png", "question": "What is seen?", "answer": "a nodule"}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "curation.md"


def test_docs_list_the_columns_that_are_read() -> None:
    table = DOCS.read_text(encoding="utf-8").split("| column | also | holds |")[1].split("\n\n")[0]
    rows = [line.replace("`|`", "").split("|")[1:3] for line in table.splitlines()[2:]]
    listed = {column.strip(" `"): tuple(re.findall(r"`(\w+)`", others)) for column, others in rows}
    assert listed == {column: names[1:] for column, names in COLUMNS.items()}


@pytest.mark.parametrize(
    "name",
    ["patient_id", "patient", "Patient", "patientid", "PatientID", "Patient ID", "patient-id", "subject_id", "subject",
     "SubjectID", " patient_id ", "PATIENT_ID"],
)  # fmt: skip
def test_patient_is_read_by_any_of_its_names(make_source: MakeSource, name: str) -> None:
    source = read_source(make_source([{**WHOLE, name: 7}]))
    assert [sample.patient_id for sample in source.samples] == ["7"] and source.notices == []


@pytest.mark.parametrize(
    "spelt", [str.upper, str.title, lambda name: name.replace("_", " "), lambda name: f"{name}\u200b"]
)
def test_case_and_marks_of_a_name_do_not_count(make_source: MakeSource, spelt: Callable[[str], str]) -> None:
    row = {**WHOLE, "answer_type": "OPEN", "image_organ": "CHEST", "question_type": "PRES"}
    (sample,) = read_source(make_source([{spelt(name): cell for name, cell in row.items()}])).samples
    assert (sample.id, sample.task, sample.organ, sample.question_type) == ("q1", "open_vqa", "CHEST", "PRES")


def test_columns_that_are_not_read_are_named_once_with_the_nearest(make_source: MakeSource) -> None:
    rows = [{**WHOLE, "id": str(number), "sex": "F", "licence": "mit", "phrase_type": "free"} for number in range(3)]
    source = read_source(make_source(rows))
    (said,) = source.notices
    assert said.startswith(
        "source: columns that are not read: licence (is it license?), phrase_type, sex. docs/curation.md"
    )


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        *(
            (name, True)
            for name in (
                "mrn",
                "patient_name",
                "PatientKey",
                "case_patient",
                "participant",
                "StudyID2",
                "pat_id",
                "PID",
                "pt_id",
                "EMPI",
                "case_id",
                "hadm_id",
                "CaseNumber",
                "encounter_id",
            )
        ),
        *(
            (name, False)
            for name in (
                "patient_age",
                "PatientSex",
                "study_date",
                "PatientPosition",
                "view",
                "age",
                "pidgin",
                "case_report",
                "showcase",
            )
        ),
    ],
)
def test_column_that_looks_like_a_patient_and_is_not_read_is_warned_of(
    make_source: MakeSource, name: str, warned: bool
) -> None:
    notices = read_source(make_source([{**WHOLE, name: 7}])).notices
    assert len(notices) == 1 + warned and all(name in notice for notice in notices)
    assert "(is it id?)" not in notices[0]
    assert [f"source: {name} may identify patients" in notice for notice in notices[1:]] == [True] * warned
    assert len(read_source(make_source([{**WHOLE, name: 7, "patient": 7}])).notices) == 1  # another column is read


@pytest.mark.parametrize("name", ["pid", "caption", "age", "kind", "rid"])
def test_no_column_is_said_to_be_near_one_of_another_beginning(make_source: MakeSource, name: str) -> None:
    (said, *_) = read_source(make_source([{**WHOLE, name: "x"}])).notices
    assert f"source: columns that are not read: {name}. " in said


@pytest.mark.parametrize(
    ("header", "counts", "file"),
    [
        ("image,Image", "image", "a.png"),
        ("Image,image", "Image", "a.png"),
        ("image_name,IMAGE", "IMAGE", "b.png"),
        ("img_name,image_name", "image_name", "b.png"),
        ("IMG-name,img_name", "IMG-name", "a.png"),
    ],
)
def test_column_that_is_said_to_count_is_the_one_that_is_read(
    make_source: MakeSource, header: str, counts: str, file: str
) -> None:
    source = read_source(make_source(text=f"{header},question,answer\na.png,b.png,Where?,left\n", table="t.csv"))
    assert [sample.image_id for sample in source.samples] == [file]
    assert source.notices == [
        f"source: columns {', '.join(sorted(header.split(',')))} have the same meaning; {counts} is used where it has "
        "a value."
    ]


def test_columns_that_mean_the_same_are_said(make_source: MakeSource) -> None:
    source = read_source(make_source([{**WHOLE, "prompt": "Where?", "patient": "b", "Patient_ID": "a"}]))
    assert source.samples[0].question == "What is seen?" and source.samples[0].patient_id == "a"
    assert [said.split(".")[0] for said in source.notices] == [
        "source: columns Patient_ID, patient have the same meaning; Patient_ID is used where it has a value",
        "source: columns prompt, question have the same meaning; question is used where it has a value",
    ]


@pytest.mark.parametrize(
    ("cells", "answer"),
    [
        ({"report": "Clear lungs."}, "Clear lungs."),
        ({"Findings": "Clear lungs."}, "Clear lungs."),
        ({"impression": " Normal chest. "}, "Normal chest."),
        ({"impression": "Normal chest.", "findings": "Clear lungs."}, "Clear lungs. Normal chest."),
        ({"impression": "NaN", "findings": "Clear lungs."}, "Clear lungs."),
        ({"report": "All of it.", "findings": "Clear lungs."}, "All of it."),
        ({"report": "Clear lungs.", "labels": ["Mass"], "boxes": []}, "Clear lungs."),
        ({"report": "no", "answer": None}, "no"),
    ],
)
def test_report_makes_the_row_a_report(make_source: MakeSource, cells: dict[str, Any], answer: str) -> None:
    for question in ({}, {"question": None}, {"question": "Describe it."}):
        source = read_source(make_source([{"image": "a.png", **question, **cells}]))
        assert source.faults == []
        (sample,) = source.samples
        assert (sample.question, sample.answer, sample.task) == (
            question.get("question") or REPORT_QUESTION, answer, "report",
        )  # fmt: skip


def test_answer_and_named_task_count_more_than_a_report(make_source: MakeSource) -> None:
    rows = [{**WHOLE, "report": "Clear."}, {**WHOLE, "id": "q2", "answer": "", "findings": "Clear.", "task": "open"}]
    first, second = read_source(make_source(rows)).samples
    assert (first.answer, first.task, second.answer, second.task) == ("a nodule", "open_vqa", "Clear.", "open_vqa")


def test_row_with_neither_answer_nor_report_is_a_fault(make_source: MakeSource) -> None:
    source = read_source(make_source([{"image": "a.png", "report": "Clear."}, {"image": "b.png", "report": "nan"}]))
    assert {(fault.row, fault.column) for fault in source.faults} == {
        ("samples.jsonl:2", "question"), ("samples.jsonl:2", "answer"),
    }  # fmt: skip


def test_curate_and_evaluate_say_what_was_not_read(make_source: MakeSource) -> None:
    folder = make_source([{**WHOLE, "mrn": 7, "answer": "not sure"}])
    curated = open_source(Settings(source=folder, localizer="none"))
    asked = questions.read(questions.Asked(folder))
    assert len(curated.notices) == 3 and asked.note == "\n".join(curated.notices)
    assert "doubtful_answers" not in questions.read(questions.Asked(make_source([WHOLE], name="sure"))).record
    assert asked.record["doubtful_answers"] == curated.doubtful_answers == {"declines to answer": 1}
