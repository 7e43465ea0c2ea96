"""A chat completion holds an answer, a failure with its reason, or a thought, which is neither."""

from __future__ import annotations

import pytest
from chat_server import Answer

from mmedpo.curation.relevance import NO_SCORE, Item, Panel
from mmedpo.models.chat import ChatReply, parse_json

DRAFT, SCORE = '{"score": 0.1, "rationale": "a draft"}', '{"score": 0.8, "rationale": "wrong side"}'
PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]}, {"type": "text", "text": SCORE}]

ANSWERED = {
    "a tagged thought": Answer(f"<think>{DRAFT}</think>\n{SCORE}"),
    "a thought that the template opened": Answer(f"{DRAFT}\n</think>\n\n{SCORE}"),
    "MedGemma": Answer(f"<unused94>thought\n{DRAFT}<unused95>{SCORE}"),
    "Magistral": Answer(f"[THINK]{DRAFT}[/THINK]{SCORE}"),
    "a thought that the server split off": Answer(SCORE, reasoning=DRAFT),
    "parts of a message": Answer(content=PARTS),
    "answer tags": Answer(f"<think>{DRAFT}</think><answer>{SCORE}</answer> {DRAFT}"),
    "no finish_reason": Answer(SCORE, finish=None),
    "TGI's finish_reason": Answer(SCORE, finish="eos_token"),
    "upper case": Answer(SCORE, finish="STOP"),
}


@pytest.mark.parametrize("answer", ANSWERED.values(), ids=ANSWERED)
def test_an_answer_is_read_without_its_thought(chat_server, endpoint, ask, answer):
    chat_server.answer = lambda received: answer
    assert endpoint().complete([ask()]) == [ChatReply(SCORE)]
    assert Panel([endpoint()]).score([Item("Which side?", "right", "left")])[0].score == 0.8


CUT = "cut off at 512 tokens"
UNFINISHED = "its thought was not finished within 512 tokens"
FAILED = {
    "cut off": (Answer(SCORE, finish="length"), CUT, SCORE),
    "cut off, as Anthropic says it": (Answer(SCORE, finish="max_tokens"), CUT, SCORE),
    "cut off after the thought": (Answer(f"<think>{DRAFT}</think>{SCORE}", finish="length"), CUT, SCORE),
    "cut off in the thought": (Answer(f"<think>{DRAFT}", finish="length"), UNFINISHED, None),
    "cut off in a thought that the server split off": (
        Answer(None, finish="length", reasoning=DRAFT),
        UNFINISHED,
        None,
    ),
    "cut off before anything": (Answer("", finish="length"), CUT, None),
    "ended in the thought": (Answer(f"[THINK]{DRAFT}"), "its thought was not finished", None),
    "a thought alone": (Answer(f"<think>{DRAFT}</think> "), "the answer is empty", None),
    "a split-off thought alone": (Answer("", reasoning=DRAFT), "the answer is empty", None),
    "filtered": (Answer(SCORE, finish="content_filter"), "it ended by finish_reason 'content_filter'", None),
    "a tool's turn": (Answer(None, finish="tool_calls"), "it ended by finish_reason 'tool_calls'", None),
    "a reason that quotes": (
        Answer("", finish="the patient " * 70_000),
        "it ended by finish_reason of no known form",
        None,
    ),
    "the provider's error": (Answer("", finish="error"), "it ended by finish_reason 'error'", None),
}


@pytest.mark.parametrize(("answer", "failure", "partial"), FAILED.values(), ids=FAILED)
def test_what_is_no_whole_answer_is_a_failure_that_is_not_kept(chat_server, cached, ask, answer, failure, partial):
    chat_server.answer = lambda received: answer
    failure = failure.replace("512", "2048")  # it is asked again with more room
    expected = ChatReply(failure=failure, partial=partial)
    assert cached().complete([ask()]) == [expected]
    (judged,) = Panel([cached()], rounds=1).score([Item("Which side?", "right", "left")])
    assert (judged.score, judged.reason) == (None, NO_SCORE)
    assert judged.judgements[0]["rationale"] == f"no score: the judge did not answer ({failure})"
    chat_server.answer = lambda received: Answer(SCORE)
    assert cached().complete([ask()]) == [ChatReply(SCORE)]  # asked again


def test_tokens_of_a_failure_count(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer("The le", finish="length", usage=(10, 512))
    (reply,) = endpoint().complete([ask()])
    assert (reply.prompt_tokens, reply.completion_tokens) == (10, 512)


@pytest.mark.parametrize("draft", [f"<think>{DRAFT}", f"<unused94>thought {DRAFT}", f"{SCORE} <thinking> {DRAFT}"])
def test_parse_json_reads_no_draft(draft):
    assert parse_json(draft) is None
