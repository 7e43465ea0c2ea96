"""Models that an endpoint lists: names for records, a warning for a wrong one, and nothing where there is no list."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chat_server import Answer, ChatServer

from mmedpo.models.chat.cache import CachedChat, tally
from mmedpo.models.chat.served import MOST, served

LIST = {
    "data": [
        {"id": "/models/Doe, Jane/med-7b.gguf", "aliases": ["med-7b", "med-7b"]},
        {"id": "med-8b", "aliases": None},
    ]
}


def test_a_wrong_name_is_said_once_and_the_servers_names_are_recorded(
    chat_server: ChatServer, endpoint: Callable[..., Any], cached: Callable[..., Any]
) -> None:
    chat_server.models = LIST
    said: list[str] = []
    found = served([endpoint(), cached(model="med-8b"), endpoint(model="med-9b"), cached(model="med-9b")], said.append)
    names = ["med-7b.gguf", "med-7b", "med-8b"]
    assert found == {"med-7b": names, "med-8b": names, "med-9b": names}
    assert len(chat_server.lists) == 1  # one endpoint
    (warning,) = said
    assert "lists no model 'med-9b', but med-7b.gguf, med-7b, med-8b." in warning and "Jane" not in warning


@pytest.mark.parametrize(
    "models",
    [
        None, b"<html>", {"data": {}}, {"data": [7]}, {"data": [{"name": "x"}]}, {"models": []}, [], b"[" * 100_000,
        b'{"data": ["' + b"x" * 2_000_000,
    ],
    ids=range(9),
)  # fmt: skip
def test_an_endpoint_without_a_list_is_fine(chat_server: ChatServer, endpoint: Callable[..., Any], models: Any) -> None:
    chat_server.models = models
    assert served([endpoint()], pytest.fail) == {}


def test_an_endpoint_that_is_away_is_fine_here(chat_server: ChatServer, endpoint: Callable[..., Any]) -> None:
    chat_server.go()
    assert served([endpoint()], pytest.fail) == {}


def test_names_of_a_server_are_bounded_and_printable(chat_server: ChatServer, endpoint: Callable[..., Any]) -> None:
    chat_server.models = {"data": [{"id": f"{i}\x1b[31m\n" + "x" * 999} for i in range(99)]}
    said: list[str] = []
    (names,) = served([endpoint()], said.append).values()
    assert len(names) == MOST and all(name.isprintable() and len(name) <= 300 for name in names)
    assert said[0].isprintable() and len(said[0]) < 1500
    chat_server.models = {"data": [{"id": f"other-{i}"} for i in range(99)] + [{"id": "med-7b"}]}
    assert served([endpoint()], pytest.fail) == {"med-7b": ["med-7b"]}


def test_the_key_of_the_endpoint_goes_along_and_a_login_in_place_of_it(
    chat_server: ChatServer, endpoint: Callable[..., Any]
) -> None:
    chat_server.models = LIST
    served([endpoint(api_key="sk-secret")], pytest.fail)
    served([endpoint(base_url=chat_server.url.replace("//", "//me:word@"))], pytest.fail)
    served([endpoint()], pytest.fail)
    sent = [headers.get("authorization") for headers in chat_server.lists]
    assert sent[0] == "Bearer sk-secret" and sent[1].startswith("Basic ") and sent[2] is None


def test_how_the_endpoint_named_who_answered_is_counted_with_the_calls(
    chat_server: ChatServer, cached: Callable[..., CachedChat], ask: Callable[..., Any], ledgers: Any
) -> None:
    chat_server.answer = lambda r: Answer("hello", served={"model": "/models/Doe, Jane/med-7b.gguf"})
    cached().complete([ask("a"), ask("b")])
    cached().complete([ask("a")])  # from the cache
    assert tally(ledgers[1].values())["med-7b"]["served"] == [{"model": "med-7b.gguf"}]
    assert "Jane" not in json.dumps([*ledgers[0].values()])
