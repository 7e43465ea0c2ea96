"""Requests to endpoints as one stream over several blocks: same results, and no reply lost that was received."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chat_server import Answer, ChatServer, Received
from knowing_judge import digest

from mmedpo.curation import ask as asking
from mmedpo.curation import blocks
from mmedpo.curation.run import phases, prepare
from mmedpo.curation.settings import Settings
from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.cache import AHEAD, CachedChat
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.ledger import Ledger
from tests.conftest import MakeSource


def answer(received: Received) -> Answer:
    """Answers that depend on the request alone; a fifth of the responses is unusable, and so written again."""
    number = int(digest(received)[:6], 16)
    if "Now judge this case" in received.text:
        return Answer(json.dumps({"rationale": str(number), "wrong": number % 7 > 0, "score": number % 11 / 10}))
    text = "the" if number % 5 == 0 else f"small mass {number % 97}"
    return Answer(json.dumps({"answer": text, "kind": "finding"}))


def test_blocks_asked_together_have_the_results_of_each_alone(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 8)
    chat_server.answer = answer
    rows = [
        {"id": f"q{i}", "image": "a.png", "question": f"What is at {i}?", "answer": "left nodule"} for i in range(60)
    ]
    judges = [f"{chat_server.url}#judge-a", f"{chat_server.url}#judge-b"]
    settings = Settings(make_source(rows), chat=f"{chat_server.url}#writer", judges=judges, localizer="none", rounds=2)
    found, calls = [], []
    for name, most, tasks in (("alone", 1, 1), ("together", 16, 1), ("in three tasks", 16, 3)):
        monkeypatch.setattr(asking, "MOST_BLOCKS", most)
        (tmp_path / name).mkdir()
        curation = prepare(settings, tmp_path / name, judges_below_bar="go")
        chat_server.received.clear()
        for rank in reversed(range(tasks)):
            asking.ask(curation, rank, tasks)
        calls.append(sorted(map(digest, chat_server.received)))
        found.append({file.name: file.read_bytes() for file in (tmp_path / name / "results").iterdir()})
    assert found[0] == found[1] == found[2] and len(found[0]) == 8
    assert calls[0] == calls[1] and len(set(calls[0])) == len(calls[0]) > 180


def test_tasks_use_a_gpu_only_for_models_in_their_process(make_source: MakeSource, tmp_path: Path) -> None:
    rows = [{"id": "q1", "image": "a.png", "question": "What is seen?", "answer": "mass"}]
    settings = Settings(make_source(rows), chat="http://127.0.0.1:9/v1#m", judges=["standin:strict"], localizer="none")
    curation = prepare(settings, tmp_path)
    local = {**curation.facts["contents"], "judge local:models/judge": "the digest of its files"}
    with_local = replace(curation, facts={**curation.facts, "contents": local})
    assert not any(phase.gpu for phase in phases(curation, 2))
    assert [phase.name for phase in phases(with_local, 2) if phase.gpu] == ["check", "ask"]


def test_requests_are_made_as_they_are_sent_and_a_reply_is_stored_before_its_sender_asks_again(
    chat_server: ChatServer, tmp_path: Path
) -> None:
    in_flight, count = 4, 200
    made: list[int] = []
    unstored: list[int] = []
    ahead: list[int] = []

    def answered(received: Received) -> Answer:
        # Runs while the request is in flight, which is among those received.
        unstored.append(len(chat_server.received) - len(list(Ledger(tmp_path / "cache"))))
        ahead.append(len(made) - len(chat_server.received))
        return Answer("yes")

    def requests() -> Iterator[ChatRequest]:
        for number in range(count):
            made.append(number)
            yield ChatRequest("judge@2", {}, f"question {number}")

    chat_server.answer = answered
    client = EndpointChat("m", base_url=chat_server.url, concurrency=in_flight)
    chat = CachedChat(client, Budget(Limits()), Ledger(tmp_path / "cache"), Ledger(tmp_path / "used"))
    assert [reply.text for reply in chat.complete(requests())] == ["yes"] * count
    assert max(unstored) <= in_flight and max(ahead) <= AHEAD + in_flight
