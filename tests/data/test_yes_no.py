"""Yes or no read against the question: invented cases judged by hand in yes_no.jsonl, each with its doubt.

`says` is what a person reads, `reads` what the rules do where they differ; `held_back` marks the sets (1, 2, 3) that
were written before the rules were tuned on them, and read once: 89 of 98, 56 of 66 and 47 of 50 agreed, one each was
read where a person reads nothing, and none was reversed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mmedpo.data.statements import asks_yes_no
from mmedpo.data.yes_no import is_echo, read, says

FRACTURE = "Is there a fracture?"
ABNORMAL = "Does the brain look abnormal?"
NORMAL = "Is the liver normal?"

CASES = [json.loads(line) for line in Path(__file__).with_name("yes_no.jsonl").read_text(encoding="utf-8").splitlines()]


def test_read_agrees_with_a_person_but_where_the_case_says_how_it_reads():
    wrong = [f"{case}: {found}" for case in CASES if (found := _read(case)) != case.get("reads", case["says"])]
    assert len(CASES) > 600 and not wrong, "\n".join(wrong)


def test_cases_that_are_read_otherwise_are_few_and_never_reversed():
    otherwise = [case for case in CASES if "reads" in case]
    assert len(otherwise) < 0.04 * len(CASES)
    assert all({case["says"], case["reads"]} != {"yes", "no"} for case in otherwise)
    assert len([case for case in otherwise if case["reads"] in ("yes", "no")]) <= 1


def test_says_is_the_yes_or_no_of_read_that_statements_do_not_contradict():
    for case in CASES:
        found = _read(case)
        expected = found if found in ("yes", "no") and "contradicted" not in case else None
        assert says(case["answer"], case["question"]) == expected, case


@pytest.mark.parametrize("style", ["Assistant: {}", "<answer>{}</answer>", "**{}**", "Answer: {}", "### Response:\n{}"])
def test_read_ignores_roles_labels_and_tags(style):
    for answer, expected in (("No", "no"), ("There is a fracture.", "yes"), ("There is no fracture", "no")):
        assert read(style.format(answer), "Is there a fracture?") == expected


@pytest.mark.parametrize(
    "style",
    [
        "{} Please answer yes or no.",
        "Yes or no: {}",
        "{} Answer with a single word.",
        "<image>\nA chest X-ray. {}",
        "{} (yes/no)",
    ],
)
def test_read_takes_instructions_for_no_part_of_the_question(style):
    question = style.format("Is there a fracture?")
    answers = ("There is no fracture.", "There is a fracture.", "There may be a fracture.", "Please answer yes or no.")
    assert [read(answer, question) for answer in answers] == ["no", "yes", "neither", "both"]


def _read(case: dict) -> str:
    return read(case["answer"], case["question"])


@pytest.mark.parametrize(
    "text",
    [
        "no mass, ",
        "chest ",
        "which is ",
        "in the image ",
        "not ",
        "a",
        "it is\n",
        "? ",
        "?: ",
        "<a",
        "!",
        "yes or ",
        "unable to ",
        "can't ",
        "no: ",
        "not be ",
    ],
)
def test_says_of_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    begin = time.process_time()
    says(text * 5_000, "Is there a mass?")
    says("A mass is seen.", f"Is there {text * 5_000}?")
    says(text * 2_000, text * 5_000)
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is/Are the lesions ring enhancing ?", True),
        ("In this image, are there masses?", True),
        ("Anything abnormal?", True),
        ("Where is it?", False),
        ("", False),
    ],
)
def test_asks_yes_no(question: str, expected: bool) -> None:
    assert asks_yes_no(question) is expected


def test_is_echo_is_a_piece_of_the_question_of_several_words() -> None:
    assert is_echo("the lungs clear", "Are the lungs clear?") and not is_echo(
        "The lungs are clear", "Are the lungs clear?"
    )
    assert not is_echo("clear", "Are the lungs clear?")
