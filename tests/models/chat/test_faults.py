"""Every fault of an endpoint, over real HTTP: what passes is waited out, what stays is a reason and never a score."""

import socket
import threading
import time
from contextlib import suppress

import pytest
from chat_server import Answer

from mmedpo.curation.relevance import NO_SCORE, Item, Panel
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply
from mmedpo.models.chat.endpoint import OUTAGE, EndpointChat

SCORE = '{"score": 0.8, "rationale": "wrong side"}'
ITEM = Item("Which side?", "right lung", "left lung")
LONG = "a" * 10_000_000

PASSING = {
    "429 with Retry-After": Answer("slow down", 429, {"Retry-After": "1"}),
    "429 without": Answer("slow down", 429),
    "500": Answer("broken", 500),
    "502 with an odd body": Answer(body=b'["not an error"]', status=502),
    "503": Answer("loading", 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "timeout": Answer(SCORE, delay=0.6),
    "connection reset": Answer(reset=True),
    "connection cut": Answer(SCORE, cut=40),
    "truncated JSON": Answer(body=b'{"choices": [{"mess'),
    "no choices": Answer(body=b'{"choices": []}'),
    "wrong encoding": Answer(body=b"\xff\xfe\xfa"),
    "not what its header says": Answer(SCORE, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_a_passing_fault_is_asked_again_and_leaves_no_trace(chat_server, endpoint, fault):
    chat_server.answer = lambda received: Answer(SCORE)
    chat_server.script = [fault]
    (result,) = Panel([endpoint(timeout=0.3)]).score([ITEM])
    assert (result.score, result.judgements[0]["rationale"]) == (0.8, "wrong side")
    first, second = chat_server.received
    assert second.at - first.at >= float(fault.headers.get("Retry-After", 0) if fault.status == 429 else 0)


STAYING = {
    "500": (Answer("broken", 500), "after 5 attempts: HTTP 500: broken"),
    "503": (Answer("loading", 503), "after 5 attempts: HTTP 503: loading"),
    "429": (Answer("slow down", 429), "after 5 attempts: HTTP 429: slow down"),
    "timeout": (Answer(SCORE, delay=0.6), "no answer within 0.3 s"),
    "connection reset": (Answer(reset=True), "ReadError"),
    "truncated JSON": (Answer(body=b'{"choices": [{"mess'), "not a chat completion"),
    "context too short": (Answer("too long", 400), "refused: HTTP 400: too long"),
    "score outside [0, 1]": (Answer('{"score": 8, "rationale": "of ten"}'), "8 is outside [0, 1]"),
    "truncated answer": (Answer('{"score": 0.8, "rationale": "wro'), "no JSON object"),
    "refusal": (Answer("As an AI model I cannot judge this."), "no JSON object in 'As an AI model"),
    "empty text": (Answer(""), "the answer has no content (finish_reason 'stop')"),
    "cut off": (Answer(SCORE, finish="length"), "the judge did not answer (cut off at 512 tokens)"),
    "filtered": (Answer(SCORE, finish="content_filter"), "it ended by finish_reason 'content_filter'"),
    "10 MB answer": (Answer(LONG), "longer than 1,000,000 bytes"),
    "10 MB error": (Answer(LONG, 400), "HTTP 400"),
    "10 MB score": (Answer(f'{{"score": 0.8, "rationale": "{LONG}"}}'), "longer than 1,000,000 bytes"),
}


@pytest.mark.parametrize(("fault", "why"), STAYING.values(), ids=STAYING)
def test_a_staying_fault_is_no_score_with_a_short_reason(chat_server, endpoint, fault, why):
    chat_server.answer = lambda r: fault if "left lung" in r.text else Answer(SCORE)
    judges = [endpoint(model=name, timeout=0.3) for name in ("a", "b")]
    bad, good = Panel(judges, rounds=1).score([ITEM, Item("Where?", "apex", "base")])
    assert (bad.score, bad.reason) == (None, NO_SCORE)
    assert [entry["score"] for entry in bad.judgements] == [None, None]
    assert all(why in entry["rationale"] for entry in bad.judgements)
    assert all(len(entry["rationale"]) < 500 for entry in bad.judgements)
    assert good.score == 0.8


READABLE = {
    "prose around JSON": Answer(f"Certainly! {SCORE} I hope this helps."),
    "a code fence": Answer(f"```json\n{SCORE}\n```"),
    "wrong content type": Answer(SCORE, headers={"Content-Type": "text/plain"}),
    "no content type": Answer(SCORE, headers={"Content-Type": ""}),
}


@pytest.mark.parametrize("answer", READABLE.values(), ids=READABLE)
def test_an_odd_answer_that_can_be_read_is_read_at_once(chat_server, endpoint, answer):
    chat_server.answer = lambda received: answer
    assert Panel([endpoint()]).score([ITEM])[0].score == 0.8
    assert len(chat_server.received) == 1


def test_an_answer_that_drips_is_given_up_in_time(chat_server, endpoint, ask):
    def drip(listening):
        connection, _ = listening.accept()
        with connection, suppress(BrokenPipeError):
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
            for _ in range(100):
                time.sleep(0.05)
                connection.sendall(b" ")

    chat = endpoint(timeout=0.2, attempts=1)
    chat.complete([ask()])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        chat.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        start = time.monotonic()
        (reply,) = chat.complete([ask()])
    assert "no answer within 0.2 s" in reply.failure
    assert time.monotonic() - start < 1


def test_one_request_that_fails_leaves_the_others_alone(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer("overloaded sk-1", 503) if r.text == "bad" else Answer("fine")
    good, bad = endpoint(api_key="sk-1", attempts=3).complete([ask("good"), ask("bad")])
    assert good == ChatReply("fine")
    assert bad == ChatReply(failure="no answer after 3 attempts: HTTP 503: overloaded ***")
    assert sum(received.text == "bad" for received in chat_server.received) == 3


def away(server, seconds):
    server.go()
    threading.Timer(seconds, server.come_back).start()


def test_a_server_that_is_gone_for_a_while_costs_nothing_but_time(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer(r.text, delay=0.01)
    chat = endpoint(patience=10.0, waits=(0.01, 0.1), concurrency=4)
    leaving = threading.Timer(0.2, away, (chat_server, 1.5))
    leaving.start()
    requests = [ask(str(i)) for i in range(200)]
    start = time.monotonic()
    assert [reply.text for reply in chat.complete(requests)] == [request.text for request in requests]
    assert 1.5 < time.monotonic() - start < 5
    assert len(chat_server.received) <= len(requests) + 4  # those in flight when it went


def test_an_outage_is_said_once_with_the_time_that_is_left(chat_server, endpoint, ask, monkeypatch, caplog):
    monkeypatch.setattr("mmedpo.models.chat.endpoint.QUIET", 0.3)
    chat = endpoint(patience=10.0, waits=(0.01, 0.1), concurrency=4)
    for said in (1, 2):
        chat.complete([ask()])
        away(chat_server, 1.0)
        chat.complete([ask() for _ in range(20)])
        lines = [record.getMessage() for record in caplog.records if record.name == "mmedpo.models.chat.endpoint"]
        assert len(lines) == said
        assert lines[-1].startswith(f"{chat_server.url} does not answer (")
        assert lines[-1].endswith(("Trying for another 10 s.", "Trying for another 9 s."))


@pytest.mark.slow
def test_a_server_that_is_gone_for_30_seconds_with_the_settings_of_a_run(chat_server, ask):
    chat_server.answer = lambda r: Answer(r.text, delay=0.05)
    threading.Timer(1.0, away, (chat_server, 30.0)).start()
    requests = [ask(str(i)) for i in range(400)]
    replies = EndpointChat("med-7b", base_url=chat_server.url).complete(requests)
    assert [reply.text for reply in replies] == [request.text for request in requests]


def test_an_overloaded_server_is_waited_for_longer_than_a_broken_one(chat_server, endpoint, ask):
    chat = endpoint(patience=0.5, attempts=2, waits=(0.05, 0.05))
    for status, shortest, longest in [(503, 0.5, 2.0), (500, 0.0, 0.4)]:
        chat_server.answer = lambda r, status=status: Answer("no", status) if r.text == "bad" else Answer("fine")
        start = time.monotonic()
        assert chat.complete([ask("good"), ask("bad")])[1].failure.endswith("no")
        assert shortest <= time.monotonic() - start < longest


def test_an_endpoint_that_died_is_not_waited_for_again_and_again(chat_server, endpoint, ask):
    chat = endpoint(concurrency=1, patience=0.6)
    assert chat.complete([ask()]) == [ChatReply("hello")]
    chat_server.go()
    start = time.monotonic()
    replies = [chat.complete([ask()])[0] for _ in range(OUTAGE - 1)]
    assert all("no answer" in reply.failure for reply in replies)
    with pytest.raises(InputError, match=r"is unavailable: .*--resume"):
        chat.complete([ask()])
    assert time.monotonic() - start < 2 * 0.6  # patience is spent once


def test_one_answer_in_between_shows_that_the_endpoint_lives(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer("no", 500) if r.text == "bad" else Answer("fine")
    requests = [ask("bad" if i % OUTAGE else "good") for i in range(3 * OUTAGE)]
    replies = endpoint(concurrency=1, attempts=1).complete(requests)
    assert sum(reply.text is None for reply in replies) == 3 * (OUTAGE - 1)
    with pytest.raises(InputError, match="is unavailable: "):
        endpoint(concurrency=1, attempts=1).complete([ask("good"), *[ask("bad")] * OUTAGE])


def test_a_server_that_fails_on_everything_from_the_start_is_said_so(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer("CUDA error", 500)
    with pytest.raises(InputError, match="fails for a trivial question too: HTTP 500: CUDA error"):
        endpoint().complete([ask()])


def test_an_answer_ahead_of_time_is_no_answer_to_the_next_question(chat_server, endpoint, ask):
    body = Answer("early").payload()
    early = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    chat_server.answer = lambda received: Answer(f"to {received.text}", early=early)
    replies = endpoint(concurrency=1).complete([ask(f"question {number}") for number in range(3)])
    assert [reply.text for reply in replies] == ["to question 0", "to question 1", "to question 2"]
