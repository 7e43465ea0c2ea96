"""Judges over a loopback endpoint: what they found, what is asked again, what is refused."""

import json

import pytest
from chat_server import Answer

from mmedpo.errors import InputError, Stopped
from mmedpo.evaluation import asking
from mmedpo.models.chat.limits import Limits
from mmedpo.models.chat.prompts import Prompts

SCHEMA = {"type": "object", "properties": {"length": {"type": "integer"}}, "required": ["length"]}
ITEMS = [{"answer": word} for word in ("aorta", "lung", "aorta")]


@pytest.fixture(autouse=True)
def counting(tmp_path, monkeypatch):
    """A template of its own, so that no version of a real prompt is tied to these tests."""
    (tmp_path / "length@1.jinja").write_text("How long is: {{ answer }}")
    monkeypatch.setattr(asking, "PROMPTS", Prompts(tmp_path))


def counted(received):
    return Answer(json.dumps({"length": len(received.text.split(": ")[1])}), usage=(7, 3))


def read(item, answer):
    if answer.get("length") != len(item["answer"]):
        raise ValueError("another length")
    return answer["length"]


def ask(server, cache, names=("med-7b",), **options):
    with asking.open_judges([f"{server.url}#{name}" for name in names], cache, **options) as judges:
        found = judges.ask("length@1", SCHEMA, ITEMS, read)
        return {name: [(one.found, one.why) for one in own] for name, own in found.items()}, judges.record()


def test_each_question_is_asked_once_and_never_again(chat_server, tmp_path):
    chat_server.answer = counted
    found, record = ask(chat_server, tmp_path / "calls", ("a", "b"))
    assert found == {name: [(5, None), (4, None), (5, None)] for name in "ab"}
    assert len(chat_server.received) == 4  # two judges, two different questions
    assert {name: spent["calls"] for name, spent in record["calls"].items()} == {"a": 2, "b": 2}
    assert record["judges"] == ["a", "b"] and record["calls"]["a"]["prompt_tokens"] == 14
    assert ask(chat_server, tmp_path / "calls", ("a", "b")) == (found, record) and len(chat_server.received) == 4


def test_a_spent_budget_continues_where_it_stopped(chat_server, tmp_path):
    chat_server.answer = counted
    with pytest.raises(Stopped):
        ask(chat_server, tmp_path / "calls", limits=Limits(max_calls=1))
    found, _ = ask(chat_server, tmp_path / "calls", limits=Limits(max_calls=1))
    assert [value for value, _ in found["med-7b"]] == [5, 4, 5] and len(chat_server.received) == 2


def test_an_unreadable_reply_has_its_reason_and_is_asked_anew_later(chat_server, tmp_path):
    chat_server.answer = lambda received: counted(received) if "lung" in received.text else Answer('{"length": 1}')
    found, _ = ask(chat_server, tmp_path / "calls")
    assert found["med-7b"][1] == (4, None)
    assert found["med-7b"][0] == (None, "another length in '{\"length\": 1}'")
    chat_server.answer = counted
    assert ask(chat_server, tmp_path / "calls")[0]["med-7b"] == [(5, None), (4, None), (5, None)]
    assert len(chat_server.received) == 3


def test_judges_that_cannot_judge_are_refused(chat_server, tmp_path):
    for names, said in ((), "--judges"), (("a", "a"), "must differ"):
        with pytest.raises(InputError, match=said):
            ask(chat_server, tmp_path / "calls", names)
    chat_server.answer = lambda received: Answer("I am not sure.")
    with pytest.raises(InputError, match=r"no readable reply to any of 3 .* no JSON object in 'I am not sure.'"):
        ask(chat_server, tmp_path / "calls")
    with pytest.raises(InputError) as refused:  # of restricted data, which the reply may quote
        ask(chat_server, tmp_path / "calls", discreet=True)
    assert "not sure" not in str(refused.value)
