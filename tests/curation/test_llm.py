import asyncio
import base64
import io
import socket

import pytest
from chat_server import Answer
from PIL import Image

from mmedpo.curation.chat import open_chat
from mmedpo.errors import InputError
from mmedpo.llm import ChatReply, ChatRequest, EndpointChat, parse_json

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


def ask(text="question", **more):
    return ChatRequest(prompt="judge@1", variables={}, text=text, **more)


def endpoint(server, **options):
    return EndpointChat("med-7b", base_url=server.url, waits=(0.001, 0.002), **options)


def png():
    file = io.BytesIO()
    Image.new("L", (3, 2), 7).save(file, "PNG")
    return file.getvalue()


def test_happy_path_sends_image_schema_and_settings(chat_server):
    chat_server.answer = lambda received: Answer(f"echo {received.text}")
    chat = endpoint(chat_server, api_key=KEY, max_tokens=33, temperature=0.5, seed=9)
    replies = chat.complete([ask("first", image=png(), schema=SCHEMA), ask("second")])
    assert [reply.text for reply in replies] == ["echo first", "echo second"]
    assert (chat.name, chat.revision) == ("med-7b", None)
    first, second = sorted(chat_server.received, key=lambda received: received.text)
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert {k: first.body[k] for k in ("model", "max_tokens", "temperature", "seed")} == {
        "model": "med-7b",
        "max_tokens": 33,
        "temperature": 0.5,
        "seed": 9,
    }
    url = first.body["messages"][0]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(png()).decode()
    assert first.body["response_format"]["value"] == SCHEMA
    assert second.body["messages"][0]["content"] == "second"
    assert "response_format" not in second.body


def test_keys_come_from_the_environment_and_the_hub_token_stays_home(chat_server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    endpoint(chat_server).complete([ask()])
    assert "authorization" not in chat_server.received[0].headers
    monkeypatch.setenv("MMEDPO_API_KEY", KEY)
    endpoint(chat_server).complete([ask()])
    assert chat_server.received[1].headers["authorization"] == f"Bearer {KEY}"


def test_retry_after_is_honoured(chat_server):
    chat_server.script = [Answer("slow down", 429, {"Retry-After": "1"})]
    assert endpoint(chat_server).complete([ask()]) == [ChatReply(text="hello")]
    first, second = chat_server.received
    assert second.at - first.at >= 1.0


@pytest.mark.parametrize(
    "fault",
    [
        Answer("broken", 500),
        Answer("loading", 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Answer(delay=0.6),
        Answer(body=b'{"choices": [{"mess'),
        Answer(body=b'{"choices": []}'),
        Answer(body=b'["not an error"]', status=502),
    ],
    ids=["500", "503", "timeout", "torn body", "no choices", "strange error body"],
)
def test_a_transient_fault_is_asked_again(chat_server, fault):
    chat_server.script = [fault]
    assert endpoint(chat_server, timeout=0.3).complete([ask()]) == [ChatReply(text="hello")]
    assert len(chat_server.received) == 2


def test_exhausted_retries_are_a_failure_of_that_request_only(chat_server):
    chat_server.answer = lambda r: Answer(f"overloaded, {KEY}", 503) if r.text == "bad" else Answer("fine")
    good, bad = endpoint(chat_server, api_key=KEY, attempts=3).complete([ask("good"), ask("bad")])
    assert good.text == "fine"
    assert bad == ChatReply(failure="no answer after 3 attempts: HTTP 503: overloaded, ***")
    assert sum(received.text == "bad" for received in chat_server.received) == 3


@pytest.mark.parametrize(("status", "hint"), [(401, "MMEDPO_API_KEY"), (403, "access"), (404, "URL"), (400, "model")])
def test_an_endpoint_that_refuses_is_an_input_error_without_the_key(chat_server, status, hint):
    chat_server.answer = lambda received: Answer(f"no: {received.headers['authorization']}", status)
    with pytest.raises(InputError) as caught:
        endpoint(chat_server, api_key=KEY).complete([ask()])
    message = str(caught.value)
    assert KEY not in message
    assert all(part in message for part in ("med-7b", chat_server.url, str(status), hint))
    assert len(chat_server.received) == 1


def test_one_refused_request_does_not_stop_the_others(chat_server):
    chat_server.answer = lambda r: Answer("context length", 400) if r.text == "long" else Answer("fine")
    good, long, unreadable = endpoint(chat_server).complete([ask("short"), ask("long"), ask(image=b"no image")])
    assert good.text == "fine"
    assert "context length" in long.failure
    assert "not an image" in unreadable.failure


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_without_structured_output_is_asked_plainly_from_then_on(chat_server, status):
    chat_server.answer = lambda r: Answer("no grammar", status) if "response_format" in r.body else Answer("{}")
    chat = endpoint(chat_server)
    for _ in range(2):
        assert chat.complete([ask(schema=SCHEMA)]) == [ChatReply(text="{}")]
    assert ["response_format" in received.body for received in chat_server.received] == [True, False, False]


def test_an_empty_message_is_an_empty_text(chat_server):
    chat_server.script = [Answer(None), Answer("")]
    assert [reply.text for reply in endpoint(chat_server, concurrency=1).complete([ask(), ask()])] == ["", ""]


def test_nothing_asked_nothing_sent(chat_server):
    assert endpoint(chat_server).complete([]) == []
    assert chat_server.received == []


def test_requests_run_concurrently_up_to_the_limit_and_stay_in_order(chat_server):
    chat_server.answer = lambda r: Answer(r.text, delay=0.05 if r.text == "0" else 0.02)
    replies = endpoint(chat_server, concurrency=3).complete([ask(str(i)) for i in range(9)])
    assert [reply.text for reply in replies] == [str(i) for i in range(9)]
    assert chat_server.most_at_once == 3


def test_it_works_inside_a_running_event_loop(chat_server):
    async def notebook_cell():
        return endpoint(chat_server).complete([ask()])

    assert asyncio.run(notebook_cell()) == [ChatReply(text="hello")]


def test_nobody_there(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:{KEY}@127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(InputError, match="does not answer") as caught:
            EndpointChat("m", base_url=url, attempts=2, waits=(0.001, 0.001)).complete([ask()])
    assert KEY not in str(caught.value)


def test_offline_mode_is_named(chat_server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        endpoint(chat_server).complete([ask()])


def test_the_hub_without_a_token_says_so(monkeypatch):
    monkeypatch.setattr("mmedpo.llm._default_key", lambda base_url: None)
    monkeypatch.setattr("huggingface_hub.inference._providers._common.get_token", lambda: None)
    with pytest.raises(InputError, match=r"org/model.*api_key"):
        EndpointChat("org/model").complete([ask()])


def test_a_reply_has_a_text_or_a_failure():
    with pytest.raises(ValueError):
        ChatReply()
    with pytest.raises(ValueError):
        ChatReply(text="", failure="")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 0.5}', {"score": 0.5}),
        ('Sure!\n```json\n{"score": 0.5}\n```\nHope it helps {smile}', {"score": 0.5}),
        ('<think>maybe {"score": 0.1}?</think>{"score": 0.9}', {"score": 0.9}),
        ('{"rationale": "braces } in { text", "score": 1}', {"rationale": "braces } in { text", "score": 1}),
        ('{"a": {"b": 1}}', {"a": {"b": 1}}),
        ('{"score": 0.5, "rationale": "the les', None),
        ("[0.5]", None),
        ("I cannot help with that.", None),
        ("", None),
        ('{"a":' * 100_000, None),
    ],
)
def test_parse_json(text, expected):
    assert parse_json(text) == expected


def test_open_chat_forms():
    assert open_chat("standin:rules").name == "standin:rules"
    assert open_chat("standin:lexical", concurrency=4).name == "standin:lexical"
    local = open_chat("http://gpu:8000/v1#org/model@main", concurrency=4)
    assert (local.name, local.base_url, local.concurrency) == ("org/model@main", "http://gpu:8000/v1", 4)
    hub = open_chat("hub:org/model@together")
    assert (hub.name, hub.base_url, hub.provider) == ("org/model", None, "together")
    assert open_chat("hub:org/model").provider is None


@pytest.mark.parametrize(
    "spec",
    ["", "gpt-4o", "standin:wise", "http://gpu:8000/v1", "http://#model", "http://gpu:port/v1#m", "hub:", "hub:model",
     "hub:org/model@", "hub:/model@x", "gpu:8000/v1#model"],
)  # fmt: skip
def test_open_chat_refuses_other_forms(spec):
    with pytest.raises(InputError, match="http://"):
        open_chat(spec)


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"attempts": 0}, {"base_url": "localhost:8000/v1"}])
def test_impossible_settings(options):
    with pytest.raises(InputError):
        EndpointChat("m", **options)
