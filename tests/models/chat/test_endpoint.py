import asyncio
import base64
import io
import json
import logging
import socket

import numpy as np
import pytest
from chat_server import Answer, o_series
from PIL import Image

from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply
from mmedpo.models.chat.endpoint import EndpointChat
from tests.pictures import KINDS

KEY = "sk-very-secret"
SCHEMA = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


def test_happy_path_sends_image_schema_and_settings(chat_server, endpoint, ask, png):
    chat_server.answer = lambda received: Answer(f"echo {received.text}", usage=(11, 3))
    chat = endpoint(api_key=KEY, max_tokens=33, temperature=0.5, seed=9)
    replies = chat.complete([ask("first", images=[png, png], schema=SCHEMA), ask("second")])
    assert replies == [ChatReply(f"echo {n}", prompt_tokens=11, completion_tokens=3) for n in ("first", "second")]
    assert (chat.name, chat.revision) == ("med-7b", None)
    first, second = sorted(chat_server.received, key=lambda received: received.text)
    assert first.path == "/v1/chat/completions"
    assert first.headers["authorization"] == f"Bearer {KEY}"
    sent = {"model": "med-7b", "max_tokens": 33, "temperature": 0.5, "seed": 9}
    assert {name: first.body[name] for name in sent} == sent
    url = first.body["messages"][0]["content"][0]["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(png).decode()
    assert [part["type"] for part in first.body["messages"][0]["content"]] == ["image_url", "image_url", "text"]
    assert first.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert second.body["messages"][0]["content"] == "second"
    assert "response_format" not in second.body


def test_every_reply_is_handed_over_when_it_comes(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer(received.text, delay=0.2 if received.text == "slow" else 0.0)
    handed = []
    replies = endpoint().complete([ask("slow"), ask("fast")], handed.append)
    assert handed == [{1: replies[1]}, {0: replies[0]}]


def test_an_error_of_the_taker_ends_the_batch_but_not_what_is_in_flight(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer(received.text, delay=0.3 if received.text == "0" else 0.0)
    taken = {}

    def take(replies):
        taken.update(replies)
        raise KeyError("full")

    with pytest.raises(KeyError, match="full"):
        endpoint(concurrency=2).complete([ask(str(i)) for i in range(5)], take)
    assert taken == {0: ChatReply("0"), 1: ChatReply("1")}
    assert len(chat_server.received) == 2


def test_keys_come_from_the_environment_and_the_hub_token_stays_home(chat_server, endpoint, ask, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    endpoint().complete([ask()])
    assert "authorization" not in chat_server.received[0].headers
    monkeypatch.setenv("MMEDPO_API_KEY", f"{KEY}\n")  # as it comes out of a file
    endpoint().complete([ask()])
    assert chat_server.received[1].headers["authorization"] == f"Bearer {KEY}"


def test_a_login_in_the_url_wins_over_every_key(chat_server, endpoint, ask, monkeypatch):
    monkeypatch.setenv("MMEDPO_API_KEY", KEY)
    monkeypatch.setenv(f"MMEDPO_API_KEY__127_0_0_1___{chat_server.url.split(':')[2][:-3]}", KEY)
    endpoint(base_url=chat_server.url.replace("//", "//me:mine@"), api_key=KEY).complete([ask()])
    login = base64.b64encode(b"me:mine").decode()
    assert [received.headers["authorization"] for received in chat_server.received] == [f"Basic {login}"]


@pytest.mark.parametrize(("status", "hint"), [(401, "MMEDPO_API_KEY"), (402, "credits"), (403, "access"), (404, "URL")])
def test_an_endpoint_that_refuses_everything_is_an_input_error_without_the_key(
    chat_server, endpoint, ask, caplog, status, hint
):
    chat_server.answer = lambda received: Answer(f"no: {received.headers['authorization']}", status)
    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as caught:
        endpoint(api_key=KEY).complete([ask()])
    message = str(caught.value)
    assert KEY not in message
    assert KEY not in caplog.text
    assert all(part in message for part in ("med-7b", chat_server.url, str(status), hint))
    assert "--resume" not in message  # there is nothing to resume
    assert len(chat_server.received) == 1


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(endpoint):
    for key in (f"{KEY}\nX-Other: 1", f"{KEY}…"):
        with pytest.raises(InputError, match="MMEDPO_API_KEY") as caught:
            endpoint(api_key=key)
        assert KEY not in str(caught.value)


def test_a_login_in_the_url_is_sent_and_not_logged(chat_server, endpoint, ask, caplog):
    with caplog.at_level(logging.DEBUG):
        endpoint(base_url=chat_server.url.replace("//", f"//user:{KEY}@")).complete([ask()])
    login = base64.b64encode(f"user:{KEY}".encode()).decode()
    assert chat_server.received[0].headers["authorization"] == f"Basic {login}"
    assert KEY not in caplog.text
    assert login not in caplog.text


@pytest.mark.parametrize("kind", ["colour with transparency", "CMYK JPEG", "turned", "16-bit grey TIFF"])
def test_an_image_of_any_kind_is_sent_as_the_pixels_that_all_steps_see(chat_server, endpoint, ask, kind):
    data = KINDS[kind][1]()
    endpoint().complete([ask(images=[data])])
    ((picture, _),) = (message["content"] for message in chat_server.received[0].body["messages"])
    head, _, encoded = picture["image_url"]["url"].partition(",")
    sent = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert head == "data:image/png;base64" and not sent.info
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(open_rgb(data)))


def test_one_refused_request_does_not_stop_the_others(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer("context length", 400) if r.text == "long" else Answer("fine")
    good, long, unreadable = endpoint().complete([ask("short"), ask("long"), ask(images=[b"no image"])])
    assert good.text == "fine"
    assert "context length" in long.failure
    assert "an unknown format" in unreadable.failure


def test_an_image_that_pillow_refuses_is_a_failure_of_its_request(endpoint, ask):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    assert "too large" in endpoint().complete([ask(images=[file.getvalue()])])[0].failure


def test_one_refused_request_alone_is_told_from_an_endpoint_that_refuses_all(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer("context length", 400) if r.text == "long" else Answer("fine")
    assert "context length" in endpoint().complete([ask("long")])[0].failure
    assert [received.text for received in chat_server.received] == ["long", "Please answer yes."]
    chat_server.answer = lambda r: Answer("no such model", 400)
    with pytest.raises(InputError, match=r"no such model.*model's name"):
        endpoint().complete([ask("long")])


def test_a_model_that_cannot_see_is_named_with_what_to_do(chat_server, endpoint, ask, png):
    refusal = Answer(body=b'{"object": "error", "message": "med-7b is not a multimodal model"}', status=400)
    chat_server.answer = lambda r: refusal if r.has_image else Answer("fine")
    chat = endpoint()
    assert chat.complete([ask()]) == [ChatReply("fine")]
    with pytest.raises(InputError, match=r"not a multimodal model.*name one that does, or send none"):
        chat.complete([ask(images=[png], schema=SCHEMA)])


@pytest.mark.parametrize(
    ("unknown", "forms"),
    [
        (["json_schema"], ["json_schema", "json_schema", "json_object", "json_object"]),
        (["json_schema", "json_object"], ["json_schema", "json_schema", "json_object", None, None]),
    ],
    ids=["TGI", "transformers serve"],
)
def test_a_form_of_structured_output_that_is_refused_is_not_tried_again(chat_server, endpoint, ask, unknown, forms):
    def form(received):
        return received.body.get("response_format", {}).get("type")

    chat_server.answer = lambda r: Answer("unknown field", 422) if form(r) in unknown else Answer("{}")
    chat = endpoint()
    for _ in range(2):
        assert chat.complete([ask(schema=SCHEMA)]) == [ChatReply("{}")]
    assert [form(received) for received in chat_server.received] == forms


def test_an_endpoint_that_takes_no_lengths_is_asked_without_them(chat_server, endpoint, ask):
    text = {"type": "object", "properties": {"answer": {"type": "string", "maxLength": 9}}}
    refusal = Answer(body=b'{"error": {"message": "response_format: maxLength is not permitted"}}', status=400)
    chat_server.answer = lambda r: refusal if "maxLength" in str(r.body) else Answer("{}")
    (reply,) = endpoint().complete([ask(schema=text)])
    assert reply.sent["response_format"] == "json_schema without lengths"
    sent = chat_server.received[-1].body["response_format"]["json_schema"]["schema"]
    assert sent == {"type": "object", "properties": {"answer": {"type": "string"}}}


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"<!DOCTYPE html><html><body>It works!</body></html>", "a web page"),
        (b'{"status": "ok"}', "status"),
        (b'[{"generated_text": "hello"}]', "generated_text"),
        (b'{"choices": [{"message": {"content": 7}}]}', "7"),
        (b"", "empty"),
    ],
    ids=["web page", "other API", "list", "number", "nothing"],
)
def test_what_is_no_chat_endpoint_is_an_input_error(chat_server, endpoint, ask, body, shown):
    chat_server.answer = lambda received: Answer(body=body, headers={"Content-Type": "text/html"})
    with pytest.raises(InputError, match=f"not a chat completion.*{shown}.*/v1"):
        endpoint().complete([ask() for _ in range(20)])
    assert len(chat_server.received) <= 8 * 5 + 1  # requests in flight, their attempts, a trivial question


def test_a_redirect_is_not_followed(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer(status=307, headers={"Location": "http://elsewhere/v1"})
    with pytest.raises(InputError, match="elsewhere"):
        endpoint().complete([ask()])
    assert len(chat_server.received) == 1


def test_a_message_without_content_is_no_answer(chat_server, endpoint, ask):
    refusal = b'{"choices": [{"message": {"content": null, "refusal": "I will not."}}]}'
    chat_server.script = [Answer("fine"), Answer(""), Answer(None), Answer(body=refusal)]
    fine, *replies = endpoint(concurrency=1).complete([ask(), ask(), ask(), ask()])
    assert fine == ChatReply("fine")
    assert [reply.failure for reply in replies] == [
        f"refused: the answer has no content ({why})"
        for why in ("finish_reason 'stop'", "finish_reason 'stop'", "I will not.")
    ]
    assert len(chat_server.received) == 4  # none is asked again, nor is a trivial question


@pytest.mark.parametrize("ended", ["stop", "length"])
def test_a_content_beside_a_refusal_is_no_answer(chat_server, endpoint, ask, ended):
    message = {"content": "I cannot help with that.", "refusal": "It is not safe."}
    body = json.dumps({"choices": [{"message": message, "finish_reason": ended}]}).encode()
    null = json.dumps({"choices": [{"message": {"content": "fine", "refusal": None}}]}).encode()
    chat_server.script = [Answer(body=null), Answer(body=body)]
    fine, refused = endpoint(concurrency=1).complete([ask(), ask()])
    assert fine == ChatReply("fine")
    assert refused.failure == "refused: the model refused (It is not safe.)"


def test_a_login_is_quoted_in_no_form(chat_server, ask):
    """As the client sends it, as the URL spells it, and as the server decodes it."""

    def quoting(received):
        quoted = f"{received.headers['authorization']} s3cr:t+ s3cr%3At%2B {received.path} a b&c"
        return Answer(quoted, 422) if received.text == "bad" else Answer("fine")

    chat_server.answer = quoting
    url = chat_server.url.replace("http://", "http://me:s3cr%3At%2B@") + "?token=a%20b%26c&token=second"
    chat = EndpointChat("m", base_url=url, concurrency=1)
    fine, bad = chat.complete([ask("good"), ask("bad")])
    assert fine == ChatReply("fine")
    assert bad.failure.startswith("refused: HTTP 422: Basic *** *** *** /v1/chat/completions?token=***&token=*** ***")


def test_cookies_are_not_kept(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer("fine", headers={"Set-Cookie": "a=b; Path=/"})
    endpoint(concurrency=1).complete([ask(), ask()])
    assert [received.headers.get("cookie") for received in chat_server.received] == [None, None]


def test_an_endpoint_that_never_says_anything_is_an_input_error(chat_server, endpoint, ask):
    chat_server.answer = lambda received: Answer(None)
    with pytest.raises(InputError, match=r"fails for a trivial question too: the answer has no content"):
        endpoint().complete([ask() for _ in range(20)])


def test_half_a_character_is_replaced(chat_server, endpoint, ask):
    chat_server.script = [Answer(body=b'{"choices": [{"message": {"content": "left \\ud83d lung"}}]}')]
    assert endpoint().complete([ask()]) == [ChatReply("left ? lung")]


def test_nothing_asked_nothing_sent(chat_server, endpoint):
    assert endpoint().complete([]) == []
    assert chat_server.received == []


def test_requests_run_concurrently_up_to_the_limit_and_stay_in_order(chat_server, endpoint, ask):
    chat_server.answer = lambda r: Answer(r.text, delay=0.05 if r.text == "0" else 0.02)
    replies = endpoint(concurrency=3).complete([ask(str(i)) for i in range(9)])
    assert [reply.text for reply in replies] == [str(i) for i in range(9)]
    assert chat_server.most_at_once == 3


def test_it_works_inside_a_running_event_loop(endpoint, ask):
    async def notebook_cell():
        return endpoint().complete([ask()])

    assert asyncio.run(notebook_cell()) == [ChatReply("hello")]


def test_nobody_there(endpoint, ask):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://user:{KEY}@127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(InputError, match="does not answer") as caught:
            endpoint(base_url=url).complete([ask()])
    assert KEY not in str(caught.value)


def test_an_endpoint_of_ones_own_is_asked_in_offline_mode_and_the_hub_is_not(chat_server, endpoint, ask, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert endpoint().complete([ask()]) == [ChatReply("hello")]
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        EndpointChat("org/model", api_key="hf_x").complete([ask()])


@pytest.fixture
def hub(chat_server, monkeypatch):
    """The Hub's router, played by the loopback server."""
    router = "huggingface_hub.inference._providers.CONVERSATIONAL_AUTO_ROUTER.base_url"
    monkeypatch.setattr(router, chat_server.url.removesuffix("/v1"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return EndpointChat("org/model", api_key="hf_x", waits=(0.001, 0.002), patience=0.0)


def test_the_hub_is_asked_through_its_own_client(chat_server, hub, ask, png):
    chat_server.script = [Answer("loading", 503), Answer("fine", usage=(5, 2))]
    assert hub.complete([ask(images=[png], schema=SCHEMA)]) == [ChatReply("fine", prompt_tokens=5, completion_tokens=2)]
    received = chat_server.received[-1]
    assert (received.path, received.body["model"]) == ("/v1/chat/completions", "org/model")
    assert received.headers["authorization"] == "Bearer hf_x"
    assert received.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert received.has_image


def test_the_hub_is_sent_parameters_by_the_names_that_are_taken_there(chat_server, hub, ask):
    chat_server.answer = lambda received: o_series(received) or Answer("fine")
    assert hub.complete([ask()]) == [ChatReply("fine")]
    assert chat_server.received[-1].body.items() >= {"max_completion_tokens": 512}.items()
    assert not {"max_tokens", "temperature", "seed"} & chat_server.received[-1].body.keys()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer("invalid token hf_x", 401), r"401: invalid token \*\*\*.*HF_TOKEN"),
        (Answer(body=b'{"status": "ok"}'), "not a chat completion"),
        (Answer(body=b"<html>"), "not a chat completion"),
        (Answer("a" * 1_500_000), "longer than"),
    ],
    ids=["key", "other API", "web page", "too long"],
)
def test_what_can_be_wrong_at_the_hub(chat_server, hub, ask, answer, message):
    chat_server.answer = lambda received: answer
    with pytest.raises(InputError, match=message):
        hub.complete([ask()])


def test_the_hub_without_a_token_says_so(ask, monkeypatch):
    for place in ("huggingface_hub.get_token", "huggingface_hub.inference._providers._common.get_token"):
        monkeypatch.setattr(place, lambda: None)
    with pytest.raises(InputError, match=r"org/model.*api_key"):
        EndpointChat("org/model").complete([ask()])


@pytest.mark.parametrize(
    "options",
    [{"concurrency": 0}, {"attempts": 0}, {"base_url": "localhost:8000/v1"}, {"base_url": "http://gpu:port/v1"}],
)
def test_impossible_settings(options):
    with pytest.raises(InputError):
        EndpointChat("m", **options)
