"""Candidates of a target model behind an endpoint (a loopback server), or with an adapter."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from real_chat_server import transformers_serve
from standins import STANDINS, WORDS

from mmedpo.curation.estimate import estimate
from mmedpo.curation.metering import SAMPLE
from mmedpo.curation.plan import open_plan, open_source
from mmedpo.curation.run import curate_folder
from mmedpo.curation.sampling import Sampler, notes, sent
from mmedpo.curation.settings import Run, Settings
from mmedpo.data import loading
from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError
from mmedpo.models.adapters import FINGERPRINT, adapter_contents, adapter_digest
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.opening import open_endpoint
from mmedpo.models.generation import Sampling
from mmedpo.models.vision_language import VisionLanguageModel, load_model
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.options import FLAG
from tests.chat_server import Answer, ChatServer, Received
from tests.conftest import MakeSource

QUESTIONS = [
    {"id": "place", "image": "a.png", "question": "Where is the nodule?", "answer": "left lower lobe"},
    {"id": "organ", "image": "b.png", "question": "Which organ is shown?", "answer": "lung"},
    {"id": "report", "image": "a.png", "report": "The lungs are clear. There is no effusion."},
]
REFUSED = Answer("Only one completion choice is allowed", 400)  # llama.cpp
FINDINGS = ("nodule", "mass", "effusion", "fracture", "cyst")


def drawn(received: Received, index: int = 0) -> Answer:
    """Return an answer that depends on question, seed and index alone; one sample in a few is cut off."""
    asked = json.dumps([received.text, received.body.get("seed"), index])
    name = hashlib.sha256(asked.encode()).hexdigest()
    said = f"a {FINDINGS[int(name[:4], 16) % 5]} of the right lobe {name[:6]}"
    return Answer(said, finish="length" if int(name[4:6], 16) % 7 == 0 else "stop", served={"model": "med-7b"})


def honouring(received: Received) -> Answer:
    first, *more = (drawn(received, index) for index in range(received.body.get("n", 1)))
    return Answer(**{**vars(first), "more": tuple(more), "usage": (9, 4)})


def ignoring(received: Received) -> Answer:
    return drawn(received)


def refusing(received: Received) -> Answer:
    return REFUSED if received.body.get("n", 1) > 1 else drawn(received)


def settings(source: Path, server: ChatServer, **more: Any) -> Settings:
    return Settings(source=source, localizer="none", model=f"{server.url}#med-7b", **{**STANDINS, **more})


@pytest.mark.parametrize(
    ("server", "requests", "sent"), [(honouring, 3, {"n": 4}), (ignoring, 12, {}), (refusing, 12, {})]
)
def test_samples_with_one_request_where_n_works(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path, caplog: Any, server: Any, requests: int, sent: Any
) -> None:
    chat_server.answer = server
    made = curate_folder(settings(make_source(QUESTIONS), chat_server), tmp_path, limits=Limits(concurrency=1))
    assert made is not None
    served = [{"model": "med-7b"}]
    assert made["target_model"] == {"name": "endpoint#med-7b", "revision": None, "served": served}
    asked = [one for one in chat_server.received if one.has_image and server(one) is not REFUSED]
    assert len(asked) == made["calls"]["med-7b"]["calls"] == requests
    assert len({one.body["seed"] for one in asked}) == requests
    for one in asked:
        assert one.body["max_tokens"] == (64 if "?" in one.text else 512) and one.body["temperature"] == 1.0
        assert one.body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png")
    taken = [{"max_tokens": most, "temperature": 1.0, "seed": 0, **sent} for most in (512, 64)]
    single = [{name: value for name, value in one.items() if name != "n"} for one in taken]
    assert made["calls"]["med-7b"]["sent"] == sorted(taken if sent else single, key=str)
    all_drawn = [choice for one in asked for choice in (lambda answer: [answer, *answer.more])(server(one))]
    whole = {answer.text for answer in all_drawn if answer.finish == "stop"}
    rows = list(loading.load(str(tmp_path)))
    assert {text for row in rows for text in row["provenance"]["candidates"]} == whole
    assert made["candidates"]["sampled"] == 12 == len(whole) + sum(made["candidates"]["left_out"].values())
    assert "endpoint#med-7b" in {row["provenance"]["rejected_by"] for row in rows}
    assert ("does not take n" in caplog.text) == (server is not honouring)


def test_two_endpoints_of_which_one_dies_make_the_dataset_of_one(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = honouring
    rows = [{**QUESTIONS[0], "id": f"q{i}", "question": f"Where is nodule {i}?"} for i in range(30)]
    source, made = make_source(rows), []
    with ChatServer() as other:

        def dying(received: Received) -> Answer:
            if len(other.received) == 5:
                threading.Thread(target=other.go).start()
            return honouring(received)

        other.answer = dying
        for name, servers in (("one", [chat_server]), ("two", [other, chat_server])):
            (folder := tmp_path / name).mkdir()
            model = ",".join(f"{server.url}#med-7b" for server in servers)
            made.append(curate_folder(Settings(source=source, localizer="none", model=model, **STANDINS), folder))
    assert made[0] == made[1] and made[0]["target_model"]["name"] == "endpoint#med-7b"
    assert 5 <= len(other.received) < 30 <= len(chat_server.received) < 60
    tables = [next((tmp_path / name / "data").iterdir()).read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


def test_failed_requests_are_asked_again_and_nothing_else(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chosen = settings(make_source(QUESTIONS), chat_server, seed=1)
    source = open_source(chosen)
    refuse_one = lambda received: Answer("bad words", 400) if "organ" in received.text else ignoring(received)  # noqa: E731
    with closing(Ledger(tmp_path / "calls")) as calls, closing(Ledger(tmp_path / "used")) as used:

        def found(answer: Any) -> list[dict[str, Any]]:
            chat_server.answer = answer
            sampler = open_plan(chosen, source, Budget(Limits()), calls, used).sampler
            assert sampler is not None
            (batch,) = sampler.batches(source.samples)
            return sampler.sample(sampler.load(), batch)

        first = found(refuse_one)
        failed = {"texts": [], "left_out": {"refused": 4}, "reason": "the chat model did not answer"}
        assert [one == failed for one in first] == ["organ" in one.prompt for one in source.samples]
        before = len(chat_server.received)
        second = found(ignoring)
        assert all("reason" not in one for one in second)
        assert {"organ" in one.text for one in chat_server.received[before:]} == {True}
        assert len(chat_server.received) == before + 4


def test_an_estimate_counts_the_calls_of_the_target(
    chat_server: ChatServer, make_source: MakeSource, tmp_path: Path
) -> None:
    chat_server.answer = honouring
    options = Run(output=tmp_path / "pairs", price=["med-7b=1000000/0"])
    (tmp_path / "scratch").mkdir()
    found = estimate(settings(make_source(QUESTIONS), chat_server), options, tmp_path / "scratch")
    cost = found.lines[SAMPLE, "med-7b"]
    assert cost["calls"] == (3, 3, 3) and cost["prompt_tokens"][0] == cost["money"][0] == 27
    asked = len(chat_server.received)
    (tmp_path / "unasked").mkdir()
    unasked = Run(output=tmp_path / "pairs", estimate_questions=0)
    cost = estimate(settings(make_source(QUESTIONS), chat_server), unasked, tmp_path / "unasked").lines[
        SAMPLE, "med-7b"
    ]
    assert cost["calls"][1:] == (3, 12) and cost["completion_tokens"][2] == 4 * (64 + 64 + 512)
    assert len(chat_server.received) == asked


def test_the_target_takes_part_in_consent(
    make_source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_given")
    chosen = Settings(source=make_source(QUESTIONS), credentialed=True, localizer="none", model="hub:org/m", **STANDINS)
    with pytest.raises(InputError, match=re.escape(FLAG)):
        curate_folder(chosen, tmp_path)
    with pytest.raises(InputError, match=re.escape(FLAG)):
        estimate(chosen, Run(output=tmp_path / "pairs"), tmp_path)
    with pytest.raises(InputError, match="out of reach"):  # the tests' Hub is offline
        curate_folder(chosen, tmp_path, third_parties=True)
    assert "3 questions, with their images, to the Hugging Face Hub" in capsys.readouterr().err


def test_the_target_behind_transformers_serve(tiny_model: Path, corpus: Path, tmp_path: Path, caplog: Any) -> None:
    """It answers about the image as the model here does, ignores `n`, and draws by the seed."""
    shutil.copytree(tiny_model, model := tmp_path / "tiny")
    wish = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**wish, "do_sample": True}))
    local = VisionLanguageModel(str(model))
    pictures = sorted(corpus.rglob("*.png"))[:2]
    with transformers_serve(model) as url:

        def asked(place: int, temperature: float, **more: Any) -> ChatReply:
            own = {"max_tokens": 8, "temperature": temperature}
            chat = open_endpoint(f"{url}#{model}", Budget(Limits()), **own)
            return chat.complete([ChatRequest("sample@1", {}, "Where is it?", sent(pictures[place]), **more)])[0]

        for place, picture in enumerate(pictures):
            ((here,),) = local.answer([(open_rgb(picture), "Where is it?")], Sampling(8))
            assert asked(place, 0.0).said == here
        drawn = [asked(0, 1.0, samples=4, seed=seed) for seed in (1, 2, 3, 1)]
    assert all(len(reply.samples) == 1 and reply.sent and "n" not in reply.sent for reply in drawn)
    said = [reply.samples[0].said for reply in drawn]
    assert said[0] == said[3] and len(set(said)) > 1
    assert "does not take n" in caplog.text


def test_samples_that_never_differ_are_noted() -> None:
    same: Any = [{"texts": ["left", "left"], "left_out": {}}] * 10
    (note,) = notes(same)
    assert "equal for each of 10 questions" in note
    assert notes(same[:9]) == notes([*same, {"texts": ["a", "b"], "left_out": {}}]) == []


def test_an_adapter_of_the_target_is_loaded_and_recorded(
    tiny_model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = tmp_path / "aligned"
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(load_model(str(tiny_model)), config)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_model)
    adapted.save_pretrained(aligned)
    (aligned / "training.json").write_text(json.dumps({"credentialed": True}))
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"source": corpus, "split": "preference", "limit": 4, "localizer": "none", **STANDINS}
    options |= {"max_new_tokens": 24, "max_new_tokens_report": 8}
    candidates = []
    for adapter in (None, str(aligned)):
        chosen = Settings(model=str(tiny_model), adapter=adapter, **options)
        (folder := tmp_path / f"out {adapter is None}").mkdir()
        made = curate_folder(chosen, folder)
        candidates.append([row["provenance"]["candidates"] for row in loading.load(str(folder))])
    assert made is not None and candidates[0] != candidates[1]
    named = {"name": "tiny", "adapter": "aligned", "adapter_sha256": adapter_digest(str(aligned))}
    assert made["target_model"] == {**named, "revision": None}
    assert made["contents"]["adapter"] == adapter_contents(str(aligned))
    assert made["settings"]["adapter"] == "aligned"
    assert made["source"]["credentialed"]  # the adapter's training was on restricted data
    assert Sampler(str(tiny_model), 4, 1.0, 8, 8, 8, 0, adapter=str(aligned)).recorded == "tiny with aligned"
    (aligned / "training.json").write_text(json.dumps({FINGERPRINT: "0" * 64}))
    (other := tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="trained on other weights"):
        curate_folder(chosen, other)


@pytest.mark.parametrize("model", [None, "http://localhost:8000/v1#base"])
def test_an_adapter_needs_a_model_in_this_process(model: str | None) -> None:
    with pytest.raises(InputError, match="behind an endpoint the adapter has a name of its own"):
        Settings(source=Path("clinic"), model=model, adapter="runs/dpo", **STANDINS)


def check_kill(make_source: MakeSource, tmp_path: Path, count: int, at: int) -> None:
    rows = [{**QUESTIONS[0], "id": f"q{i}", "question": f"Where is nodule {i}?", "image": "ab"[i % 2] + ".png"}
            for i in range(count)]  # fmt: skip
    source = make_source(rows)
    with ChatServer() as server:
        server.answer = honouring

        def start(folder: Path) -> subprocess.Popen[bytes]:
            folder.mkdir(exist_ok=True)
            words = ("--source", source, "--output", folder / "pairs", "--model", f"{server.url}#med-7b", "--localizer",
                     "none", *WORDS, "--resume")  # fmt: skip
            with (folder / "log").open("ab") as log:
                typed = [sys.executable, "-m", "mmedpo.cli", "curate", *map(str, words)]
                return subprocess.Popen(typed, stdout=log, stderr=log, start_new_session=True)

        def candidates(folder: Path) -> dict[str, Any]:
            rows = loading.load(str(folder / "pairs"))
            return {row["id"]: row["provenance"]["candidates"] for row in rows}

        assert start(tmp_path / "whole").wait() == 0, (tmp_path / "whole" / "log").read_text()
        assert len(server.received) == count
        server.received.clear()
        server.answer = lambda received: Answer(**{**vars(honouring(received)), "delay": 0.01})
        process = start(tmp_path / "killed")
        while len(server.received) < at and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        asked = len(server.received)
        with closing(sqlite3.connect(tmp_path / "killed" / "calls.sqlite")) as database:
            (kept,) = database.execute("SELECT count(*) FROM entries").fetchone()
        assert 0 < kept <= asked <= kept + 8 < count
        assert start(tmp_path / "killed").wait() == 0, (tmp_path / "killed" / "log").read_text()
        assert len(server.received) == asked + count - kept
        assert candidates(tmp_path / "killed") == candidates(tmp_path / "whole")


def test_a_kill_repeats_no_sample(make_source: MakeSource, tmp_path: Path) -> None:
    check_kill(make_source, tmp_path, count=60, at=25)


@pytest.mark.slow
def test_a_kill_among_500_questions(make_source: MakeSource, tmp_path: Path) -> None:
    check_kill(make_source, tmp_path, count=500, at=300)
