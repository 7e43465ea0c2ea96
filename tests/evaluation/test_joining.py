"""Predictions made elsewhere are joined by id and question, and none is scored under another question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.joining import joined, offset

TEXTS = {
    "11": "Is there a fracture?", "12": "What plane is\tthis?", "13": "Are there >12 ribs?", "14": "Where is the mass?",
    "015": "肺部有病变吗？", "test-16": "Is there a fracture?",
}  # fmt: skip
SUFFIX = " Please choose from the following two options: [yes, no]\n<image>"


def questions(texts: dict[str, str] = TEXTS) -> list[dict[str, Any]]:
    return [
        {"id": id_, "image_id": "a", "task": "open_vqa", "question": text, "reference": "left"}
        for id_, text in texts.items()
    ]


def llava(id_: Any, text: Any, **fields: Any) -> dict[str, Any]:
    """Return a line as LLaVA-Med's scripts write it."""
    return {"question_id": id_, "text": text, "answer_id": "KUzu", "model_id": "llava", "metadata": {}, **fields}


def join(folder: Path, lines: list[dict[str, Any]], asked: list[dict[str, Any]] | None = None) -> dict[str, str]:
    """Return the answers by question, in order."""
    for name, rows in (("questions", asked or questions()), ("theirs", lines)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = joined(folder / "questions.jsonl", folder / "theirs.jsonl")
    assert [row["id"] for row, _ in found] == [row["id"] for row in asked or questions()]
    return {row["id"]: line["prediction"] for row, line in found}


def refused(folder: Path, lines: list[dict[str, Any]], asked: list[dict[str, Any]] | None = None) -> InputError:
    with pytest.raises(InputError) as raised:
        join(folder, lines, asked)
    return raised.value


def places(error: InputError) -> set[tuple[str, str]]:
    return {(fault.row, fault.column) for fault in error.faults}


def test_lines_of_both_layouts_are_joined_whatever_their_order(tmp_path: Path) -> None:
    lines = [
        llava(12, "b", prompt="<image>\nWhat plane is this?"),  # a number, and an image token
        {"id": "11", "prediction": "a", "text": "the whole output", "question": "is there a fracture"},
        llava("13", "c", prompt=TEXTS["13"] + SUFFIX),  # as LLaVA-Med's first version asked closed questions
        {"question_id": 14.0, "response": "d", "prompt": [{"role": "user", "content": f"Q: {TEXTS['14']}\nBe brief."}]},
        llava(15, None, prompt=float("nan")),
        {"id": "test-16", "question_id": "test-16", "prediction": float("nan"), "query": "Is there a\u00a0fracture?"},
    ]
    assert join(tmp_path, lines) == {"11": "a", "12": "b", "13": "c", "14": "d", "015": "", "test-16": ""}
    chinese = llava(15, "有", prompt="<image>肺部有病变吗？\n请直接回答。")
    assert join(tmp_path, [*lines[:4], chinese, lines[5]])["015"] == "有"


@pytest.mark.parametrize(
    ("by", "said"), [(1, "1 row further down"), (2, "2 rows further down"), (-1, "1 row further up")]
)
def test_a_shifted_file_is_refused_and_recognised(tmp_path: Path, by: int, said: str) -> None:
    ids, texts = list(TEXTS), list(TEXTS.values())
    named = {id_: texts[(at + by) % len(ids)] for at, id_ in enumerate(ids)}
    error = refused(tmp_path, [llava(id_, "x", prompt=text) for id_, text in named.items()])
    wrong = [id_ for id_ in ids if named[id_] != TEXTS[id_]]  # the first and the last question are equal
    assert f"{len(wrong)} of 6 predictions name another question than the source's: {', '.join(wrong[:5])}" in str(
        error
    )
    assert f"All of them name the question {said}: the file is shifted" in str(error)
    assert places(error) == {(id_, "prompt") for id_ in wrong}
    assert error.faults[0].value == f"{named[wrong[0]]!r} for {TEXTS[wrong[0]]!r}"


def test_another_question_in_one_line_is_no_shift(tmp_path: Path) -> None:
    lines = [llava(id_, "x", prompt=text) for id_, text in TEXTS.items()]
    lines[1]["prompt"] = "What plane is thistle?"  # its words, but the last is longer
    error = refused(tmp_path, lines)
    assert places(error) == {("12", "prompt")}
    assert "1 of 6 predictions name another question" in str(error) and "shifted" not in str(error)
    asked = {row["id"]: row for row in questions()}
    assert offset({"11": {"prompt": "Is it old?"}}, asked) is None
    reports = [{**row, "task": "report"} for row in questions()]  # each model has its own prompt for a report
    join(tmp_path, lines, reports)


@pytest.mark.parametrize(
    ("line", "row", "column", "sentence"),
    [
        ({"id": "11", "question_id": 12, "text": "x"}, "theirs.jsonl:1", "id", "id and question_id differ"),
        ({"qid": "12", "question_id": 11, "text": "x"}, "theirs.jsonl:1", "id", "qid and question_id differ"),
        ({"question_id": "11", "text": "x", "response": "y"}, "11", "response", "is not the text"),
        ({"question_id": "11"}, "11", "prediction", "is not a string"),
        ({"question_id": "11", "text": ["x"]}, "11", "prediction", "is not a string"),
        ({"question_id": True, "text": "x"}, "theirs.jsonl:1", "id", "neither a string nor a whole number"),
        ({"question_id": 1.5, "text": "x"}, "theirs.jsonl:1", "id", "neither a string nor a whole number"),
        ({"question_id": float("nan"), "text": "x"}, "theirs.jsonl:1", "id", "neither a string nor a whole number"),
        ({"text": "x"}, "theirs.jsonl:1", "id", "neither a string nor a whole number"),
        ({"question_id": 16, "text": "x"}, "16", "prediction", "answers no question"),
        ({"question_id": "15", "text": "x"}, "15", "prediction", "answers no question"),  # texts are joined exactly
        ({"question_id": 12, "text": "x"}, "theirs.jsonl:2", "id", "occurs before"),  # once as number, once as text
    ],
)
def test_a_line_that_cannot_be_joined_is_a_fault(
    tmp_path: Path, line: dict[str, Any], row: str, column: str, sentence: str
) -> None:
    error = refused(tmp_path, [line, *(llava(id_, "x") for id_ in TEXTS if id_ != "11")])
    assert [fault for fault in error.faults if (fault.row, fault.column) == (row, column) and sentence in str(fault)]


def test_ids_of_another_numbering_are_recognised(tmp_path: Path) -> None:
    """LLaVA-Med's numbers of VQA-RAD's questions are not those of VQA-RAD."""
    ids, texts = list(TEXTS), list(TEXTS.values())
    error = refused(tmp_path, [llava(id_, "x", prompt=text) for id_, text in zip(ids, reversed(texts), strict=True)])
    assert "4 of 6 predictions name another question" in str(error) and "shifted" not in str(error)
    assert "Their ids seem to be of another numbering." in str(error)


def test_a_list_is_read_as_lines(tmp_path: Path) -> None:
    """MedEvalKit writes one list, with the source's columns and the answer as response."""
    lines = [{"qid": int(id_), "question": "Where?", "answer": "left", "response": id_} for id_ in ("1", "2")]
    asked = questions({"1": "Where?", "2": "Where?"})
    join(tmp_path, lines, asked)
    (tmp_path / "theirs.json").write_text(json.dumps(lines, indent=4))
    found = joined(tmp_path / "questions.jsonl", tmp_path / "theirs.json")
    assert [line["prediction"] for _, line in found] == ["1", "2"]
    (tmp_path / "theirs.json").write_text("[\n  1,\n")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        joined(tmp_path / "questions.jsonl", tmp_path / "theirs.json")


def test_a_number_that_several_ids_are_is_ambiguous(tmp_path: Path) -> None:
    asked = questions({"7": "Where?", "07": "Which side?"})
    error = refused(tmp_path, [llava(7, "x"), llava("07", "y")], asked)
    assert places(error) == {("theirs.jsonl:1", "id"), ("7", "prediction")}
    assert "is the number of several ids; write the id as text" in str(error)
    assert join(tmp_path, [llava("7", "x"), llava("07", "y")], asked) == {"7": "x", "07": "y"}


def test_a_file_of_questions_is_no_file_of_answers(tmp_path: Path) -> None:
    """LLaVA's file of questions has the question as its text."""
    lines = [{"question_id": id_, "image": "a.jpg", "text": f"{text}\n<image>"} for id_, text in TEXTS.items()]
    assert "the text of every line is its question" in str(refused(tmp_path, lines))
    join(tmp_path, [{**line, "prediction": "left"} for line in lines])


@pytest.mark.parametrize("offered", [["heart", "lung"], ["A. heart", "B. lung"], ["lung", "liver"]])
def test_a_line_about_other_options_is_a_fault(tmp_path: Path, offered: list[str]) -> None:
    asked = [{"id": "1", "image_id": "a", "task": "choice_vqa", "question": "Which?", "reference": "lung",
              "options": ["lung", "heart"]}]  # fmt: skip
    for same in (["Lung", "heart"], ["A. lung", "B. heart"], None):
        line = llava("1", "A", prompt="Which?\nA. lung\nB. heart", **({"options": same} if same else {}))
        assert join(tmp_path, [line], asked) == {"1": "A"}
    assert places(refused(tmp_path, [llava("1", "A", options=offered)], asked)) == {("1", "options")}
