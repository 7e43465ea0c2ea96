"""The offline stand-in chat model and how the stand-ins call differences; the judges are tested with the panel."""

from functools import partial

import pytest

from mmedpo.curation.answer_checks import changes
from mmedpo.curation.hallucinate import DECLINED, Hallucination, Item, Writer
from mmedpo.curation.prompts import render
from mmedpo.curation.standins import StandInChat, difference
from mmedpo.data.sources import read_source
from mmedpo.schema import text_fault


def written(item, style="match"):
    (choice,) = Writer(StandInChat(), style).choose([item])
    return choice


@pytest.mark.parametrize(
    ("gold", "task", "expected"),
    [
        ("Yes, there is a nodule", "closed_vqa", "No, there is no nodule"),
        ("No, there is no nodule.", "closed_vqa", "Yes, there is a nodule."),
        ("Yes, this image is taken via X-Ray.", "closed_vqa", "No, this image is not taken via X-Ray."),
        ("Yes, clearly", "closed_vqa", "No"),
        ("Left apical pneumothorax", "open_vqa", "Right basal pneumothorax"),
        ("Pleural effusion", "open_vqa", "Pleural consolidation"),
        ("CT scan", "open_vqa", "MRI scan"),
        ("There is no effusion", "open_vqa", "There is an effusion"),
        ("No pleural effusion. Lungs clear.", "report", "Pleural effusion. Lungs clear."),
        ("The heart size is normal.", "report", "The heart size is not normal."),
        ("There are no infiltrates.", "report", "There are infiltrates."),
    ],
)
def test_the_stand_in_writes_the_smallest_wrong_answer(gold, task, expected):
    choice = written(Item("?", gold, task))
    assert (choice.text, choice.made_by, choice.prompt_version) == (expected, "standin:rules", "inject@3")


def test_the_stand_in_borrows_an_answer_of_like_length_or_declines():
    alternatives = ["gallstones and more of them in a row", "Yes", "sternotomy wires", "Gallstones"]
    item = Item("What is seen?", "cardiomegaly", "open_vqa", alternatives=lambda: alternatives)
    assert written(item).text == "gallstones"
    assert written(Item("?", "cardiomegaly", "open_vqa", alternatives=lambda: ["Yes"])).reason == DECLINED
    picks = {
        written(Item(f"{i}?", "gout", "open_vqa", (), lambda: ["cyst", "goitre", "rickets"])).text for i in range(20)
    }
    assert picks == {"cyst", "goitre", "rickets"}


def test_the_stand_in_changes_one_word_in_style_minimal_and_declines_more():
    gold = "Left apical pneumothorax beside the left heart"
    assert written(Item("?", gold, "open_vqa"), "match").text == "Right basal pneumothorax beside the right heart"
    minimal = written(Item("?", gold, "open_vqa"), "minimal")
    assert (minimal.text, changes(gold, minimal.text)) == ("Right apical pneumothorax beside the left heart", 1)
    three = Item("?", "fat around it", "open_vqa", alternatives=lambda: ["air beneath skin"])
    assert written(three, "match").text == "air beneath skin"
    assert written(three, "minimal").reason == DECLINED


@pytest.mark.parametrize(
    ("gold", "task", "expected"),
    [
        ("Yes", "closed_vqa", "No, the image does not show that."),
        ("no.", "closed_vqa", "yes, the image shows that."),
        ("Left lung", "open_vqa", "The image shows right lung."),
        ("CT", "open_vqa", "The image shows MRI."),
        ("Yes, there is a mass", "closed_vqa", "No, there is no mass"),
        ("Heart is normal", "report", "Heart is not normal"),
    ],
)
def test_the_stand_in_writes_sentences_in_style_free(gold, task, expected):
    assert written(Item("?", gold, task), "free").text == expected


def test_rejected_answers_of_vqa_rad_have_the_form_of_the_chosen(shared_data):
    samples = read_source(shared_data / "vqa-rad", "train").samples
    pools = {task: sorted({s.answer for s in samples if s.task == task}) for task in ("closed_vqa", "open_vqa")}
    items = [
        Item(s.question, s.answer, s.task, alternatives=partial(nearest, pools[s.task], s.answer)) for s in samples
    ]
    choices = Writer(StandInChat()).choose(items)
    pairs = [(i.gold, c.text) for i, c in zip(items, choices, strict=True) if isinstance(c, Hallucination)]
    assert len(pairs) == len(items)
    for gold, text in pairs:
        assert text.endswith(".") == gold.endswith(".") and "\n" not in text and text == text.strip()
        if text[0].isalpha() and gold[0].isalpha() and not text.split()[0].isupper():
            assert text[0].isupper() == gold[0].isupper()
        assert abs(len(text.split()) - len(gold.split())) <= max(2, len(gold.split()))
    bare = [(gold.casefold(), text.casefold()) for gold, text in pairs if gold.casefold() in ("yes", "no")]
    assert len(bare) > 800
    assert set(bare) == {("yes", "no"), ("no", "yes")}


def nearest(pool, gold):
    return sorted(pool, key=lambda answer: (answer == gold, abs(len(answer.split()) - len(gold.split()))))[:12]


def test_the_stand_in_selects_only_clear_contradictions():
    vague = Item("?", "right lung", "open_vqa", ["zxq", "lung on the image"])
    assert written(vague) == Hallucination("left lung", "standin:rules", "inject@3", "place")
    clear = Item("?", "right lung", "open_vqa", ["zxq", "in the left lung"])
    assert written(clear) == Hallucination("in the left lung", "target model", "select@3", "place")
    assert (
        StandInChat().complete([render("judge@2", {}, question="?", gold="a", rejected="b", previous=None)])[0].failure
    )


@pytest.mark.parametrize(
    ("gold", "rejected", "expected"),
    [
        ("Yes", "No", "polarity"),
        ("There is no effusion", "There is effusion", "polarity"),
        ("effusion on the right", "pneumothorax on the right", "finding"),
        ("right lung", "left lung", "side"),
        ("right lung", "the lung", "wording"),
        ("cardiomegaly", "gallstones", "other"),
        ("No", "banana", "other"),
    ],
)
def test_difference(gold, rejected, expected):
    assert difference(gold, rejected) == expected


@pytest.mark.parametrize("style", ["match", "free"])
def test_the_stand_in_never_breaks_a_row_rule_on_answers_it_writes(style):
    golds = ["Yes", "no", "right upper lobe", "axial", "fat", "5 cm", "MR - Flair", "not seen here", "No mass is seen."]
    for task in ("open_vqa", "report"):
        items = [Item("?", gold, task, (), lambda: golds) for gold in golds]
        for item, choice in zip(items, Writer(StandInChat(), style).choose(items), strict=True):
            assert isinstance(choice, Hallucination)
            assert text_fault(item.gold, choice.text, task) is None
