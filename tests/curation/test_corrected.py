"""Corrected chosen side: the target's own wrong answer against its smallest correction, or else the gold answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from standins import JUDGES, STANDINS

from mmedpo.curation import corrected
from mmedpo.curation.corrected import Corrector, correction_fault
from mmedpo.curation.estimate import estimate
from mmedpo.curation.hallucinate import UNREADABLE
from mmedpo.curation.settings import Run, Settings
from mmedpo.curation.text_pairs import NO_ANSWER, Chosen, Hallucination, Item, Rejection
from mmedpo.data import loading
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply
from tests.chat_server import Answer, ChatServer, Received, curated_in_budgets
from tests.conftest import MakeSource
from tests.conftest import Run as Command
from tests.curation.test_hallucinate import Scripted

OWN = "The mass is in the right lung."
MASS = Item("Where is the mass?", "left lung", "open_vqa", [OWN])
PICK = '{"choice": 1, "kind": "place"}'


def said(text: str) -> str:
    return json.dumps({"answer": text})


def one(chat: Scripted, item: Item = MASS, **options: Any) -> Any:
    (made,) = Corrector(chat, **options).choose([item])
    return made


def test_own_answer_against_its_correction() -> None:
    chat = Scripted(PICK, said("the mass is in the left  lung"))
    chosen = Chosen("The mass is in the left lung.", "scripted", "correct@1", changes=1)
    assert one(chat) == Hallucination(OWN, "target model", "select@3", "place", chosen=chosen)
    asked = chat.requests[1]
    assert f"Correct answer: left lung\nAnswer of the model: {OWN}\n" in asked.text
    assert "at most 3 words replaced" in asked.text  # half of 7
    assert asked.schema["properties"]["answer"]["maxLength"] == 69


def test_correction_is_told_its_fault_and_asked_for_once_more() -> None:
    chat = Scripted(PICK, said("The left lung has it."), said("The mass is in the left lung."))
    assert one(chat).chosen.changes == 1
    told = "You wrote before: The left lung has it.\nThat cannot be used: it changes 6 words of the model's answer, and"
    assert told in chat.requests[2].text and "You wrote before" not in chat.requests[1].text


@pytest.mark.parametrize(
    ("replies", "why"),
    [
        (
            [
                said(""),
            ],
            corrected.NO_CORRECTION,
        ),
        (["I cannot."], corrected.NO_CORRECTION),
        ([said(OWN), said(OWN)], corrected.DISAGREES),
        ([said("The mass is in the lung."), said("A mass lies in the right lung.")], corrected.DISAGREES),
        ([said("left lung"), said("left lung")], corrected.MANY),
        ([said("The mass is in the left lung or"), said("The mass is <image> in left lung.")], corrected.UNFIT),
        ([said("The mass is in the left lung" + " lung" * 20)] * 2, corrected.UNFIT),
    ],
)
def test_gold_against_the_own_answer_where_no_correction_can_be_used(replies: list[str], why: str) -> None:
    chat = Scripted(PICK, *replies)
    chosen = Chosen("left lung", "gold", fallback=why, is_gold=True)
    assert one(chat, style="free") == Hallucination(OWN, "target model", "select@3", "place", chosen=chosen)


def test_gold_against_a_written_answer_where_the_own_one_does_not_fit_the_style() -> None:
    chat = Scripted(PICK, said(""), '{"answer": "right lung", "kind": "place"}')
    chosen = Chosen("left lung", "gold", fallback=corrected.NO_CORRECTION, is_gold=True)
    assert one(chat) == Hallucination("right lung", "scripted", "inject@3", "place", chosen=chosen)
    assert chat.batches == [["select@3"], ["correct@1"], ["inject@3"]]


@pytest.mark.parametrize(
    ("item", "replies", "why"),
    [
        (Item("Where?", "left lung", "open_vqa", []), ['{"answer": "heart"}'], corrected.NO_SAMPLE),
        (Item("Where?", "left lung", "open_vqa", ["Left lung."]), ['{"answer": "heart"}'], corrected.NO_SAMPLE),
        (Item("Where?", "left lung", "open_vqa", ["chest"]), ['{"choice": 0}', '{"answer": "heart"}'], corrected.RIGHT),
        (Item("Is it?", "Yes", "closed_vqa", ["Yes."]), [], corrected.NO_SAMPLE),
        (Item("Which?", "CT", "choice_vqa", ["MRI"], options=["CT", "MRI", "US"]), [], corrected.OPTIONS),
    ],
)  # fmt: skip
def test_gold_where_there_is_nothing_to_correct(item: Item, replies: list[str], why: str) -> None:
    chat = Scripted(*replies)
    made = one(chat, item)
    assert made.chosen == Chosen(item.gold, "gold", fallback=why, is_gold=True)
    assert made.text in ("heart", "No", "MRI") and not chat.answers
    assert made.none_chosen is (why == corrected.RIGHT)


@pytest.mark.parametrize(
    ("replies", "item", "reason"),
    [
        ([], Item("Where?", "left lung", "open_vqa", [], failed=NO_ANSWER), NO_ANSWER),
        ([ChatReply(failure="down")], MASS, NO_ANSWER),
        ([PICK, ChatReply(failure="down")], MASS, NO_ANSWER),
        ([PICK, ChatReply(failure="cut off at 9 tokens", cut=True, partial="{")], MASS, "cut off at 9 tokens"),
        (["no choice"], MASS, UNREADABLE),
    ],
)
def test_what_a_resumed_run_asks_again(replies: list[Any], item: Item, reason: str) -> None:
    made = one(Scripted(*replies), item)
    assert isinstance(made, Rejection) and made.reason == reason


@pytest.mark.parametrize(
    ("task", "question", "gold", "own", "text", "fault"),
    [
        ("closed_vqa", "Is there a mass?", "No", "Yes, there is a mass.", "No, there is no mass.", None),
        ("closed_vqa", "Is there a mass?", "No", "Yes, there is a mass.", "Yes, a cyst.", "says no, and this says yes"),
        ("closed_vqa", "Is there a mass?", "No", "Yes, there is a mass.", "Maybe it is a mass.", "this says neither"),
        ("open_vqa", "What is seen?", "pleural effusions", "A pneumothorax.", "A pleural effusion.", None),  # plural
        ("open_vqa", "What is seen?", "effusion", "pneumothorax", "no effusion", "says effusion, and this does not"),
        ("open_vqa", "What is seen?", "no effusion", "a mass", "an effusion", "says no effusion, and this does not"),
        ("open_vqa", "What is seen?", "effusion", "a mass", "a mass, effusion", "still says all"),
        ("open_vqa", "Where?", "left lung", "right lung of the left patient", "right lung", "another side"),
        ("report", "", "Large heart. No effusion.", "Small heart. No effusion.", "Large heart. No effusion.", None),
        ("report", "", "Large heart. No effusion.", "Small heart. No mass.", "Large heart. No mass.", None),
        ("report", "", "The heart is large.", "The heart is small.", "The heart is tiny.", "no nearer"),
        ("report", "", "A left effusion.", "A right effusion.", "A right mass.", "another side"),
    ],
)  # fmt: skip
def test_agreement_with_gold(task: str, question: str, gold: str, own: str, text: str, fault: str | None) -> None:
    found = correction_fault(question, gold, own, text, task, share=1.0)
    assert (found is None) if fault is None else (found is not None and fault in found[1]), found


def test_words_that_may_change() -> None:
    own, text = "a b c d e f g h", "A b c d x y z h"
    about = ("What?", "x y z", own, text, "open_vqa")
    assert correction_fault(*about, 3 / 8) is None
    assert correction_fault(*about, 2 / 8) == (
        corrected.MANY, "it changes 3 words of the model's answer, and at most 2 may change",
    )  # fmt: skip
    assert correction_fault("What?", "x y", "b a", "x y", "open_vqa", 0.0) is None  # two words always may


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"chosen": "best"}, "chosen is 'best'; use one of gold, corrected"),
        ({"chosen": "corrected", "pairs": "ranked:f1"}, "target's samples on both sides"),
        ({"chosen": "corrected", "chat": "none"}, "corrections are written by a chat model"),
        ({"chat": "standin:rules", "max_changed": 0.2}, "max_changed is of corrections"),
        ({"chosen": "corrected", "chat": "standin:rules", "max_changed": 1.2}, "max_changed is 1.2"),
    ],
)
def test_refused_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(source=Path(), **{"model": "m", "judges": JUDGES, **given})


def test_target_is_required() -> None:
    with pytest.raises(InputError, match="--chosen corrected: needs answers of a target model"):
        Settings(source=Path(), chosen="corrected", **STANDINS).refuse_unnamed()


def test_curate_corrected_pairs(run: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["--source", corpus, "--split", "preference", "--model", tiny_model, "--limit", 40]
    words += ["--chat", "standin:rules", "--judges", *JUDGES, "--chosen", "corrected"]
    code, told = run("curate", *words, "--output", tmp_path / "pairs")
    assert code == 0, told
    made = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    rows = [row for row in loading.load(str(tmp_path / "pairs")) if row["dispreference"] == 0]
    found = made["chosen"]
    by_gold = [row for row in rows if row["provenance"]["chosen_by"] == "gold"]
    assert found["made_by"] == {"standin:rules": len(rows) - len(by_gold), "gold": len(by_gold)}
    assert sum(found["fallback"].values()) == len(by_gold) and by_gold
    changed = []
    for row in rows:
        about, (chosen, rejected) = row["provenance"], (row[side][0]["content"] for side in ("chosen", "rejected"))
        if about["chosen_by"] == "gold":
            assert chosen == about["gold"] and about["chosen_changes"] is about["chosen_prompt_version"] is None
        else:
            assert rejected in [text.strip() for text in about["candidates"]] and about["rejected_by"] == "tiny"
            assert about["chosen_prompt_version"] == "correct@1"
            changed.append(about["chosen_changes"])
    assert found["changed_words"] == {"mean": sum(changed) / len(changed), "max": max(changed)} and min(changed) > 0
    assert "standin:rules" in made["standins"] and made["prompt_versions"]["correct"] == "correct@1"
    card = (tmp_path / "pairs" / "README.md").read_text()
    assert f"The gold answer was chosen after all for {len(by_gold)} pairs" in card and "Corrected pairs" in card


QUESTIONS = [
    {"id": f"q{i}", "image": "a.png", "question": f"Where is mass {i}?", "answer": "left lung"} for i in range(12)
]


def answering(received: Received) -> Answer:
    if received.has_image:
        return Answer(OWN, more=(Answer("Here."),))
    kind = next(
        reply
        for opening, reply in (
            ("was asked a question", {"choice": 1, "kind": "place"}),
            ("answered a question about an image, and", {"answer": "The mass is in the left lung."}),
            ("You are a clinician", {"rationale": "Another side.", "wrong": True, "score": 0.8}),
        )
        if opening in received.text
    )
    if "mass 7" in received.text and "answer" in kind:
        kind = {"answer": ""}
    return Answer(json.dumps(kind), usage=(10, 5))


def corrected_settings(make_source: MakeSource, server: ChatServer) -> Settings:
    return Settings(
        source=make_source(QUESTIONS), localizer="none", model=f"{server.url}#med", samples=2, chosen="corrected",
        style="free", chat=f"{server.url}#writer", judges=[f"{server.url}#judge"],
    )  # fmt: skip


def test_corrections_resumed_repeat_no_call_and_give_the_same_bytes(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = answering
    settings = corrected_settings(make_source, chat_server)
    runs = {"whole": [None], "stopped": [60, 8, 8, None]}
    made = [curated_in_budgets(settings, tmp_path / name, chat_server, budgets) for name, budgets in runs.items()]
    assert made[0] == made[1]
    assert made[0][0] == 40 + 12 + 12 + 12 + 12  # check of the judge, samples, selection, corrections, judge
    assert made[0][1]["chosen"]["fallback"] == {corrected.NO_CORRECTION: 1}


def test_estimate_counts_corrections(chat_server: ChatServer, make_source: MakeSource, tmp_path: Path) -> None:
    chat_server.answer = answering
    settings = corrected_settings(make_source, chat_server)
    run = Run(output=tmp_path / "none", estimate_questions=12, judges_below_bar="go", cache=tmp_path / "cache")
    found = estimate(settings, run, tmp_path)
    lines = {line: counts["calls"] for line, counts in found.lines.items()}
    assert lines["rejected responses", "writer"] == (24, 24, 24)  # a selection and a correction a question
