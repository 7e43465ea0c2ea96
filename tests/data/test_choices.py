"""Options of questions and the one that an answer asserts: invented cases in choices.jsonl, each with its doubt."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mmedpo.data.choices import asserted, offered

CASES = [
    json.loads(line) for line in Path(__file__).with_name("choices.jsonl").read_text(encoding="utf-8").splitlines()
]


def _options(case: dict) -> tuple[str, ...]:
    return tuple(case.get("options") or offered(case["question"]))


def _says(case: dict) -> str:
    options = _options(case)
    found = asserted(case["answer"], options, case.get("question"), case.get("lettered", False))
    return options[found] if isinstance(found, int) else found


def test_offered_agrees_with_a_person():
    cases = [case for case in CASES if "offered" in case]
    wrong = [
        f"{case}: {offered(case['question'])}" for case in cases if list(offered(case["question"])) != case["offered"]
    ]
    assert len(cases) > 60 and not wrong, "\n".join(wrong)


def test_asserted_agrees_with_a_person():
    cases = [case for case in CASES if "says" in case]
    wrong = [f"{case}: {found}" for case in cases if (found := _says(case)) != case["says"]]
    assert len(cases) > 200 and not wrong, "\n".join(wrong)


@pytest.mark.parametrize("before", ["Assistant: ", "<answer>", "**", "Answer: ", "\n\n", "The answer is: "])
def test_asserted_reads_through_markup(before):
    assert asserted(f"{before}MRI", ("CT", "MRI")) == 1
    assert asserted(f"{before}B", ("CT", "MRI"), lettered=True) == 1


@pytest.mark.parametrize(
    "style", ["{text}", "The answer is {text}.", "({letter}) {text}", "{letter}", "Option {letter}."]
)
def test_asserted_reads_every_option_by_its_text_and_letter(style):
    for options in {tuple(case["options"]) for case in CASES if "options" in case} - {
        ("Normal", "Unremarkable", "Enlarged")
    }:
        for i, text in enumerate(options):
            answer = style.format(text=text, letter=chr(65 + i))
            assert asserted(answer, options, lettered=True) == i, (answer, options)


def test_asserted_names_the_letter_of_any_option():
    options = tuple(f"finding number {i}" for i in range(26))
    assert [asserted(f"({chr(65 + i)})", options, lettered=True) for i in range(26)] == list(range(26))
    assert asserted("Z", options[:25], lettered=True) == "neither"


def test_asserted_is_fast():
    question = "Is the lesion in the left or right lung?"
    answers = [case["answer"] for case in CASES if "says" in case]
    start = time.process_time()
    for _ in range(10):
        for answer in answers:
            asserted(answer, offered(question), question)
    assert len(answers) * 10 / (time.process_time() - start) > 10_000  # 40,000 on an idle machine
