"""Gold answers that may be none are counted, and only those."""

from __future__ import annotations

import pytest

from mmedpo.data.gold import DECLINES, REPEATS, doubt, doubts, notice

ASKED = "Is there a mass in the lung?"


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (ASKED, "is there a mass in the lung", REPEATS),
        (ASKED, f"Question: {ASKED}\n-Original Answer: Yes", REPEATS),  # as in the released SLAKE file
        (ASKED, "Is\u00a0there a mass in the lu\u00adng? Yes", REPEATS),
        ("Pneumothorax?", "pneumothorax", REPEATS),
        ("Pneumothorax?", "a small pneumothorax", None),
        ("Left or right?", "left", None),
        ("?", "?", None),
        *((ASKED, text, DECLINES) for text in (
            "Not sure", "not sure.", "unknown", "I don't know", "I don’t know", "Cannot be determined", "N/A", "n.a.",
            "It is not possible to tell from this image.", "Unanswerable", "I'm sorry, but I can't help with that.",
            "Sorry, I cannot assist", "As an AI language model, I cannot interpret images", "I cannot determine it",
            "I am unable to provide a diagnosis", "No answer", "not applicable", "cannot determine from the image",
            "Not enough information", "Not specified in the image", "cannot be determined from this picture",
            "Indeterminate.", "Not mentioned", "not stated in the report", "There is not enough information to answer",
            "Insufficient data", "not provided", "It cannot be assessed on these X-rays alone"[3:],
        )),
        *((ASKED, text, None) for text in (
            "No", "none", "nothing", "no answer is needed: yes"[10:], "The cause is unknown, the lungs are clear",
            "A mass cannot be excluded.", "No pneumothorax", "not enlarged", "Unknown primary tumor of the lung", "",
            "The heart is not seen", "uncertain margins", "an aortic aneurysm", "I see no mass",
            "not clear", "not visible in the image", "indeterminate nodule", "not specified type", "on the image",
            "No data artefact", "I do not see a mass", "I cannot see a mass", "Cannot be seen",
        )),
    ],
)  # fmt: skip
def test_doubt(question: str, answer: str, expected: str | None) -> None:
    assert doubt(question, answer) == expected


def test_doubts_are_counted_by_reason_and_said() -> None:
    found = doubts([(ASKED, "Yes"), (ASKED, "not sure"), (ASKED, "unknown"), (ASKED, ASKED)])
    assert found == {REPEATS: 1, DECLINES: 2}
    assert "clinic: gold answers that may not be answers: repeats the question (1), declines to answer (2)" in str(
        notice("clinic", found)
    )
    assert notice("clinic", {}) is None
