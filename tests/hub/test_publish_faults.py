"""What can go wrong between here and the Hub, over real HTTP: each says what to do, nothing is half there, and the same
publication finishes when it is gone."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import httpx2
import pytest
from httpx2 import ReadTimeout
from hub.publishable import make_adapter
from hub.server import Hub
from hub.store import Blob
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from mmedpo.data import hub as words
from mmedpo.errors import InputError
from mmedpo.hub.publish import Publication, publish

Send = Callable[..., Publication]
UPLOADED = 200_000  # bytes of the adapter's weights, the one large file
STEPS = {  # each request that publishing makes
    "who": "GET /api/whoami-v2", "info": "GET /api/models/user/mine$", "create": "POST /api/repos/create",
    "tree": "GET .*/tree/", "refs": "GET .*/refs", "yaml": "POST /api/validate-yaml", "preupload": "POST .*/preupload/",
    "batch": "POST .*/objects/batch", "upload": "PUT /lfs/", "verify": "POST .*/verify", "commit": "POST .*/commit/",
    "tag": "POST .*/tag/",
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_adapter(tmp_path_factory.mktemp("made") / "adapter")
    (folder / "curves.png").unlink()  # a second large file
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited; it does not."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.fixture
def send(hub: Hub, adapter: Path, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Send:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def go(repo: str = "user/mine", **options: Any) -> Publication:
        asked = {"endpoint": hub.url, "token": "write", "confirm": lambda question: True, **options}
        return publish(adapter, repo, "adapter", **asked)

    return go


def nothing_is_there(hub: Hub) -> bool:
    return all(not hub.files(repo.id, repo.kind) and not repo.tags for repo in hub.store)


def all_is_there(hub: Hub, adapter: Path) -> bool:
    files = hub.files("user/mine")
    weights = files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    return weights and hub.files("user/mine", revision="v1") == files and list(hub.repo("user/mine").tags) == ["v1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": None}, r"there is no token\. Run `hf auth login`"),
        ({"token": "read"}, r"The token of user is read-only\. Run `hf auth login`"),
        ({"token": "unknown"}, r"HTTP 401: .*The token is invalid\. Run `hf auth login`"),
        ({"repo": "other/mine"}, r"HTTP 403: you don't have the rights .*use one that may write"),
        ({"repo": "other/gated"}, r"is gated \(Access to model other/gated is restricted.*request access"),
        ({"repo": "user/a name"}, r"cannot be published to: the name is not allowed"),
        (
            {"endpoint": "http://[bad"},
            r"HF_ENDPOINT 'http://\[bad' is not a URL\. Unset it, or give one like https",
        ),
        ({"endpoint": "huggingface.co"}, r"HF_ENDPOINT 'huggingface.co' is not a URL"),
        ({"token": "hf_é"}, r"The token contains an invalid character\. Run `hf auth login`"),
        ({"endpoint": "http://127.0.0.1:9"}, r"the connection failed \(ConnectError.*Run the same command again later"),
    ],
    ids=str,
)
def test_who_may_not_is_told_what_to_do(hub: Hub, send: Send, options: dict[str, Any], said: str) -> None:
    hub.put("other/gated", {"README.md": b"# Theirs\n"}, gated="auto")
    with pytest.raises(InputError, match=said):
        send(**options)
    assert hub.files("other/gated") == {"README.md": b"# Theirs\n"}
    assert len(list(hub.store)) == 1


@pytest.mark.parametrize(
    ("step", "fault", "said"),
    [
        ("create", {"status": 400, "message": "name too long"}, r"HTTP 400: name too long\..*correct what it names"),
        ("yaml", {"status": 400, "message": "bad license"}, r"Invalid metadata in README\.md"),
        ("preupload", {"status": 403}, r"HTTP 403: as the test wants it"),
        ("upload", {"status": 401}, r"adapter_model\.safetensors.* HTTP 401"),
        ("upload", {"status": 413}, r"adapter_model\.safetensors.* HTTP 413: .*too large for the Hub.*--shard_size"),
        ("upload", {"status": 500}, r"adapter_model\.safetensors.* HTTP 500: .*Run the same command again later"),
        (
            "upload",
            {"cut": 5000},
            r"adapter_model\.safetensors.* the connection failed .*finished uploads are not repeated",
        ),
        (
            "commit",
            {"status": 403, "message": "Your storage is full."},
            r"HTTP 403: Your storage is full\..*follow its message",
        ),
        ("commit", {"status": 404}, r"HTTP 404: .*check its name and owner"),
        (
            "commit",
            {"status": 409},
            r"HTTP 409: .*The repository was changed by another process.*Run the same command again",
        ),
        (
            "commit",
            {"status": 412},
            r"HTTP 412: .*The repository was changed by another process.*Run the same command again",
        ),
        (
            "commit",
            {"status": 429, "headers": {"Retry-After": "900"}},
            r"HTTP 429: .*Too many requests to the Hub\. It asks for 900 s",
        ),
        ("commit", {"status": 500}, r"HTTP 500: .*Nothing is published in part\. Run the same command again later"),
        ("commit", {"cut": 100}, r"the connection failed .*Nothing is published in part"),
    ],
    ids=str,
)
def test_what_lasts_says_what_to_do_and_leaves_nothing_half_there(
    hub: Hub, send: Send, adapter: Path, step: str, fault: dict[str, Any], said: str
) -> None:
    hub.fail(STEPS[step], times=99, **fault)
    with pytest.raises(InputError, match=f"(?s)^user/mine was not published: .*{said}") as raised:
        send()
    assert "\n" not in str(raised.value) and "hf_" not in str(raised.value) and nothing_is_there(hub)
    hub.faults.clear()
    hub.requests.clear()
    assert send().tag == "v1" and all_is_there(hub, adapter)
    if step == "commit":  # the weights had arrived
        assert not [call for call in hub.calls() if call.startswith("PUT")]


PASSING = {"503": {"status": 503}, "reset": {"cut": 0}, "lost": {"lost": True}}


@pytest.mark.parametrize(
    ("step", "fault"),
    [  # each step once with one of them; the others are slow
        pytest.param(step, fault, id=f"{step}-{name}", marks=[pytest.mark.slow] * ((number + kind) % 3 != 0))
        for number, step in enumerate(STEPS)
        for kind, (name, fault) in enumerate(PASSING.items())
    ],
)
def test_what_passes_is_outlasted_at_every_step(
    hub: Hub, send: Send, adapter: Path, step: str, fault: dict[str, Any]
) -> None:
    met = hub.fail(STEPS[step], times=1, **fault)
    assert send().tag == "v1" and met.times == 0
    assert all_is_there(hub, adapter) and len(hub.repo("user/mine").commits) == 2  # the Hub's own first one, and ours


@pytest.mark.parametrize(
    "tenth", [pytest.param(tenth, marks=[pytest.mark.slow] * (tenth not in (0, 5))) for tenth in range(10)]
)
def test_a_reset_anywhere_in_an_upload_is_outlasted_or_said(hub: Hub, send: Send, adapter: Path, tenth: int) -> None:
    cut = UPLOADED * tenth // 10
    hub.fail(STEPS["upload"], cut=cut, times=99)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors.* the connection failed"):
        send()
    assert nothing_is_there(hub)
    hub.faults.clear()
    hub.fail(STEPS["upload"], cut=cut)
    hub.requests.clear()
    assert send().tag == "v1" and all_is_there(hub, adapter)
    assert [received.body for received in hub.requests if received.method == "PUT"] == [cut, UPLOADED]


def test_the_hubs_own_patience_is_kept(hub: Hub, send: Send, waits: list[float]) -> None:
    hub.fail(STEPS["commit"], status=429, headers={"Retry-After": "7"})
    hub.fail(STEPS["upload"], status=429, headers={"Retry-After": "5"})
    assert send().tag == "v1" and 7.0 in waits and 6.0 in waits  # huggingface_hub adds one
    waits.clear()
    hub.fail(STEPS["tag"], status=429, headers={"RateLimit": '"api";r=0;t=11'})
    assert send("user/other").tag == "v1" and waits == [11.0]


@pytest.mark.parametrize(("headers", "seconds"), [
    ({"Retry-After": "7"}, 7.0), ({"Retry-After": "\u00b2"}, 0.0), ({"Retry-After": "-1"}, 0.0), ({}, 0.0),
    ({"Retry-After": "9" * 5000}, math.inf), ({"Retry-After": "nan"}, 0.0), ({"Retry-After": "1e9"}, 0.0),
    ({"RateLimit": '"api";r=0;t=11'}, 11.0), ({"RateLimit": f'"api";r=0;t={"9" * 400}'}, 0.0),
    ({"RateLimit": f'"api";r=0;t={"9" * 5000}', "Retry-After": "3"}, 3.0),
])  # fmt: skip
def test_patience_of_absurd_headers(headers: dict[str, str], seconds: float) -> None:
    response = httpx2.Response(
        429, headers=httpx2.Headers(headers, encoding="utf-8"), request=httpx2.Request("GET", "http://hub")
    )
    assert words.patience(HfHubHTTPError("slow down", response=response)) == seconds


def test_a_long_error_of_a_server_is_cut(hub: Hub, send: Send) -> None:
    hub.fail(STEPS["commit"], status=400, message="x" * 100_000, times=9)
    with pytest.raises(InputError, match="HTTP 400: xxx") as raised:
        send()
    assert len(str(raised.value)) < 2000


def test_without_a_disk_to_write_to_it_is_published_all_the_same(
    hub: Hub, send: Send, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    for name in ("HF_HUB_CACHE", "HF_HOME", "HF_XET_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    send()
    assert all_is_there(hub, adapter) and not send().plan


def test_what_the_repositorys_gitignore_keeps_out_is_said(hub: Hub, send: Send, adapter: Path) -> None:
    hub.put("user/mine", {".gitignore": b"*.safetensors\n"})
    with pytest.raises(InputError, match=r"its \.gitignore keeps out adapter_model\.safetensors"):
        send()
    hub.repo("user/mine").commit("main", lambda files: files.update({".gitignore": Blob(b"")}), "Let all in")
    assert send().tag == "v1" and all_is_there(hub, adapter)


def test_offline_is_said(hub: Hub, send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        send()


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("Error while uploading 'a.bin' to the Hub.")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/cache"), r"no space left .*\(/x/cache\)\. Free some"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/a"), "Permission denied: /x/a"),
        (wrapped(PermissionError("Xet token refused")), r"the token lacks permission \(Xet token refused\)\. Run `hf"),
        (
            JSONDecodeError("Expecting value", "<html>", 0),
            "the answer does not come from a Hub. Check HF_ENDPOINT and any proxy",
        ),
        (wrapped(ReadTimeout("too slow")), r"'a\.bin' to the Hub\. the connection failed \(ReadTimeout: too slow\)"),
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE is set"),
        (ValueError("LFS batch API returned errors:\nno"), "LFS batch API returned errors"),
        (RuntimeError("Xet: no route"), "Xet: no route"),
    ],
)
def test_errors_in_words(error: Exception, said: str) -> None:
    with pytest.raises(InputError, match=f"^It failed: .*{said}"), words.in_words("It failed"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(KeyError), words.in_words("It failed"):
        raise KeyError("mine")


def test_ctrl_c_leaves_nothing_half_there_and_is_gone_on_from(hub: Hub, adapter: Path) -> None:
    command = [sys.executable, "-m", "mmedpo.cli", "publish", "--adapter", str(adapter), "user/mine", "--yes"]
    fault = hub.fail(STEPS["commit"], delay=30)
    with subprocess.Popen(command, env=hub.environment(), stderr=subprocess.PIPE, text=True, cwd=hub.home) as running:
        while fault.times and running.poll() is None:
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=60)
    assert running.returncode == 130 and "all of this version or nothing of it" in " ".join(told.split())
    assert nothing_is_there(hub)
    hub.requests.clear()
    assert subprocess.run(command, env=hub.environment(), cwd=hub.home, check=False).returncode == 0
    assert all_is_there(hub, adapter) and not [call for call in hub.calls() if call.startswith("PUT")]
