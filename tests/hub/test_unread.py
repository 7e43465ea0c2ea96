"""What keeps something of the Hub from being read is said in words, however libraries wrap it; over real HTTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hub.publishable import make_dataset
from hub.server import Hub
from huggingface_hub import constants

from mmedpo.data.hub import commit_of
from mmedpo.errors import InputError

READ = """
    from mmedpo.models import adapters, vision_language as models
    from mmedpo.data import loading
    from mmedpo import schema
    from mmedpo.hub.readers import Hub, hub_folder
    from mmedpo.errors import InputError
    readers = {
        "dataset": loading.load_splits,
        "adapter": adapters.adapter_config,
        "model": models.load_processor,
        "files": lambda name: hub_folder(Hub(name, None), ["*"]),
    }
    said = {}
    for name in sys.argv[1:]:
        for kind, read in readers.items():
            try:
                read(name)
            except InputError as error:
                said.setdefault(name, {})[kind] = str(error)
    say(said)
"""


def put(hub: Hub, name: str, **properties: object) -> None:
    for kind in ("model", "dataset"):
        hub.put(name, {"README.md": b"# Mine\n", "config.json": b"{}"}, kind=kind, **properties)


def test_what_is_not_there_hidden_gated_or_lacking_is_said_by_its_reader(hub: Hub) -> None:
    put(hub, "other/secret", private=True)
    put(hub, "other/gated", gated="auto")
    put(hub, "user/other")
    said = hub.ask(READ, "other/nothing", "other/gated", "user/other")
    said |= hub.ask(READ, "other/secret", token="")
    for name in ("other/nothing", "other/secret"):
        assert "doesn't exist on the Hub or cannot be accessed" in said[name].pop("dataset")
        assert list(said[name]) == ["adapter", "model", "files"]
        assert all("Neither a folder nor an accessible repository has this name" in it for it in said[name].values())

    assert "gated" in said["other/gated"].pop("dataset")
    assert list(said["other/gated"]) == ["adapter", "model", "files"]
    assert all("is gated (Access to" in it and "request access" in it for it in said["other/gated"].values())

    lacking = said["user/other"]
    assert "'adapter_config.json' at 'user/other'. Give the folder or Hub id of an adapter." in lacking["adapter"]
    assert "Unrecognized model" in lacking["model"] and "files" not in lacking


def test_a_repository_of_gguf_files_names_a_server(hub: Hub) -> None:
    names = ["user/m0-GGUF", "user/m1-GGUF"]
    for name, files in zip(names, ({}, {"config.json": b'{"model_type": "llama"}'}), strict=True):
        hub.put(name, {"README.md": b"", "m-Q4.gguf": b"GGUF", "m-Q8.gguf": b"GGUF", **files})
    said = hub.ask(
        """
        from mmedpo.models import vision_language as models
        from mmedpo.errors import InputError
        said = {}
        for name in sys.argv[1:]:
            for read in (models.load_tokenizer, models.load_model):
                try:
                    read(name)
                except InputError as error:
                    said.setdefault(name, str(error))
        say(said)
        """,
        *names,
    )
    for name in names:
        assert f"`llama-server -hf {name}`" in said[name] and "http://localhost:8080/v1#m-Q4" in said[name]


@pytest.mark.slow  # the Hub's clients wait two minutes before they give up
def test_without_a_way_there_it_is_said(hub: Hub) -> None:
    away = hub.ask(READ, "user/other", HF_ENDPOINT="http://127.0.0.1:9")["user/other"]
    assert "Couldn't reach 'user/other' on the Hub" in away.pop("dataset") and len(away) == 3
    assert all("the connection failed (ConnectError" in it and "half-published" not in it for it in away.values())


def test_offline_it_is_said(hub: Hub) -> None:
    offline = hub.ask(READ, "user/other", HF_HUB_OFFLINE="1")["user/other"]
    for kind in ("adapter", "files"):
        assert "HF_HUB_OFFLINE is set, and it is not in the cache" in offline[kind]
    here = "the folder does not exist, HF_HUB_OFFLINE is set, and it is not in the cache. Check the name"
    assert here in offline["model"] and "connect" not in offline["model"]


def on_a_full_disk(hub: Hub, disk: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run mmedpo with its cache and temporary files on a disk of 64 kB that is full, in mounts of its own."""
    disk.mkdir(exist_ok=True)
    script = f"mount -t tmpfs -o size=64k tmpfs '{disk}'; head -c 100000 /dev/zero > '{disk}/full'; exec \"$@\""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-m", "mmedpo.cli"]
    environment = hub.environment(HF_HOME=str(disk / "cache"), TMPDIR=str(disk))
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, cwd=hub.home, check=False
    )


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--mount", "--map-root-user", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted for a process of its own on Linux only, where that is allowed")
    return disk


def test_a_full_disk_hinders_no_publication_and_what_is_read_says_so(hub: Hub, disk: Path, tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "made" / "pairs")
    sent = on_a_full_disk(hub, disk, "publish", folder, "user/pairs", "--yes")
    assert sent.returncode == 0 and list(hub.repo("user/pairs", "dataset").tags) == ["v1"], sent.stderr
    read = on_a_full_disk(hub, disk, "audit", "user/pairs", "--output", tmp_path / "audit")
    said = " ".join(read.stderr.split())
    assert read.returncode == 2 and "no space left on the disk" in said and "Free some" in said
    written = on_a_full_disk(hub, disk, "audit", folder, "--output", disk / "audit")
    assert written.returncode == 2 and "No space left on the disk" in " ".join(written.stderr.split())


@pytest.mark.parametrize("body", [
    b"[1, 2]", b"{}", b"<html>", b"\xff", b"[" * 200_000, b'{"id": "user/it", "sha": "../../../elsewhere"}',
    b'{"id": "user/it", "sha": 7}',
])  # fmt: skip
def test_what_is_no_hub_names_no_commit(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would take `../../../elsewhere` into a path of its cache."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(InputError, match="the answer does not come from a Hub"):
            commit_of("user/it", None)
        server.shutdown()
