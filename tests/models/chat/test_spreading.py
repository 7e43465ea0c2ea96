"""Several endpoints of one model: the load is shared, one that dies is left out, and its requests go to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer
from real_chat_server import NAME, started

from mmedpo.curation import relevance
from mmedpo.data import consent
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply
from mmedpo.models.chat.cache import CachedChat
from mmedpo.models.chat.endpoint import OUTAGE, EndpointChat
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.opening import open_endpoint, separated
from mmedpo.runs.hosts import is_remote
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable

AB = "http://a.org/v1#m,http://b.org/v1#m"


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ChatServer]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    with ExitStack() as stack:
        found = [stack.enter_context(ChatServer()) for _ in range(2)]
        for server in found:
            server.answer = lambda received: Answer(received.text.upper(), delay=0.005)
        yield found


def both(servers: list[ChatServer], **options: Any) -> EndpointChat:
    spec = ",".join(f"{server.url}#med-7b" for server in servers)
    return open_endpoint(spec, Budget(Limits()), **{"waits": (0.001, 0.002), "patience": 0.3, **options})


def answered(count: int) -> list[ChatReply]:
    return [ChatReply(f"Q{i}") for i in range(count)]


def test_two_endpoints_share_the_load_and_the_cache(servers: Any, ask: Any, ledgers: Any) -> None:
    requests = [ask(f"q{i}") for i in range(40)]
    assert CachedChat(both(servers), Budget(Limits()), *ledgers).complete(requests) == answered(40)
    assert min(len(server.received) for server in servers) >= 10
    assert sum(server.most_at_once for server in servers) <= 8
    single = CachedChat(both(servers[:1]), Budget(Limits()), *ledgers)
    assert single.complete(requests) == answered(40)
    assert sum(len(server.received) for server in servers) == 40


@pytest.mark.parametrize("after", [0, 7])
def test_an_endpoint_that_dies_is_left_out(servers: Any, ask: Any, caplog: Any, after: int) -> None:
    chat = both(servers, patience=600.0)

    def note(replies: Any) -> None:
        nonlocal after
        after -= 1
        if after == 0:
            servers[0].go()

    if not after:
        servers[0].go()
    assert chat.complete([ask(f"q{i}") for i in range(40)], note) == answered(40)
    assert [one.message for one in caplog.records if "is left out until the next start" in one.message] == [
        next(one.message for one in caplog.records if f"{servers[0].url}, asked for the model 'med-7b'" in one.message)
    ]
    before = len(servers[1].received)
    servers[0].come_back()
    chat.complete([ask("later")])
    assert len(servers[1].received) == before + 1


def test_all_dead_is_the_error_of_one(servers: Any, ask: Any) -> None:
    chat = both(servers)
    assert chat.complete([ask(f"q{i}") for i in range(20)]) == answered(20)
    for server in servers:
        server.go()
    with pytest.raises(InputError, match=f"is unavailable: {OUTAGE} requests in a row failed"):
        chat.complete([ask(f"q{i}") for i in range(20)])
    with pytest.raises(InputError, match=r"does not answer .* Start the server or correct the URL"):
        both(servers).complete([ask()])


def test_what_fails_at_one_endpoint_is_asked_at_the_other(servers: Any, ask: Any, caplog: Any) -> None:
    servers[0].answer = lambda received: Answer("cuda error", 500) if "q1" in received.text else Answer("Q")
    requests = [ask(f"q{i}") for i in range(4)] * 4
    assert {reply.text for reply in both(servers).complete(requests)} <= {"Q", "Q0", "Q1", "Q2", "Q3"}
    assert "left out" not in caplog.text
    servers[0].answer = lambda received: Answer("cuda error", 500)
    assert all(reply.text for reply in both(servers).complete([ask("again")] * 30))
    assert "left out until the next start: it does not answer (HTTP 500: cuda error)" in caplog.text


def test_a_refusal_ends_the_run(servers: Any, ask: Any) -> None:
    """A wrong key or name is no outage: it would stay unnoticed on one of many."""
    servers[1].answer = lambda received: Answer("no such model", 404)
    with pytest.raises(InputError, match=servers[1].url):
        both(servers).complete([ask(f"q{i}") for i in range(40)])


def test_a_busy_endpoint_is_waited_for(servers: Any, ask: Any, caplog: Any) -> None:
    servers[0].script = [Answer("slow down", 429)] * 30
    assert both(servers, patience=60.0).complete([ask(f"q{i}") for i in range(40)]) == answered(40)
    assert "left out" not in caplog.text and len(servers[0].received) > 30


def test_endpoints_of_different_models_are_refused(servers: Any) -> None:
    with pytest.raises(InputError, match="named 'm' and 'n'"):
        open_endpoint(f"{servers[0].url}#m,{servers[1].url}#n", Budget(Limits()))


def test_names_of_several_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    assert separated(f"{AB}, local:org/n,hub:org/m@p,hub:org/m@q,http://a.org/v1#n") == [
        AB, "local:org/n", "hub:org/m@p,hub:org/m@q", "http://a.org/v1#n",
    ]  # fmt: skip
    assert portable(AB) == "endpoint#m" and portable(f"--model={AB}") == "--model=endpoint#m"
    assert is_remote("http://localhost:1/v1#m,http://b.org/v1#m") and not is_remote("http://localhost:1/v1#m")
    sent = consent.to_endpoints("mimic", [AB, "local:org/n"], True, 9, images=True)
    assert sent["third_parties"]["to"] == ["a.org", "b.org"]
    monkeypatch.setenv("MMEDPO_API_KEY", "secret")
    with pytest.raises(InputError, match="is a key for one host"):
        open_endpoint(AB.replace("http:", "https:"), Budget(Limits()))


def test_two_real_servers_as_one_judge_of_which_one_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    items = [relevance.Item(f"Is there a nodule in image {i}?", "no", f"Yes, of {i} mm.") for i in range(4)]
    with started() as (first, one), started() as (second, _):
        client = open_endpoint(f"{first}/v1#{NAME},{second}/v1#{NAME}", Budget(Limits()), max_tokens=200)
        ask: Callable[..., Any] = client.ask
        judged = []

        async def counting(*arguments: Any) -> Any:
            reply = await ask(*arguments)
            judged.append(reply)
            if len(judged) == 1:
                one.kill()
            return reply

        monkeypatch.setattr(client, "ask", counting)
        chat = CachedChat(client, Budget(Limits()), Ledger(tmp_path / "calls"), Ledger(tmp_path / "used"))
        scores = relevance.Panel([chat]).score(items)
    assert len(scores) == 4 and list(relevance.Panel([chat]).judges) == [NAME]
    assert 1 <= len(judged) < 4 and "is left out until the next start" in caplog.text
    assert len(list(Ledger(tmp_path / "calls"))) == 4
