import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from chat_server import Answer

from mmedpo.errors import InputError, Stopped
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.cache import CachedChat, CacheKeys, tally
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.ledger import Ledger

KEY = "sk-very-secret"


def echo(received):
    return Answer(f"echo {received.text}", usage=(10, 5))


@pytest.fixture(autouse=True)
def echoing(chat_server):
    chat_server.answer = echo


def asked(server):
    return [received.text for received in server.received]


def test_an_answer_is_paid_for_once(chat_server, cached, ask, png):
    requests = [ask("a"), ask("a", images=(png,)), ask("a"), ask("b")]
    first = cached().complete(requests)
    assert first[0] == first[2] == ChatReply("echo a", prompt_tokens=10, completion_tokens=5)
    assert len(chat_server.received) == 3  # equal requests are one
    assert cached().complete(requests) == first  # another run
    assert len(chat_server.received) == 3


def test_whatever_decides_the_answer_is_in_the_key(chat_server, cached, ask, png):
    request, chat = ask("a", images=(png,), schema={"type": "object"}), cached()
    chat.complete([request])
    changed = [
        replace(request, prompt="judge@3"), replace(request, text="b"), replace(request, images=()),
        replace(request, images=(png + b" ",)), replace(request, images=(png, png)), replace(request, schema=None),
    ]  # fmt: skip
    chat.complete(changed)
    for options in ({"model": "med-8b"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}):
        cached(**options).complete([request])
    assert len(chat_server.received) == 1 + len(changed) + 4
    chat.complete([replace(request, variables={"not": "sent"}), *changed])
    assert len(chat_server.received) == 1 + len(changed) + 4


def test_a_failure_is_asked_again(chat_server, cached, ask):
    chat_server.answer = lambda r: Answer("no", 400) if r.text == "b" else echo(r)
    assert [reply.text for reply in cached(concurrency=1).complete([ask("a"), ask("b")])] == ["echo a", None]
    chat_server.answer = echo
    assert [reply.text for reply in cached().complete([ask("a"), ask("b")])] == ["echo a", "echo b"]
    assert sorted(asked(chat_server)) == ["a", "b", "b"]


def test_a_reply_that_was_cut_off_is_asked_again_once_with_more_room(chat_server, cached, ask):
    chat_server.answer = lambda r: Answer("the le", finish="length") if r.body["max_tokens"] == 512 else echo(r)
    assert [reply.text for reply in cached().complete([ask("a"), ask("a")])] == ["echo a"] * 2
    assert [received.body["max_tokens"] for received in chat_server.received] == [512, 2048]
    assert cached().complete([ask("a")])[0].text == "echo a"  # from the cache
    assert len(chat_server.received) == 2


def test_where_more_room_is_refused_the_reply_stays_cut_off(chat_server, cached, ask):
    def answer(received):
        long = received.body["max_tokens"] > 512
        return Answer("too long for the context", 400) if long else Answer("the le", finish="length")

    chat_server.answer = answer
    (reply,) = cached().complete([ask("a")])
    assert (reply.failure, reply.said) == ("cut off at 512 tokens", "the le")


def test_an_unreadable_reply_is_asked_anew_by_the_next_start_alone(chat_server, cached, ask):
    first = ask("a", readable=lambda text: "{" in text)
    chat = cached()
    assert [chat.complete([first])[0].text for _ in range(2)] == ["echo a"] * 2
    assert asked(chat_server) == ["a"]  # this start asked it already
    chat_server.answer = lambda r: Answer("expired", 400) if r.text == "a" else echo(r)
    assert cached().complete([first])[0].text == "echo a"  # nothing better came
    chat_server.received.clear()
    chat_server.answer = lambda r: Answer("{}")
    assert [cached().complete([first])[0].text for _ in range(2)] == ["{}"] * 2
    assert asked(chat_server) == ["a"]


def test_an_error_in_the_middle_loses_nothing_that_was_answered(chat_server, cached, ask):
    chat_server.answer = lambda r: Answer("expired", 401) if r.text == "3" else echo(r)
    with pytest.raises(InputError, match=r"expired.*--resume"):
        cached(concurrency=1).complete([ask(str(i)) for i in range(6)])
    chat_server.answer = echo
    cached().complete([ask(str(i)) for i in range(6)])
    assert sorted(asked(chat_server)) == sorted("0123" + "345")


def test_calls_are_counted_to_the_last_one(chat_server, cached, ask):
    requests = [ask(str(i)) for i in range(10)]
    with pytest.raises(Stopped, match=r"--max-calls 4.*4 new calls, 60 tokens.*--resume"):
        cached(Limits(max_calls=4)).complete(requests)
    assert len(chat_server.received) == 4
    with pytest.raises(Stopped):
        cached(Limits(max_calls=4)).complete(requests)
    replies = cached(Limits(max_calls=2)).complete(requests)  # just enough: nothing is left to stop
    assert [reply.text for reply in replies] == [f"echo {i}" for i in range(10)]
    assert len(chat_server.received) == 10
    assert cached(Limits(max_calls=1)).complete(requests) == replies  # old answers cost nothing


def test_tokens_stop_new_calls_and_keep_those_in_flight(chat_server, cached, ask):
    requests = [ask(str(i)) for i in range(10)]
    with pytest.raises(Stopped, match=r"--max-tokens 40"):
        cached(Limits(max_tokens=40), concurrency=1).complete(requests)
    assert len(chat_server.received) == 3  # of 15 tokens each
    chat_server.answer = lambda r: replace(echo(r), delay=0.1)
    with pytest.raises(Stopped):
        cached(Limits(max_tokens=1), concurrency=4).complete(requests)
    assert len(chat_server.received) == 3 + 4
    cached().complete(requests)
    assert len(chat_server.received) == 10


def test_a_budget_is_shared_by_all_models_of_a_run(chat_server, endpoint, ledgers, ask):
    budget = Budget(Limits(max_calls=3))
    one, other = (CachedChat(endpoint(model=name), budget, *ledgers) for name in ("a", "b"))
    one.complete([ask("1"), ask("2")])
    with pytest.raises(Stopped):
        other.complete([ask("1"), ask("2")])
    assert [received.body["model"] for received in chat_server.received] == ["a", "a", "b"]
    assert (budget.calls, budget.tokens) == (3, 45)


def test_a_token_budget_needs_tokens_that_are_reported(chat_server, cached, ask):
    chat_server.answer = lambda received: Answer("hello")
    with pytest.raises(InputError, match=r"does not report.*--max-calls"):
        cached(Limits(max_tokens=100)).complete([ask()])
    assert cached().complete([ask()]) == [ChatReply("hello")]
    assert len(chat_server.received) == 1


class Batches:
    """A client that computes 4 requests together, as a local model does."""

    name, revision, settings, batch_size = "local", "r1", {"seed": 0}, 4

    def __init__(self):
        self.batches = []

    def complete(self, requests, on_replies=None):
        replies, requests = {}, list(requests)
        for start in range(0, len(requests), self.batch_size):
            batch = {start + i: r for i, r in enumerate(requests[start : start + self.batch_size])}
            self.batches.append([request.text for request in batch.values()])
            new = {i: ChatReply(r.text, prompt_tokens=1, completion_tokens=1) for i, r in batch.items()}
            replies |= new
            on_replies(new)
        return list(replies.values())


def test_a_budget_leaves_batches_whole(ledgers, ask):
    requests = [ask(str(i)) for i in range(10)]
    whole, parts = Batches(), Batches()
    CachedChat(whole, Budget(Limits()), Ledger(ledgers[0].path.with_name("other")), ledgers[1]).complete(requests)
    for calls in (1, 3):
        with pytest.raises(Stopped):
            CachedChat(parts, Budget(Limits(max_calls=calls)), *ledgers).complete(requests)
    CachedChat(parts, Budget(Limits(max_calls=1)), *ledgers).complete(requests)
    assert parts.batches == whole.batches == [list("0123"), list("4567"), list("89")]


def test_the_tally_counts_what_the_run_used_wherever_it_came_from(chat_server, cached, ledgers, ask, tmp_path):
    _, used = ledgers
    cached().complete([ask("a"), ask("a"), ask("b")])
    chat_server.answer = lambda r: Answer("no", 400) if r.text == "c" else Answer("uncounted")
    cached(model="other").complete([ask("a"), ask("c")])
    sent = [{"max_tokens": 512, "temperature": 0.0, "seed": 0}]
    expected = {
        "med-7b": {"calls": 2, "prompt_tokens": 20, "completion_tokens": 10, "sent": sent},
        "other": {"calls": 1, "prompt_tokens": None, "completion_tokens": None, "sent": sent},
    }
    assert tally(used.values()) == expected
    cached().complete([ask("b"), ask("a")])  # resumed: nothing is counted twice
    assert tally(used.values()) == expected
    assert tally(Ledger(tmp_path / "nothing").values()) == {}


def test_no_key_gets_into_any_file_or_log(chat_server, cached, ask, tmp_path, caplog):
    chat_server.script = [Answer(f"slow down, {KEY}", 429), Answer(f"broken, {KEY}", 500)]
    with caplog.at_level("DEBUG"):
        cached(api_key=KEY).complete([ask("a"), ask("b")])
        chat_server.answer = lambda r: Answer(f"Incorrect API key provided: {KEY}", 401)
        with pytest.raises(InputError) as caught:
            cached(api_key=KEY).complete([ask("c")])
    assert "401" in str(caught.value)
    assert len(caplog.text) > 0
    files = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert any(b"echo a" in content for content in files)
    assert not any(KEY.encode() in content for content in [*files, caplog.text.encode(), str(caught.value).encode()])


CHILD = """
import sys
from pathlib import Path
from mmedpo.runs.ledger import Ledger
from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.cache import CachedChat
from mmedpo.models.chat.endpoint import EndpointChat

folder = Path(sys.argv[2])
chat = CachedChat(EndpointChat("m", base_url=sys.argv[1], concurrency=4), Budget(Limits()),
                  Ledger(folder / "cache"), Ledger(folder / "used"))
replies = chat.complete([ChatRequest("judge@1", {}, str(i)) for i in range(200)])
print([reply.text for reply in replies] == [f"echo {i}" for i in range(200)])
"""


def test_a_kill_in_the_middle_of_a_batch_repeats_no_answered_call(chat_server, tmp_path):
    command = [sys.executable, "-c", CHILD, chat_server.url, str(tmp_path)]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    kept: list[tuple[int, set[str]]] = []  # after each kill: requests so far, answers in the cache
    for more in (30, 60):
        enough, most = threading.Event(), len(chat_server.received) + more

        def answer(received, enough=enough, most=most):
            if len(chat_server.received) >= most:
                enough.set()
            return replace(echo(received), delay=0.01)

        chat_server.answer = answer
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        assert enough.wait(30)
        process.send_signal(signal.SIGKILL)
        process.wait()
        cache = Ledger(tmp_path / "cache")
        kept.append((len(chat_server.received), {value["text"] for value in cache.values()}))
        cache.close()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "True"
    for before, answers in kept:
        assert len(answers) > before - 4 * 4  # all but what was in flight at a kill
        assert not answers & {f"echo {text}" for text in asked(chat_server)[before:]}
    assert tally(Ledger(tmp_path / "used").values())["m"]["calls"] == 200


@pytest.mark.parametrize("record", [1, [], {"foreign": 1}, {"text": None}, {"text": 3}, {"text": "a", "failure": "b"},
                                    {"text": "a", "prompt_tokens": "many"}])  # fmt: skip
def test_a_foreign_record_is_one_sentence_and_nothing_is_asked(chat_server, cached, ask, ledgers, record):
    cached().complete([ask()])
    (key,) = [key for (key,) in ledgers[0]._read("SELECT key FROM entries")]
    ledgers[0].put(key, record)
    with pytest.raises(InputError, match=r"cache.sqlite: an entry of .* is not an answer of a chat model"):
        cached().complete([ask()])
    assert len(chat_server.received) == 1


def test_the_key_of_a_request_with_one_image_is_that_of_versions_without_several():
    chat = SimpleNamespace(name="m", revision=None, settings={"seed": 0})
    one, both = (ChatRequest("judge@2", {}, "a", images) for images in ((b"png",), (b"png", b"other")))
    assert CacheKeys(chat).of(one) == "6d2cee100e04b62c2c1ece59d19907dc31118a31d65e4fa46bf6c2bbce4370a7"
    assert len({CacheKeys(chat).of(request) for request in (one, both, replace(both, images=both.images[::-1]))}) == 3


def test_keys_are_those_of_versions_that_hashed_each_request_as_a_whole():
    keys = CacheKeys(SimpleNamespace(name="m", revision="r1", settings={"seed": 0, "max_tokens": 512}))
    schema = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": [0.1, 1]}}}
    base = ChatRequest("judge@2", {}, 'Größe "3" \ud800?', schema=schema)
    requests = [
        base, replace(base, text="b"), replace(base, schema=None), replace(base, schema={**schema, "type": "x"}),
        replace(base, images=(b"1", b"2")), replace(base, samples=4, seed=7, max_tokens=64), base,
    ]  # fmt: skip
    assert [keys.of(request)[:12] for request in requests] == [
        "f1a27bab5460", "ae15ab5c284b", "241381795978", "9b576706682c", "99629150a2b5", "41d14476a27e", "f1a27bab5460",
    ]  # fmt: skip
