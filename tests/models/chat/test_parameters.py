"""Parameters that an endpoint refuses: another name or their absence is found once, remembered, and recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from chat_server import Answer, Received, o_series

from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply
from mmedpo.models.chat.cache import tally

SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}
NAMES = ("max_tokens", "max_completion_tokens", "temperature", "seed", "response_format")


def sent(received: Received) -> dict[str, Any]:
    found = {name: received.body[name] for name in NAMES if name in received.body}
    return found | ({"response_format": found["response_format"]["type"]} if "response_format" in found else {})


def refusing(*names: str, said: str = "Bad Request") -> Callable[[Received], Answer]:
    return lambda received: Answer(said, 400) if any(name in received.body for name in names) else Answer("{}")


def litellm(received: Received) -> Answer:
    """A gateway that names all it does not know at once."""
    unknown = [name for name in ("temperature", "seed") if name in received.body]
    return Answer(f"openai does not support parameters: {unknown}, for model=o1", 400) if unknown else Answer("{}")


def pydantic(received: Received) -> Answer:
    extra = [{"type": "extra_forbidden", "loc": ["body", name]} for name in ("seed",) if name in received.body]
    return Answer(body=json.dumps({"detail": extra}).encode(), status=422) if extra else Answer("{}")


def strict_gateway(received: Received) -> Answer:
    return Answer("Bad Request", 400) if set(sent(received)) - {"max_completion_tokens"} else Answer("{}")


GATEWAYS = {
    "OpenAI's o-series": (
        lambda received: o_series(received) or Answer("{}"),
        {"max_completion_tokens": 9, "response_format": "json_schema"}, ["temperature", "seed"],
    ),
    "LiteLLM": (litellm, {"max_tokens": 9, "response_format": "json_schema"}, ["temperature", "seed"]),
    "pydantic": (pydantic, {"max_tokens": 9, "temperature": 0.0, "response_format": "json_schema"}, ["seed"]),
    "one refused without a word": (
        refusing("temperature"), {"max_tokens": 9, "seed": 3, "response_format": "json_schema"}, ["temperature"],
    ),
    "all but one refused without a word": (
        strict_gateway, {"max_completion_tokens": 9, "response_format": "none"},
        ["response_format", "temperature", "seed"],
    ),
    "some refused by name and one without a word": (
        lambda received: o_series(received) or refusing("response_format")(received),
        {"max_completion_tokens": 9, "response_format": "none"}, ["response_format", "temperature", "seed"],
    ),
    "nothing refused": (
        lambda received: Answer("{}"),
        {"max_tokens": 9, "temperature": 0.0, "seed": 3, "response_format": "json_schema"}, [],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("gateway", "taken", "left_out"), GATEWAYS.values(), ids=GATEWAYS)
def test_refused_parameters_are_found_once_said_and_recorded(
    chat_server: Any, cached: Any, ledgers: Any, ask: Any, caplog: Any, gateway: Any, taken: Any, left_out: list[str]
) -> None:
    chat_server.answer = gateway
    chat = cached(max_tokens=9, seed=3)
    assert chat.complete([ask(str(i), schema=SCHEMA) for i in range(20)]) == [ChatReply("{}")] * 20
    asked_so_far = len(chat_server.received)
    assert asked_so_far <= 20 + 8 + 11  # those in flight, and the search
    assert chat.complete([ask("later", schema=SCHEMA)]) == [ChatReply("{}")]
    assert len(chat_server.received) == asked_so_far + 1
    assert sent(chat_server.received[-1]) == {k: v for k, v in taken.items() if v != "none"}
    assert tally(ledgers[1].values())["med-7b"]["sent"] == [taken]
    cached(max_tokens=9, seed=3).complete([ask("later", schema=SCHEMA)])  # another run, from the cache
    assert tally(ledgers[1].values())["med-7b"]["sent"] == [taken]
    said = [line.getMessage() for line in caplog.records if line.name == "mmedpo.models.chat.endpoint"]
    assert len(said) == bool(left_out)
    assert all(name in said[0] for name in left_out)


REFUSALS = {
    "the context, named after max_tokens": "max_tokens 512 and the prompt exceed the maximum context length of 600",
    "the number of max_tokens": "max_tokens is too large: 512. This model supports at most 256 completion tokens",
    "words of the question": "content policy: 'body temperature of the seed donor' is not allowed",
    "no word of it": "Bad Request",
}


@pytest.mark.parametrize("first", [True, False], ids=["the first request", "a later one"])
@pytest.mark.parametrize("said", REFUSALS.values(), ids=REFUSALS)
def test_a_request_that_is_refused_for_itself_changes_no_parameter(chat_server, endpoint, ask, said, first):
    ids = count()  # many gateways number their errors
    chat_server.answer = lambda r: Answer(f"{said} [{next(ids)}]", 400) if r.text == "bad" else Answer("fine")
    chat = endpoint(concurrency=1)
    texts = ["bad", "good"] if first else ["good", "bad", "good"]
    replies = dict(zip(texts, chat.complete([ask(text) for text in texts]), strict=True))
    assert replies["good"] == ChatReply("fine")
    assert replies["bad"].failure == f"refused: HTTP 400: {said} [0]"
    assert sent(chat_server.received[-1]) == {"max_tokens": 512, "temperature": 0.0, "seed": 0}
    assert chat.parameters.left_out == []


def test_an_endpoint_that_refuses_everything_is_still_said_so(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer("no such model", 400)
    with pytest.raises(InputError, match="fails for a trivial question too: HTTP 400: no such model"):
        endpoint().complete([ask(schema=SCHEMA)])


def test_a_passing_fault_while_forms_are_looked_for_loses_nothing(chat_server, endpoint, ask):
    chat_server.script = [Answer("Bad Request", 400), Answer("loading", 503)]
    chat_server.answer = refusing("seed")
    assert endpoint(patience=5.0).complete([ask()]) == [ChatReply("{}")]
    assert sent(chat_server.received[-1]) == {"max_tokens": 512, "temperature": 0.0}
