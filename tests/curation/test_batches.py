"""Curations through batch files: their datasets are those of live calls, whatever happens to files on the way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received
from knowing_judge import FINDINGS, digest, written_or_judged

from mmedpo.data import loading
from mmedpo.models.chat import batch_files

Command = Callable[..., tuple[int, str]]
COUNT = 12
# A curation that is killed when all requests of its first round are written, before the round is complete.
KILLED = """
import os, signal, sys
from mmedpo import cli
from mmedpo.models.chat import batch_files
batch_files.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


def answering(received: Received) -> Answer:
    """Answers that depend on the request alone: judges disagree, one judgement is cut off at 512 tokens."""
    text, name = received.text, digest(received)
    if (count := received.body.get("n", 1)) > 1:
        more = (Answer(f"a {name[4:8]} on the left", finish="length"), Answer(f"left {name[8:12]}"))
        return Answer(f"right {name[:4]}", usage=(9, 4), more=more[: count - 1])
    if "Answers of the model:" in text:
        answer = json.dumps({"choice": int(name[:4], 16) % 2, "kind": "finding"})
    elif "Answer of the model:" in text:
        gold = re.findall(r"Correct answer: (.*)", text)[0]
        answer = json.dumps({"answer": gold if int(name[:4], 16) % 3 else "left"})
    else:
        answer = written_or_judged(received, scores=4)
    cut = "at place 3?" in text and received.body["max_tokens"] == 512
    return Answer(answer, usage=(len(text) // 3, len(answer) // 3), finish="length" if cut else "stop")


def questions() -> list[dict[str, Any]]:
    rows = []
    for number in range(COUNT):
        row = {"id": f"q{number}", "image": "ab"[number % 2] + ".png", "question": f"What is at place {number}?"}
        box = {"label": "nodule", "x": 4 + number % 9, "y": 5, "w": 8, "h": 9}
        rows.append({**row, "answer": "yes" if number == 5 else f"left lower {FINDINGS[number % 5]}", "boxes": [box]})
    return rows


def provide(server: ChatServer, requests: str) -> list[dict[str, Any]]:
    """Do what a provider does with a file of requests: one result a line, in another order."""
    results = []
    for line in requests.splitlines():
        request = json.loads(line)
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions") and len(
            request["custom_id"]
        ) <= 64
        body = json.dumps(request["body"]).encode()
        sent = urllib.request.Request(f"{server.url}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sent) as answer:
            response = {"status_code": 200, "request_id": "r", "body": json.load(answer)}
        results.append({"id": "b", "custom_id": request["custom_id"], "response": response, "error": None})
    return results[::-1]


def put(folder: Path, results: list[Any], name: str = "output.jsonl") -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in results]
    (folder / "results" / name).write_text("\n".join(lines) + "\n")


def rounds(batches: Path) -> list[Path]:
    return sorted(batches.iterdir())


def recorded(output: Path) -> dict[str, bytes]:
    """All files of a dataset folder; the command, which names the batches, is left out."""
    found = {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}
    return {name: data.replace(b" --batch-api batches", b"") for name, data in found.items()}


@pytest.mark.parametrize("pairs", [(), ("--chosen", "corrected"), ("--pairs", "ranked:judges")])
def test_batches_make_the_dataset_of_live_calls(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], tmp_path: Path, pairs: tuple[str, ...]
) -> None:
    chat_server.answer = answering
    judges = [f"{chat_server.url}#judge-a", f"{chat_server.url}#org/judge-b"]
    writer = () if "--pairs" in pairs else ("--chat", f"{chat_server.url}#writer", "--show-images")
    typed = ["curate", "--source", make_source(questions()), *writer, *pairs,
             "--model", f"{chat_server.url}#target", "--samples", 3 if "--pairs" in pairs else 2,
             "--judges", *judges, "--rounds", 3, "--max-reply-tokens", 512, "--judges-below-bar", "go"]  # fmt: skip
    (tmp_path / "live").mkdir()
    code, said = run(*typed, "--output", "live/pairs")
    assert code == 0, said
    live, calls = recorded(tmp_path / "live" / "pairs"), {digest(received) for received in chat_server.received}
    chat_server.received.clear()

    (tmp_path / "batch").mkdir()
    typed += ["--output", "batch/pairs", "--batch-api", "batches", "--resume"]
    number = 0
    assert subprocess.run([sys.executable, "-c", KILLED, *map(str, typed)], cwd=tmp_path).returncode == -signal.SIGKILL
    assert [entry.name for entry in rounds(tmp_path / "batches")] == ["round-01.partial"]
    while (found := run(*typed))[0] == 130:
        number += 1
        (folder,) = rounds(tmp_path / "batches")[number - 1 :]
        assert f"batches/round-{number:02d}/" in found[1] and number < 20
        for file in folder.glob("*.jsonl"):
            put(folder, provide(chat_server, file.read_text()), f"of-{file.name}")
    assert found[0] == 0, found[1]
    assert number > 4
    made = recorded(tmp_path / "batch" / "pairs")
    assert {name: data.replace(b"batch/pairs", b"live/pairs") for name, data in made.items()} == live
    asked = [digest(received) for received in chat_server.received]
    assert len(asked) == len(set(asked)) and set(asked) == calls


class BatchApi:
    """A provider's batch API over real HTTP; requests are answered by a chat server once their batch is asked for.

    The first look at a batch finds it at work. `lost` are states of batches that end without files.
    """

    def __init__(self, chats: ChatServer) -> None:
        self.chats, self.files, self.batches = chats, dict[str, bytes](), dict[str, dict[str, Any]]()
        self.lost: list[str] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.headers["authorization"] == "Bearer secret"
                *_, kind, name = self.path.removesuffix("/content").partition("?")[0].split("/")
                if kind == "files":
                    self.answer(api.files[name])
                elif name == "batches":
                    self.answer({"data": list(api.batches.values())})
                else:
                    self.answer(api.state(name))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path == "/v1/files":
                    assert b'name="purpose"\r\n\r\nbatch' in body
                    id = f"file-{len(api.files)}"
                    api.files[id] = re.findall(rb"\r\n\r\n(\{.*?\n)\r\n--", body, re.DOTALL)[0]
                    self.answer({"id": id})
                else:
                    id = f"batch-{len(api.batches)}"
                    api.batches[id] = {**json.loads(body), "id": id, "status": "validating"}
                    self.answer(api.batches[id])

            def answer(self, found: Any) -> None:
                payload = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def state(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        if batch["status"] == "validating":
            batch |= {"status": "in_progress", "request_counts": {"total": 4, "completed": 1}}
        elif batch["status"] == "in_progress" and self.lost:
            batch |= {"status": self.lost.pop(), "errors": {"data": [{"message": "no credits"}]}}
        elif batch["status"] == "in_progress":
            lines = provide(self.chats, self.files[batch["input_file_id"]].decode())
            self.files[f"out-{name}"] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            batch |= {"status": "completed", "output_file_id": f"out-{name}", "error_file_id": None}
        return batch


ROW = {"id": "q", "image": "a.png", "answer": "left lung"}


@pytest.fixture
def curation(
    run: Command, chat_server: ChatServer, make_source: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str]]:
    """Start a curation through batches whose writer alone is asked; the judge is a stand-in."""
    chat_server.answer = answering
    source = make_source(
        [{**ROW, "id": f"q{number}", "question": f"What is at place 1{number}?"} for number in range(4)]
    )
    typed = ["curate", "--source", source, "--localizer", "none", "--chat", f"{chat_server.url}#org/writer",
             "--judges", "standin:strict", "--output", "pairs", "--batch-api", "batches", "--resume"]  # fmt: skip
    return lambda *more: run(*typed, *more)


def error(result: dict[str, Any], status: int | None, **said: str) -> dict[str, Any]:
    response = status and {"status_code": status, "body": {"error": said}}
    return {**result, "response": response, "error": None if status else said}


def test_what_lacks_a_result_is_asked_again(
    curation: Command, chat_server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code, said = curation()
    assert code == 130 and "batches/round-01/org_writer-01.jsonl: 4 requests, new" in said and not chat_server.received
    first = tmp_path / "batches" / "round-01"
    code, said = curation()
    assert code == 130 and "round-01/org_writer-01.jsonl: 4 requests, no results yet" in said
    assert rounds(tmp_path / "batches") == [first]
    results = provide(chat_server, (first / "org_writer-01.jsonl").read_text())
    expired = error(results[1], None, code="batch_expired", message="not executed in 24 h")
    other = {**results[3], "custom_id": "f" * 64}
    put(first, [results[0], expired, json.dumps(results[2])[:-9], "", other])
    code, said = curation()
    assert code == 130 and "round-02/org_writer-01.jsonl: 3 requests, new" in said
    report = (
        "batches/round-01: 1 answer; 1 error (not executed in 24 h: 1); 2 requests without a result; 1 damaged line ("
    )
    assert report in caplog.text and "1 result of no request of this round." in caplog.text
    second = tmp_path / "batches" / "round-02"
    asked = [json.loads(line)["custom_id"] for line in (second / "org_writer-01.jsonl").read_text().splitlines()]
    assert sorted(asked) == sorted(result["custom_id"] for result in results[1:])
    put(second, [error(result, 429, message="slow down") for result in results[1:3]], "errors")
    put(second, results[3:])
    code, said = curation()
    assert code == 130 and "round-03/org_writer-01.jsonl: 2 requests, new" in said
    assert "batches/round-02: 1 answer; 2 errors (HTTP 429: 2)." in caplog.text
    put(tmp_path / "batches" / "round-03", [results[1], error(results[2], 500, message="http://10.0.0.1 is down")])
    assert curation()[0] == 0
    rejects = [json.loads(line) for line in (tmp_path / "pairs" / "rejects.jsonl").read_text().splitlines()]
    assert [one["detail"] for one in rejects] == ["no answer after 3 rounds of batches: (a URL) is down"]
    assert len(loading.load(str(tmp_path / "pairs"))) == 3 and len(chat_server.received) == 4


def test_refusals_change_parameters_once_or_are_final(
    curation: Command, chat_server: ChatServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    curation()
    first, second = tmp_path / "batches" / "round-01", tmp_path / "batches" / "round-02"
    results = provide(chat_server, (first / "org_writer-01.jsonl").read_text())
    schemas = [
        f"Invalid schema for response_format 'answer': {where}, 'maxLength' is not permitted." for where in "abc"
    ]
    renamed = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    refused = [error(result, 400, message=said) for result, said in zip(results, [*schemas, renamed], strict=True)]
    put(first, refused)
    assert curation()[0] == 130
    body = json.loads((second / "org_writer-01.jsonl").read_text().splitlines()[0])["body"]
    assert body["max_completion_tokens"] == 512 and "max_tokens" not in body
    assert "maxLength" not in json.dumps(body) and body["response_format"]["type"] == "json_schema"
    served = {**results[0]["response"]["body"], "model": "other-7b"}
    answers = [{**results[0], "response": {"status_code": 200, "body": served}}, *results[1:3]]
    put(second, [*answers, error(results[3], 400, message="content policy")])
    assert curation()[0] == 0
    assert "Batches for 'org/writer' were answered by 'other-7b'" in caplog.text
    rejects = [json.loads(line) for line in (tmp_path / "pairs" / "rejects.jsonl").read_text().splitlines()]
    assert [one["detail"] for one in rejects] == ["refused: content policy"]
    sent = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["calls"]["org/writer"]["sent"]
    assert sent == [{"max_completion_tokens": 512, "temperature": 0.0, "seed": 0,
                     "response_format": "json_schema without lengths"}]  # fmt: skip


def test_files_of_requests_are_bounded_and_not_changed(
    curation: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_files, "MOST_REQUESTS", 3)
    assert curation()[0] == 130
    first = tmp_path / "batches" / "round-01"
    assert [len(file.read_text().splitlines()) for file in sorted(first.glob("*.jsonl"))] == [3, 1]
    assert sorted(entry.name for entry in (tmp_path / "batches").iterdir()) == ["round-01"]
    (first / "org_writer-01.jsonl").write_text("changed\n")
    code, said = curation()
    assert code == 2 and "was changed since it was written" in said


def test_batches_are_uploaded_once_and_fetched(
    curation: Command, chat_server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMEDPO_API_KEY", "secret")
    api = BatchApi(chat_server)
    typed = ["--batch-upload", "--chat", f"{api.url}#org/writer"]
    about = tmp_path / "batches" / "round-01" / "round.json"
    code, said = curation(*typed)
    assert code == 130 and "round-01/org_writer-01.jsonl: 4 requests, batch batch-0: started" in said, said
    assert "Upload each file" not in said
    # The start was killed before it could record the batch.
    about.write_text(about.read_text().replace('"batch-0"', '""'))
    assert "batch batch-0: started" in curation(*typed)[1]
    assert "batch batch-0: in_progress, 1 of 4 done" in curation(*typed)[1]
    assert "batch batch-0: fetched with --batch-upload" in curation(*typed[1:])[1]
    api.lost = ["failed"]
    code, said = curation(*typed)
    assert code == 130 and "round-02/org_writer-01.jsonl: 4 requests, batch batch-1: started" in said
    assert curation(*typed)[0] == 130
    assert curation(*typed)[0] == 0
    assert len(api.batches) == 2 and len(chat_server.received) == 4
    assert len(loading.load(str(tmp_path / "pairs"))) == 4
    api.http.shutdown()
    api.http.server_close()
    code, said = curation(*typed, "--output", "more", "--batch-api", "others", "--cache", "new.sqlite")
    assert code == 2 and "batch API: /batches failed (ConnectError" in said and "--resume" in said


def test_an_endpoint_without_a_batch_api_is_named(curation: Command, chat_server: ChatServer) -> None:
    code, said = curation("--batch-upload")
    assert code == 2 and "batch API: /batches answers HTTP 404" in said and not chat_server.received


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max-calls", 9], "bound calls that are asked at once"),
        (["--tasks", 2], "Give --tasks 1"),
        (["--estimate"], "asks its questions at once"),
        (["--batch-api", "pairs/batches"], "lies in --output"),
    ],
)
def test_options_that_batches_refuse(curation: Command, more: list[object], said: str) -> None:
    code, told = curation(*more)
    assert code == 2 and said in told
