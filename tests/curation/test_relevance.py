import json

import pytest

from mmedpo.curation.prompts import render
from mmedpo.curation.relevance import JUDGE, LONGEST_RATIONALE, NO_SCORE, NOT_WRONG, Item, Panel
from mmedpo.curation.standins import StandInJudge
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply

RIGHT = "not wrong"
ITEM = Item("Which side?", "right lung", "left lung")


class Judge:
    """Gives the listed scores in turn (text: the whole answer; None: a failure), then adopts what it is shown."""

    revision = None

    def __init__(self, name, *answers):
        self.name, self.answers, self.requests = name, list(answers), []

    def complete(self, requests):
        requests = list(requests)
        self.requests.append(requests)
        return [self._reply(request) for request in requests]

    def _reply(self, request):
        answer = self.answers.pop(0) if self.answers else request.variables["previous"]["score"]
        if answer == RIGHT:
            return ChatReply(text=f'{{"rationale": "{self.name} says so", "wrong": false, "score": 0.0}}')
        if answer is None:
            return ChatReply(failure="HTTP 503")
        if isinstance(answer, str):
            return ChatReply(text=answer)
        return ChatReply(text=f'{{"score": {answer}, "rationale": "{self.name} says so"}}')


def judged(*judges, **options):
    (result,) = Panel(judges, **options).score([ITEM])
    return result, [entry["score"] for entry in result.judgements]


def test_agreement_in_the_first_round():
    result, history = judged(Judge("a", 0.8), Judge("b"), Judge("c"))
    assert (result.score, result.agreed, result.reason) == (0.8, True, None)
    assert history == [0.8, 0.8, 0.8]
    assert result.judgements[1] == {"round": 1, "judge": "b", "score": 0.8, "rationale": "b says so"}


def test_judges_that_are_folders_are_recorded_without_their_place():
    result, _ = judged(Judge("/home/Doe, Jane/tiny vlm", 0.8), Judge("../../Doe, Jane/other"))
    assert [entry["judge"] for entry in result.judgements] == ["tiny vlm", "other"]
    with pytest.raises(InputError, match="names must differ"):
        Panel([Judge("/a/tiny"), Judge("/b/tiny")])


def test_a_revision_is_seen_and_adopted_in_the_next_round():
    first, second, third = Judge("a", 0.8), Judge("b", 0.4), Judge("c")
    result, history = judged(first, second, third)
    assert history == [0.8, 0.4, 0.4, 0.4, 0.4, 0.4]
    assert (result.score, result.agreed) == (0.4, True)
    assert [entry["round"] for entry in result.judgements] == [1, 1, 1, 2, 2, 2]
    opening, later = first.requests[0][0], second.requests[0][0]
    assert opening.prompt == "judge@2"
    assert all(text in opening.text for text in ("Which side?", "right lung", "left lung"))
    assert "Another clinician" not in opening.text
    assert "gave the score 0.8 and said: a says so" in later.text
    assert opening.images == ()


def test_without_agreement_the_mean_of_the_history_counts():
    result, history = judged(Judge("a", 0.8, 0.7), Judge("b", 0.2, 0.3), rounds=2)
    assert history == [0.8, 0.2, 0.7, 0.3]
    assert result.score == pytest.approx((0.8 + 0.2 + 0.7 + 0.3) / 4)
    assert not result.agreed
    _, history = judged(Judge("a", *[0.8] * 9), Judge("b", *[0.2] * 9))
    assert len(history) == 5 * 2


def test_tolerance_and_the_mean_of_the_agreed_round():
    result, history = judged(Judge("a", 0.9, 0.6), Judge("b", 0.1, 0.7), tolerance=0.1)
    assert history == [0.9, 0.1, 0.6, 0.7]
    assert result.agreed
    assert result.score == pytest.approx((0.6 + 0.7) / 2)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "did not answer (HTTP 503)"),
        ("", "no JSON object"),
        ("As an AI model I cannot judge this.", "no JSON object in 'As an AI"),
        ('{"score": 0.9, "rationale": "the wro', "no JSON object"),
        ('{"score": 1.7, "rationale": ""}', '1.7 is outside [0, 1] in \'{"score": 1.7'),
        ('{"score": 1000000000000000.0, "rationale": "llama.cpp, given a maximum"}', "outside"),
        ('{"score": -0.1}', "outside"),
        ('{"score": NaN}', "outside"),
        ('{"score": true}', "outside"),
        ('{"score": null}', "not a number"),
        ('{"score": "high"}', "not a number"),
        ('{"rationale": "yes"}', "not a number"),
        ('{"score": 1' + "0" * 400 + "}", "not a number"),
    ],
)
def test_an_unreadable_answer_is_no_score(answer, why):
    result, history = judged(Judge("a", 0.6), Judge("b", answer), Judge("c"), rounds=1)
    assert history == [0.6, None, 0.6]
    assert why in result.judgements[1]["rationale"]
    assert result.score == pytest.approx(0.6)
    assert not result.agreed


@pytest.mark.parametrize(
    "rationale",
    [
        "...",
        "Question: Which side?",
        "Correct answer: right lung",
        "a clinical error with limited consequences",
        "An old fracture is placed one level too low, which seldom changes the treatment.",
    ],
)
def test_a_placeholder_or_a_part_of_the_prompt_is_no_score_whatever_stands_beside_it(rationale):
    judge = Judge("a", json.dumps({"rationale": rationale, "wrong": False, "score": 0.5}))
    result, history = judged(judge, rounds=1)
    assert (result.score, result.reason, history) == (None, NO_SCORE, [None])
    assert "is a placeholder or repeats the prompt" in result.judgements[0]["rationale"]


def test_a_rationale_of_its_own_may_quote_the_case_and_adopt_another_judges_words():
    own = {"rationale": "left lung, not right lung, is named: the wrong side", "wrong": True, "score": 0.9}
    result, history = judged(Judge("a", json.dumps(own)), Judge("b", json.dumps(own)))
    assert (result.score, result.agreed, history) == (0.9, True, [0.9, 0.9])


def test_the_prompt_asks_for_the_reason_first_and_holds_no_reply_that_would_be_read():
    judge = Judge("a", 0.5)
    judged(judge)
    (request,) = judge.requests[0]
    assert list(request.schema["properties"]) == request.schema["required"] == ["rationale", "wrong", "score"]
    assert request.schema["properties"]["score"]["enum"] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    examples = [line for line in request.text.splitlines() if line.startswith("{")]
    assert [json.loads(line)["score"] for line in examples] == [1.0, 0.5, 0.1, 0.0, 0.0]
    for line in examples:
        assert judged(Judge("a", line), rounds=1)[0].reason == NO_SCORE


@pytest.mark.parametrize(
    ("answers", "options", "score", "agreed", "reason"),
    [
        (([RIGHT], [RIGHT]), {}, None, True, NOT_WRONG),
        (([0.8, RIGHT], [RIGHT, RIGHT]), {}, None, True, NOT_WRONG),  # convinced in the second round
        (([RIGHT, 0.8], [0.8, 0.8]), {}, 0.8, True, None),
        (([RIGHT], [0.8]), {"rounds": 1}, None, False, NOT_WRONG),  # half are not enough to keep a pair
        (([RIGHT], [0.8], [0.4]), {"mode": "independent"}, 0.6, False, None),
        (([RIGHT], [RIGHT], [0.4]), {"mode": "independent"}, None, False, NOT_WRONG),
        (([RIGHT], [None], [None]), {"mode": "independent"}, None, False, NOT_WRONG),
    ],
)
def test_a_pair_is_kept_only_if_more_than_half_of_the_judgements_find_it_wrong(answers, options, score, agreed, reason):
    judges = [Judge(name, *given) for name, given in zip("abc", answers, strict=False)]
    result, _ = judged(*judges, **options)
    assert (result.score, result.agreed, result.reason) == (pytest.approx(score), agreed, reason)


def test_not_wrong_is_recorded_and_shown_to_the_next_judge():
    second = Judge("b", RIGHT)
    result, history = judged(Judge("a", RIGHT), second)
    assert history == [None, None]
    assert result.judgements[0]["rationale"] == "not wrong: a says so"
    assert "called this response not wrong at all and said: a says so" in second.requests[0][0].text
    stand_in = StandInJudge("strict").complete([
        render(JUDGE, {}, question="?", gold="yes", rejected="no", previous={"score": None, "rationale": ""})
    ])  # fmt: skip
    assert json.loads(stand_in[0].text)["score"] == 0.9


def test_the_next_judge_sees_the_last_readable_score():
    third = Judge("c")
    judged(Judge("a", 0.3), Judge("b", "no idea"), third)
    assert "gave the score 0.3 and said: a says so" in third.requests[0][0].text


def test_zero_is_a_score_that_can_be_shown_and_adopted():
    result, history = judged(Judge("a", 0), Judge("b"))
    assert (result.score, result.agreed, history) == (0.0, True, [0.0, 0.0])


@pytest.mark.parametrize("text", ['{"score": "0.7"}', '```json\n{"score": 0.7}\n```', 'I think {"score": 0.70} fits.'])
def test_a_score_in_prose_or_quotes_is_readable(text):
    assert judged(Judge("a", text))[0].score == 0.7


def test_no_score_at_all_is_a_reason_and_never_a_zero():
    result, history = judged(Judge("a", None, None), Judge("b", "?", "?"), rounds=2)
    assert (result.score, result.agreed, result.reason) == (None, False, NO_SCORE)
    assert history == [None] * 4


def test_each_turn_is_one_batch_of_the_items_still_open():
    a, b = Judge("a", 0.5, 0.9, 0.2), Judge("b", 0.5, 0.1, 0.2)
    results = Panel([a, b]).score([ITEM, Item("?", "x", "y"), Item("?", "z", "w")])
    assert [result.agreed for result in results] == [True, True, True]
    assert [len(batch) for batch in a.requests] == [3, 1]
    assert [round(result.score, 9) for result in results] == [0.5, 0.1, 0.2]
    assert Panel([a]).score([]) == []


def test_judges_of_one_name_are_refused():
    with pytest.raises(InputError, match="a, a; their names must differ"):
        Panel([Judge("a"), Judge("a")])


def test_independent_judges_score_once_and_see_no_other_score():
    judges = [Judge("a", 0.9, 0.1), Judge("b", 0.3, 0.1), Judge("c", 0.6, 0.1)]
    result, history = judged(*judges, mode="independent")
    assert history == [0.9, 0.3, 0.6]
    assert (result.score, result.agreed) == (pytest.approx((0.9 + 0.3 + 0.6) / 3), False)
    assert [entry["rationale"] for entry in result.judgements] == ["a says so", "b says so", "c says so"]
    texts = {judge.requests[0][0].text for judge in judges}
    assert len(texts) == 1 and "Another clinician" not in texts.pop()


@pytest.mark.parametrize(("tolerance", "agreed"), [(0.1, False), (0.2, True)])
def test_independent_judges_agree_within_the_tolerance(tolerance, agreed):
    result, _ = judged(Judge("a", 0.5), Judge("b", 0.7), tolerance=tolerance, mode="independent")
    assert (result.score, result.agreed) == (pytest.approx(0.6), agreed)


def test_an_independent_judge_without_a_score_is_left_out_of_the_mean():
    result, history = judged(Judge("a", 0.5), Judge("b", None), Judge("c", 0.7), tolerance=1.0, mode="independent")
    assert (result.score, result.agreed, history) == (pytest.approx(0.6), False, [0.5, None, 0.7])
    result, _ = judged(Judge("a", None), Judge("b", "?"), mode="independent")
    assert (result.score, result.reason) == (None, NO_SCORE)


def test_the_order_of_speaking_decides_a_sequential_score_and_no_independent_one():
    def score(*names, mode):
        # In sequence c adopts what it is shown, and so do a and b in the second round.
        firm = {"a": [0.2], "b": [0.8], "c": [0.5] if mode == "independent" else []}
        return judged(*(Judge(name, *firm[name]) for name in names), mode=mode)[0].score

    assert score("a", "b", "c", mode="sequential") == 0.8
    assert score("b", "a", "c", mode="sequential") == 0.2
    assert score("a", "b", "c", mode="independent") == pytest.approx(score("c", "b", "a", mode="independent"))


def test_a_rationale_fits_into_a_request_and_a_file():
    half_a_pair = '{"score": 0.5, "rationale": "a' + "\\ud800" * 5000 + '"}'
    result, _ = judged(Judge("a", half_a_pair), Judge("b", f'{{"score": "{"9" * 5000}"}}'), rounds=1)
    assert result.judgements[0]["rationale"] == "a" + "?" * (LONGEST_RATIONALE - 1)
    assert len(result.judgements[1]["rationale"]) < 300


def stand_ins():
    return [StandInJudge("strict"), StandInJudge("lenient"), StandInJudge("lexical")]


def test_the_stand_in_judges_adopt_revise_and_sometimes_disagree():
    items = [
        Item("?", "Yes", "No"),  # 0.9, 0.8, 0.9: all within 0.1 of the first
        ITEM,  # 0.7, 0.5, 0.5
        Item("?", "gallstones", "hernia"),  # 0.4, 0.3, 0.2
        Item("?", "edema of the lung", "an opacity"),  # 0.8, 0.6, 0.2: no score is near enough to all
    ]
    flipped, side, other, finding = Panel(stand_ins()).score(items)
    assert (flipped.score, len(flipped.judgements)) == (0.9, 3)
    assert side.agreed
    assert side.score == pytest.approx(0.6)
    assert len(side.judgements) == 6
    assert other.agreed
    assert not finding.agreed
    assert len(finding.judgements) == 15
    for entry in (entry for result in (flipped, side, other, finding) for entry in result.judgements):
        assert entry["score"] * 10 == pytest.approx(round(entry["score"] * 10))
        assert entry["judge"] in entry["rationale"]
    assert Panel(stand_ins()).score(items) == [flipped, side, other, finding]
