"""Models that answer: in this process, equal to a plain loop, and behind a real endpoint on the loopback."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Answer, ChatServer, Received
from PIL import Image

from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError, Stopped
from mmedpo.evaluation.answering import READERS, EndpointModel, Generation, LocalModel, ahead
from mmedpo.evaluation.measures import opened
from mmedpo.evaluation.predict import batches, evaluate, read_answers
from mmedpo.evaluation.questions import Asked, QuestionSet, read
from mmedpo.evaluation.settings import Settings
from mmedpo.models.chat import endpoint as endpoints
from mmedpo.models.chat.limits import Limits
from mmedpo.models.generation import Sampling
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.executors import Spread


@pytest.fixture(scope="module")
def asked(corpus: Path) -> QuestionSet:
    return read(Asked(corpus, split="test", limit=40))


def answers_of(answering: Any, asked: QuestionSet, generation: Generation, tmp_path: Path) -> dict[str, str]:
    found: dict[str, Any] = {}
    made = batches(asked.questions, generation)
    assert answering.answer(made, asked, generation, set(), found.update) == {}
    return {id_: line["prediction"] for id_, line in found.items()}


# In this process.


def test_greedy_answers_are_those_of_a_plain_loop(tiny_model, asked, tmp_path):
    """Each question alone, in the order of the source, through `generate` with nothing of this module."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(tiny_model)
    plain = AutoModelForImageTextToText.from_pretrained(tiny_model).eval()
    unspoken = [i for i in processor.tokenizer.all_special_ids if i != processor.tokenizer.eos_token_id]
    expected = {}
    for question in asked.questions:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[open_rgb(Path(question.images[0]))], return_tensors="pt")
        longest = 40 if question.task == "report" else 8
        with torch.inference_mode():
            output = plain.generate(**inputs, max_new_tokens=longest, do_sample=False, suppress_tokens=unspoken)
        said = output[0, inputs["input_ids"].shape[1] :]
        expected[question.id] = processor.decode(said, skip_special_tokens=True).strip()
    local = LocalModel(VisionLanguageModel(str(tiny_model)))
    found = answers_of(local, asked, Generation(8, 40, batch_size=8), tmp_path)
    assert found == expected
    assert len({len(answer.split()) for answer in found.values()}) > 1


def test_reports_may_be_longer_than_answers(tiny_model, asked, tmp_path):
    model = VisionLanguageModel(str(tiny_model))
    end = model.processor.tokenizer.eos_token_id

    def never_end(module: Any, inputs: Any, logits: Any) -> Any:
        logits[..., end] -= 1000
        return logits

    model.model.lm_head.register_forward_hook(never_end)
    found = answers_of(LocalModel(model), asked, Generation(5, 11), tmp_path)
    for question in asked.questions:
        assert len(found[question.id].split()) == (11 if question.task == "report" else 5)


def test_a_batch_has_a_chance_of_its_own(asked):
    generation = Generation(temperature=0.2, seed=1)
    one, other = batches(asked.questions, replace(generation, batch_size=4))[:2]
    assert generation.sampling(one) == generation.sampling(one)
    assert generation.sampling(one).seed != generation.sampling(other).seed
    assert generation.sampling(one).seed != replace(generation, seed=2).sampling(one).seed
    assert isinstance(generation.sampling(one), Sampling) and generation.sampling(one).temperature == 0.2


def test_what_is_read_ahead_comes_in_order_and_is_never_much():
    begun: list[int] = []

    def make(number: int) -> int:
        begun.append(number)
        return number**2

    found = []
    for square in ahead(make, range(20), depth=3):
        found.append(square)
        assert len(begun) <= len(found) + 3
    assert found == [number**2 for number in range(20)]
    assert READERS >= 1


def test_an_image_that_breaks_while_it_is_read_ahead_is_an_error_of_its_own():
    def make(number: int) -> int:
        if number == 2:
            raise InputError("broken")
        return number

    results = ahead(make, range(9))
    assert (next(results), next(results)) == (0, 1)
    with pytest.raises(InputError, match="broken"):
        next(results)


# Behind an endpoint.


def reply(received: Received) -> Answer:
    return Answer(f" {received.text} {received.body['max_tokens']}\n", usage=(10, 2))


def test_an_endpoint_gets_questions_pixels_and_settings(chat_server, asked, tmp_path):
    chat_server.answer = reply
    model = EndpointModel(f"{chat_server.url}#med-7b", Limits(concurrency=4))
    found = answers_of(model, asked, Generation(8, 40, temperature=0.2, seed=5), tmp_path)
    assert found == {q.id: f"{q.text} {40 if q.task == 'report' else 8}" for q in asked.questions}
    assert len(chat_server.received) == len(asked.questions) and chat_server.most_at_once <= 4
    pictures = {open_rgb(Path(question.images[0])).tobytes() for question in asked.questions}
    for received in chat_server.received:
        assert (received.body["model"], received.body["temperature"], received.body["seed"]) == ("med-7b", 0.2, 5)
        url = received.body["messages"][0]["content"][0]["image_url"]["url"]
        kind, _, data = url.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as sent:
            assert kind == "data:image/png" and np.asarray(sent).tobytes() in pictures and not sent.info


def test_an_endpoint_says_in_the_record_who_it_is_without_its_login():
    record = EndpointModel("http://me:secret@localhost:8000/v1#med-7b").record("Where?")
    assert record["model"] == "endpoint#med-7b"
    assert record["prompt"] == {"example": "Where?", "chat_template_sha256": None}


@pytest.mark.parametrize("name", ["http://localhost:8000/v1", "hub:model", "https://#m"])
def test_what_names_no_endpoint_is_refused(name):
    with pytest.raises(InputError, match="http://"):
        EndpointModel(name)


def test_an_endpoint_that_stops_half_way_keeps_answers_and_a_resumed_run_asks_the_rest(
    chat_server: ChatServer, asked: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "OUTAGE", 2)
    asking = endpoints.EndpointChat.__init__

    def impatient(self: Any, *arguments: Any, **options: Any) -> None:
        asking(self, *arguments, **options, attempts=2, patience=0.2, waits=(0.01, 0.02))

    monkeypatch.setattr(endpoints.EndpointChat, "__init__", impatient)
    chat_server.answer = lambda received: reply(received) if len(chat_server.received) <= 15 else Answer("away", 503)
    model = EndpointModel(f"{chat_server.url}#m", Limits(concurrency=2))
    with pytest.raises(InputError, match=r"is unavailable: .*--resume"):
        evaluate(lambda tasks: model, asked, tmp_path)
    assert len(read_answers(tmp_path).lines) == 15 and not (tmp_path / "results.json").exists()
    chat_server.received.clear()
    chat_server.answer = reply
    results = evaluate(lambda tasks: model, asked, tmp_path)
    assert results and results["unanswered"] == 0 and len(chat_server.received) == len(asked.questions) - 15


def test_what_an_endpoint_says_of_its_model_is_recorded_and_a_change_is_said(chat_server, asked, tmp_path, caplog):
    one = {"model": "org/med-7b", "system_fingerprint": "a"}
    other = {"model": "/home/me/models/med-7b", "system_fingerprint": 7}

    def answer(received: Received) -> Answer:
        changed = serving == "changed" and len(chat_server.received) > len(asked.questions) // 2
        return replace(reply(received), served=other if changed else {} if serving == "silent" else one)

    chat_server.answer = answer
    for serving, expected in (("silent", None), ("one", [one]), ("changed", [one, {"model": "med-7b"}])):
        chat_server.received.clear()
        (tmp_path / serving).mkdir()
        results = evaluate(lambda tasks: EndpointModel(f"{chat_server.url}#m"), asked, tmp_path / serving)
        assert results is not None
        assert sorted(results.get("served", []), key=len, reverse=True) == (expected or [])
        assert any("model changed during the run" in said for said in caplog.messages) == (serving == "changed")
        assert "served" not in (tmp_path / serving / "predictions.jsonl").read_text(encoding="utf-8")


def test_a_spent_budget_stops_and_the_rest_is_asked_later(chat_server, asked, corpus, tmp_path):
    chat_server.answer = reply
    spec = f"{chat_server.url}#m"
    for limits in (Limits(max_calls=7), Limits(max_tokens=60, concurrency=1)):
        with pytest.raises(Stopped, match="--resume"):
            evaluate(partial(opened, Settings(spec, corpus), limits, {}), asked, tmp_path)
    assert len(chat_server.received) == 7 + 5  # 12 tokens a call
    exact = Limits(max_calls=len(asked.questions) - 12)
    assert evaluate(lambda tasks: EndpointModel(spec, exact), asked, tmp_path)
    assert len(chat_server.received) == len(asked.questions)


@pytest.mark.parametrize("tasks", [1, 2])
def test_refused_questions_are_named_and_scored_as_unanswered_only_if_asked_for(
    chat_server: ChatServer, asked: QuestionSet, corpus: Path, tmp_path: Path, tasks: int
) -> None:
    refused = asked.questions[3]
    expected = [question.id for question in asked.questions if question.text == refused.text]
    chat_server.answer = lambda received: Answer("no", 400) if received.text == refused.text else reply(received)
    model, spread = partial(opened, Settings(f"{chat_server.url}#m", corpus), Limits(), {}), Spread(tasks=tasks)
    with pytest.raises(
        InputError, match=f"{len(expected)} of {len(asked.questions)} questions got no answer"
    ) as raised:
        evaluate(model, asked, tmp_path, spread=spread)
    assert [fault.row for fault in raised.value.faults] == expected
    assert "refused: HTTP 400" in str(raised.value)
    chat_server.received.clear()
    results = evaluate(model, asked, tmp_path, spread=spread, accept_unanswered=True)
    assert {received.text for received in chat_server.received} == {refused.text, "Please answer yes."}  # and a trial
    assert (results["unanswered"], results["processes"]) == (len(expected), tasks)
