"""Pushing over real HTTP, to a server on this machine that knows the few calls a push makes."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from launches import ROOT, arguments


class Hub(ThreadingHTTPServer):
    """Keeps what is created and committed; `allowed` is the token it knows, `full` makes commits fail."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.full = False


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer right":
            self.answer({"error": "Invalid username or password."}, 401)
        else:
            self.answer({"name": "someone", "type": "user", "auth": {"type": "access_token"}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/someone/{json.loads(body)['name']}"})
        elif path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif "/commit/" in path and self.server.full:
            self.answer({"error": "Your storage is full."}, 403)
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/someone/adapter/commit/1", "commitOid": "1",
                         "success": True})  # fmt: skip
        else:
            self.answer({"warnings": [], "errors": []})

    def answer(self, value: Any, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def train(hub: Hub, token: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token,
                   "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *command, "--push_to_hub", "true"],
                          capture_output=True, text=True, check=False, env=environment)  # fmt: skip


def test_a_finished_adapter_is_pushed_privately_and_whole(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = train(hub, "right", arguments(preferences, tiny_model, tmp_path / "adapter", max_steps=1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(repo["name"], repo["visibility"]) for repo in hub.created] == [("adapter", "private")]
    here = {
        str(file.relative_to(tmp_path / "adapter")): file.read_bytes() for file in (tmp_path / "adapter").rglob("*")
    }
    assert {"README.md", "adapter_model.safetensors", "curves.png", "training.json", "recipe.yaml"} <= here.keys()
    assert hub.files == here
    assert not any(str(tmp_path).encode() in content for content in here.values())


def test_who_the_hub_does_not_know_is_told_before_training(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = train(hub, "wrong", arguments(preferences, tiny_model, tmp_path / "adapter"))
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert "push_to_hub: the Hub does not know who asks" in done.stderr and "hf auth login" in done.stderr


def test_what_cannot_be_pushed_is_kept_and_the_way_to_push_it_is_said(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    hub.full = True
    output = tmp_path / "adapter"
    done = train(hub, "right", arguments(preferences, tiny_model, output, max_steps=1, hub_model_id="someone/mine"))
    assert done.returncode == 2 and (output / "training.json").exists()
    assert f"hf upload someone/mine {output} --private" in " ".join(done.stderr.split())
