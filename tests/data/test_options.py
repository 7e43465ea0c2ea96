"""Options of multiple choice: columns that hold them, gold answers by letter, and the text that a model is asked."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data import options
from mmedpo.data.sources import read_source

MakeSource = Callable[..., Path]
ROW = {"id": "q1", "image": "a.png", "question": "Which organ?", "answer": "heart"}
OFFERED = ["lung", "heart", "liver"]
PROMPT = "Which organ?\nA. lung\nB. heart\nC. liver"


def test_prompt_has_a_line_for_each_option_and_gives_the_question_back() -> None:
    assert options.asked("Which organ?", OFFERED) == PROMPT and options.bare(PROMPT, OFFERED) == "Which organ?"
    assert options.asked("Where?", None) == options.bare("Where?", ()) == "Where?"


@pytest.mark.parametrize(
    "cells",
    [
        {"options": OFFERED},
        {"Choices": OFFERED},
        {"options": json.dumps(OFFERED)},
        {"options": dict(zip("ABC", OFFERED, strict=True))},
        {"options": [" A: lung ", "B: heart", "C:liver"]},  # as in PMC-VQA
        {"option_a": "lung", "option_b": "heart", "option_c": "liver", "option_d": None},
        {"Choice A": "lung", "Choice B": "heart", "Choice C": "liver"},
        {"A": "lung", "B": "heart", "C": "liver"},
    ],
)
def test_options_are_read_from_each_form(make_source: MakeSource, cells: dict[str, Any]) -> None:
    source = read_source(make_source([{**ROW, **cells}]))
    assert source.faults == [] and source.notices == []
    (sample,) = source.samples
    assert (sample.options, sample.answer, sample.task) == (tuple(OFFERED), "heart", "choice_vqa")
    assert (sample.question, sample.prompt) == ("Which organ?", PROMPT)


def test_csv_columns_keep_none_as_an_option(make_source: MakeSource) -> None:
    table = io.StringIO()
    rows = [["id", "image", "question", "answer", "A", "B", "C"], ["q1", "a.png", "What?", "B", "a mass", "none", ""]]
    csv.writer(table).writerows(rows)
    folder = make_source([])
    (folder / "samples.jsonl").unlink()
    (folder / "samples.csv").write_text(table.getvalue())
    (sample,) = read_source(folder).samples
    assert (sample.options, sample.answer) == (("a mass", "none"), "none")


def test_letters_alone_are_options(make_source: MakeSource) -> None:
    (sample,) = read_source(make_source([{**ROW, "options": ["A.", "B."], "answer": "B"}])).samples
    assert (sample.options, sample.answer) == (("A.", "B."), "B.")


def test_one_lettered_column_is_no_option(make_source: MakeSource) -> None:
    source = read_source(make_source([{**ROW, "a": "7"}]))
    assert source.samples[0].options == () and "columns that are not read: a" in source.notices[0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("heart", "heart"), ("Heart.", "heart"), ("B", "heart"), ("b", "heart"), ("(b)", "heart"), ("B.", "heart"),
        ("Option B", "heart"), ("B. heart", "heart"), ("(B) Heart", "heart"), ("B heart", "heart"),
        ("b: heart", "heart"),
        ("A", "lung"), ("D", None), ("spleen", None), ("A. heart", None), ("2", None), ("a heart", None),
    ],
)  # fmt: skip
def test_gold_is_the_text_of_one_option(answer: str, expected: str | None) -> None:
    assert options.gold(answer, OFFERED) == expected


def test_gold_that_is_a_text_and_another_letter_is_the_text() -> None:
    assert options.gold("B", ["hepatitis A", "C", "B"]) == "B"


def test_letters_are_letters_with_options_alone_and_are_counted(make_source: MakeSource) -> None:
    rows = [
        {**ROW, "answer": "B", "options": OFFERED}, {**ROW, "id": "q2", "answer": "B"},
        {**ROW, "id": "q3", "options": OFFERED}, {**ROW, "id": "q4", "answer": "yes", "options": ["Yes", "No"]},
    ]  # fmt: skip
    source = read_source(make_source(rows))
    assert [(one.answer, one.task) for one in source.samples] == [
        ("heart", "choice_vqa"), ("B", "open_vqa"), ("heart", "choice_vqa"), ("Yes", "closed_vqa"),
    ]  # fmt: skip
    (said,) = source.notices
    assert "2 gold answers given by letter" in said


@pytest.mark.parametrize(
    ("cells", "column", "sentence"),
    [
        ({"options": ["heart"]}, "options", "are 1; a question has 2 to 26 options"),
        ({"options": []}, "options", "are 0; a question has 2 to 26 options"),
        ({"options": ["heart", "Heart "]}, "options", "hold one twice"),
        ({"options": ["heart", ""]}, "options", "hold an empty one"),
        ({"options": ["heart", None]}, "options", "hold an empty one"),
        ({"options": ["A: heart", "B:", "C: lung"]}, "options", "hold an empty one"),
        ({"options": "heart, lung"}, "options", "are a list of texts"),
        ({"options": ["heart", True]}, "options", "are a list of texts"),
        ({"options": ["heart", "<image>"]}, "options", "contains '<image>'"),
        ({"option_a": "heart", "option_b": None, "option_c": "lung"}, "options", "hold an empty one"),
        ({"options": ["lung", "liver"]}, "answer", "is none of the options"),
        ({"task": "choice"}, "task", "is choice, which needs options"),
        ({"options": OFFERED, "task": "open"}, "task", "has options; use choice or closed"),
    ],
)
def test_faults_name_their_column(make_source: MakeSource, cells: dict[str, Any], column: str, sentence: str) -> None:
    (fault,) = read_source(make_source([{**ROW, **cells}])).faults
    assert fault.column == column and fault.sentence.startswith(sentence)
