import json

import pytest
from chat_server import Answer

from mmedpo.curation import hallucinate
from mmedpo.curation.hallucinate import Hallucination, Item, Rejection, choose, length_range
from mmedpo.curation.standins import StandInChat, difference
from mmedpo.errors import InputError
from mmedpo.llm import ChatReply, EndpointChat
from mmedpo.schema import text_fault

LUNG = Item("Which organ is abnormal?", "right lung", "open_vqa", ["the left kidney"])


class Scripted:
    """A chat model that gives the listed answers in order and keeps what it was asked."""

    name, revision = "scripted", None

    def __init__(self, *answers):
        self.answers, self.requests, self.batches = list(answers), [], []

    def complete(self, requests):
        assert requests, "an empty batch is not worth a call"
        self.requests += requests
        self.batches.append([request.prompt for request in requests])
        answers = [self.answers.pop(0) for _ in requests]
        return [a if isinstance(a, ChatReply) else ChatReply(text=a) for a in answers]


def one(chat, item, **options):
    (choice,) = choose(chat, [item], **options)
    return choice


def test_the_chosen_candidate_is_the_target_models():
    chat = Scripted('The second. {"choice": 2, "kind": "place"}')
    item = Item("Where?", "right lung", "open_vqa", ["on the right", " left lung\n"])
    assert one(chat, item) == Hallucination("left lung", "target model", "select@1", "place")
    (request,) = chat.requests
    assert "1. on the right\n2. left lung\n" in request.text
    assert request.schema["properties"]["choice"]["enum"] == [0, 1, 2]


def test_candidates_that_are_not_wrong_are_never_offered():
    candidates = ["The right lung.", "RIGHT LUNG", "", "liver", "Liver"]
    chat = Scripted('{"choice": 1, "kind": "finding"}')
    assert one(chat, Item("?", "right lung", "open_vqa", candidates)).text == "Liver"
    assert chat.requests[0].variables["candidates"] == ["Liver"]
    chat = Scripted('{"choice": 1}')
    same_polarity = ["Yes, a large one.", "No.", "yes it is"]
    assert one(chat, Item("?", "Yes", "closed_vqa", same_polarity)) == Hallucination("No.", "target model", "select@1")


@pytest.mark.parametrize("candidates", [[], ["right lung"]], ids=["none sampled", "none left"])
def test_without_candidates_one_is_written_at_once(candidates):
    chat = Scripted('{"answer": " left lung ", "kind": "place"}')
    item = Item("Where?", "right lung", "open_vqa", candidates)
    assert one(chat, item) == Hallucination("left lung", "scripted", "inject@1", "place")
    assert chat.batches == [["inject@1"]]


def test_none_hallucinated_means_one_is_written():
    chat = Scripted('{"choice": 0}', '{"answer": "left lung", "kind": "no such kind"}')
    assert one(chat, LUNG) == Hallucination("left lung", "scripted", "inject@1", None)


def test_a_useless_written_answer_is_told_why_and_asked_for_once_more():
    chat = Scripted('{"choice": 0}', '{"answer": "the right lung"}', '{"answer": "left lung"}')
    assert one(chat, LUNG).text == "left lung"
    assert (
        "You wrote before: the right lung\nThat cannot be used: the rejected answer contains" in chat.requests[2].text
    )
    assert "You wrote before" not in chat.requests[1].text
    chat = Scripted('{"choice": 0}', '{"answer": "the right lung"}', '{"answer": "Right lung"}')
    refused = one(chat, LUNG)
    assert refused.reason == hallucinate.UNUSABLE
    assert "equal" in refused.detail


@pytest.mark.parametrize(
    ("answers", "reason", "detail"),
    [
        ([ChatReply(failure="HTTP 503")], hallucinate.NO_ANSWER, "HTTP 503"),
        (["I cannot help with that."], hallucinate.UNREADABLE, "I cannot help"),
        ([""], hallucinate.UNREADABLE, "''"),
        (['{"choice": 2}'], hallucinate.UNREADABLE, "0 to 1"),
        (['{"choice": true}'], hallucinate.UNREADABLE, "True"),
        (['{"kind": "other"}'], hallucinate.UNREADABLE, "None"),
        (['{"choice": 0}', '{"answer": "left lu'], hallucinate.UNREADABLE, "left lu"),
        (['{"choice": 0}', '{"answer": ["left lung"]}'], hallucinate.UNREADABLE, "not a text"),
        (['{"choice": 0}', '{"answer": " "}'], hallucinate.DECLINED, "right lung"),
        (['{"choice": "0"}', '{"answer": "right lung"}', ChatReply(failure="gone")], hallucinate.NO_ANSWER, "gone"),
    ],
)
def test_every_item_without_an_answer_has_a_reason(answers, reason, detail):
    refused = one(Scripted(*answers), LUNG)
    assert isinstance(refused, Rejection)
    assert refused.reason == reason
    assert detail in refused.detail


def test_items_are_batched_and_keep_their_order():
    items = [LUNG, Item("?", "Yes", "closed_vqa"), Item("?", "No", "closed_vqa", ["yes"]), LUNG]
    chat = Scripted(
        *('{"choice": 0}', '{"choice": 1}', ChatReply(failure="down")),
        *('{"answer": "right lung"}', '{"answer": "No"}'),
        '{"answer": "left lung"}',
    )
    choices = choose(chat, items)
    assert chat.batches == [["select@1"] * 3, ["inject@1"] * 2, ["inject@1"]]
    assert [getattr(choice, "text", "-") for choice in choices] == ["left lung", "No", "yes", "-"]
    assert choose(chat, []) == []


@pytest.mark.parametrize(("gold", "expected"), [("Yes", (1, 3)), ("a b", (1, 4)), ("w " * 10, (5, 20)), ("", (1, 2))])
def test_length_range(gold, expected):
    assert length_range(gold) == expected


def test_style_match_holds_for_sampled_and_for_written_answers():
    long = "the image shows a large mass in the left kidney"
    item = Item("Where?", "right lung", "open_vqa", [long, "left kidney"])
    chat = Scripted('{"choice": 1}')
    assert one(chat, item, style="match").text == "left kidney"
    chat = Scripted(json.dumps({"answer": long}), '{"answer": "left lung"}')
    assert one(chat, Item("Where?", "right lung", "open_vqa", [long]), style="match").text == "left lung"
    assert "(1 to 4 words)" in chat.requests[0].text
    assert "it has 10 words, and an answer in the style of the gold answer has 1 to 4" in chat.requests[1].text
    assert one(Scripted('{"choice": 1}'), item).text == long


def test_an_unknown_style_is_refused():
    with pytest.raises(InputError, match="free, match"):
        choose(Scripted(), [LUNG], style="short")


def test_over_http(chat_server):
    def answer(received):
        if "Answers of the model:" in received.text:
            return Answer('{"choice": 0, "kind": "other"}')
        return Answer('Here: {"answer": "left lung", "kind": "place"}')

    chat_server.answer = answer
    chat = EndpointChat("med-7b", base_url=chat_server.url)
    assert choose(chat, [LUNG] * 3) == [Hallucination("left lung", "med-7b", "inject@1", "place")] * 3
    assert len(chat_server.received) == 6


@pytest.mark.parametrize(
    ("gold", "task", "expected"),
    [
        ("Yes", "closed_vqa", "No"),
        ("no.", "closed_vqa", "yes."),
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
    choice = one(StandInChat(), Item("?", gold, task), style="match")
    assert (choice.text, choice.made_by, choice.prompt_version) == (expected, "standin:rules", "inject@1")


def test_the_stand_in_borrows_an_answer_of_like_length_or_declines():
    alternatives = ["gallstones and more of them in a row", "Yes", "sternotomy wires", "gallstones"]
    item = Item("What is seen?", "cardiomegaly", "open_vqa", alternatives=alternatives)
    assert one(StandInChat(), item).text == "gallstones"
    assert (
        one(StandInChat(), Item("?", "cardiomegaly", "open_vqa", alternatives=["Yes"])).reason == hallucinate.DECLINED
    )
    picks = {
        one(StandInChat(), Item(f"{i}?", "gout", "open_vqa", (), ["cyst", "goitre", "rickets"])).text for i in range(20)
    }
    assert picks == {"cyst", "goitre", "rickets"}


def test_the_stand_in_selects_only_clear_contradictions():
    vague = Item("?", "right lung", "open_vqa", ["zxq", "lung on the image"])
    assert one(StandInChat(), vague) == Hallucination("left lung", "standin:rules", "inject@1", "place")
    clear = Item("?", "right lung", "open_vqa", ["zxq", "in the left lung"])
    assert one(StandInChat(), clear) == Hallucination("in the left lung", "target model", "select@1", "place")
    assert StandInChat().complete([relevance_request()])[0].failure


def relevance_request():
    from mmedpo.curation.prompts import render

    return render("judge@1", {}, question="?", gold="a", rejected="b", previous=None)


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


def test_the_stand_in_never_breaks_a_row_rule_on_answers_it_writes():
    golds = ["Yes", "no", "right upper lobe", "axial", "fat", "5 cm", "MR - Flair", "not seen here", "No mass is seen."]
    for task in ("open_vqa", "report"):
        items = [Item("?", gold, task, (), golds) for gold in golds]
        for item, choice in zip(items, choose(StandInChat(), items), strict=True):
            assert isinstance(choice, Hallucination)
            assert text_fault(item.gold, choice.text, task) is None
