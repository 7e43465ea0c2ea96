"""Texts that are no rejected response: non-answers, copies and remainders, seen from small models or alike."""

from __future__ import annotations

import pytest

from mmedpo.curation import hallucinate
from mmedpo.curation.answer_checks import answer_fault

EDEMA, LESION, WHERE = (
    "Is there edema in the brain?",
    "What is the primary pathology?",
    "Where are the lesions located?",
)
LINES = "Are the lines inside or outside of the patient?"
CEREBRUM, PONS = "cerebrum and lateral ventricles", "What is the structure near the middle of the brain?"


@pytest.mark.parametrize("style", ["match", "free"])
@pytest.mark.parametrize(
    ("question", "gold", "text", "fault"),
    [
        (EDEMA, "yes", "The correct answer is a yes: the wrong one must be a no.", "neither yes nor no"),
        (EDEMA, "yes", "The answer is", "neither yes nor no"),
        (EDEMA, "yes", "Edema in the brain.", "neither yes nor no"),
        (EDEMA, "yes", "Edema is seen in the brain.", "so does this"),
        (EDEMA, "Yes, edema", "Possibly", "neither yes nor no"),
        (EDEMA, "no", "There is no brain edema", "both sides say the same"),
        (EDEMA, "Yes, edema is seen", "Yes, there is no edema", "both sides say the same"),
        (EDEMA, "Yes, edema", "No, edema", None),
        (EDEMA, "Yes, edema", "No edema is seen", None),
        (LESION, "ring enhancing lesion on the left", "The primary pathology is a lesion on the left", "beyond"),
        (LESION, "ring enhancing lesion in the left lobe", "The primary pathology is the primary pathology", "beyond"),
        (LESION, "ring enhancing lesion in the left lobe", "ring enhancing lesion in the right lobe", None),
        (WHERE, CEREBRUM, "the lesions are located in the lateral ventricles", "beyond question and gold answer"),
        (WHERE, CEREBRUM, "lesions located", "repeats the question"),
        (WHERE, CEREBRUM, "where are the lesions", "repeats the question"),
        (WHERE, CEREBRUM, "not in the lateral ventricles", None),
        (WHERE, "right lung is smaller than left lung", "left lung is smaller than right lung", None),
        (PONS, "Pons in the stem", "The structure near the middle", "repeats the question"),
        (PONS, "Pons in the stem", "The answer is", "beyond question and gold answer"),
        (PONS, "Pons in the stem", "A cyst with the", "breaks off in the middle of a phrase"),
        (PONS, "Pons in the stem", "Thalamus, and", "breaks off in the middle of a phrase"),
        (PONS, "Pons in the stem", "The thalamus:", "breaks off in the middle of a phrase"),
        (PONS, "Pons in the stem", "The structure is false", "beyond question and gold answer"),
        (PONS, "Pons in the stem", "The middle is the wrong one", "speaks of the task"),
        (PONS, "Pons in the stem", "hepatitis A", None),
        (PONS, "stem that it is", "thalamus that it is", None),
        (LINES, "outside of it", "inside is not correct", "speaks of the task"),
        (LINES, "Outside", "Inside", None),
        (LINES, "outside of the patient", "inside of the patient", None),
    ],
)  # fmt: skip
def test_answer_fault(question: str, gold: str, text: str, fault: str | None, style: str) -> None:
    found = answer_fault(question, gold, text, "open_vqa", style)
    assert found is None if fault is None else fault in str(found)


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("It must not repeat the correct answer and must not say or hint that it is wrong.", True),
        ("another finding, another place or side", True),
        ("the wrong answer alone, empty", True),
        ("finding or place", False),
        ("plausible to a clinician who has not seen the image: a cyst", True),
        ("a cyst in another place", False),
        ("The wrong side", False),
    ],
)
def test_instructions_are_known_from_the_rendered_prompt(text: str, copied: bool) -> None:
    item = hallucinate.Item("What is seen?", "a mass in the left lung", "open_vqa")
    instructions = hallucinate._blank(style="free", **item.form)
    found = answer_fault(item.question, item.gold, text, item.task, "free", instructions)
    assert (found == "it repeats the instructions") is copied
    report = answer_fault(item.question, item.gold, text, "report", "free", instructions)
    assert (report == "it repeats the instructions") is copied


def test_a_report_may_leave_findings_out_and_needs_no_yes_or_no() -> None:
    gold = "Heart large. Left effusion. No pneumothorax."
    assert answer_fault("Describe the image.", gold, "Heart large. No pneumothorax.", "report", "match") is None
    assert answer_fault("Is it normal?", "No", "Normal", "report", "match") is None
