"""A loopback Hub for tests: enough of the Hugging Face Hub's protocol for its unmodified clients (huggingface_hub,
datasets, transformers, peft, evaluate), which find it through `HF_ENDPOINT`.

Implemented: creating, listing, deleting, moving repositories of models, datasets and Spaces, and their settings; their
info; commits (NDJSON: regular and large files, deletions, `parentCommit`), history, trees with pages, paths-info, refs,
branches and tags; large files by the LFS batch API, in one part or several, those already there known by hash; files
with Range, ETag and the Hub's headers; who asks and what they may do (tokens that only read, roles in organisations,
private and gated repositories); the check of a card's metadata (YAML, and tags that are strings; the Hub checks more).

Not: Xet (clients that have hf_xet must be told by `HF_HUB_DISABLE_XET=1`, for they upload large files through it
without asking the server), pull requests, discussions, copies of large files between repositories, squashed histories,
fine-grained tokens, redirects (of large files to a CDN, of moved repositories to their new names: both are answered in
place), the dataset viewer, Spaces that run, and git itself. Of .gitignore only file and folder names with wildcards.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web
from hub import api, transfer
from hub.accounts import ACCOUNT, HUB, Account
from hub.faults import Fault, Received, answer_in_part, read, reset
from hub.store import Blob, HubError, Repo, Store

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = """
import json, sys
from huggingface_hub import HfApi
api = HfApi()
def say(value): print(json.dumps(value))
"""


class Hub:
    """Use as a context manager; `home` is where its clients work and, token by token, keep their caches.

    >>> with Hub(tmp_path) as hub:
    ...     hub.fail("POST .*/commit/", status=500, times=2)
    ...     hub.run("from huggingface_hub import HfApi; HfApi().create_repo('user/x')")
    ...     hub.files("user/x")

    Tokens: `write` and `read` of the user `user`, `other` of the user `other`; tests add to `accounts` as they need.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = Store()
        self.accounts = {"write": Account("user"), "read": Account("user", "read"), "other": Account("other")}
        self.requests: list[Received] = []
        self.faults: list[Fault] = []
        self.large_from = 10_000_000  # bytes; smaller ones may be regular files
        self.part_size = 20_000_000  # bytes; larger ones are uploaded in parts
        self.page_size = 1000
        self._loop = asyncio.new_event_loop()
        self.url = ""

    def __enter__(self) -> Hub:
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        application = web.Application(middlewares=[self._answer], client_max_size=0)
        application[HUB] = self
        application.add_routes(api.routes)
        application.add_routes(transfer.routes)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        self._in_loop(self._runner.setup)
        self._in_loop(lambda: web.TCPSite(self._runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def stop(self) -> None:
        """Be gone: connections are refused from now on."""
        self._in_loop(self._runner.cleanup)

    def _in_loop(self, start: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)

    # What a test arranges and looks at.

    def put(
        self,
        id: str,
        files: Mapping[str, bytes],
        kind: str = "model",
        large: tuple[str, ...] = (),
        **properties: Any,
    ) -> Repo:
        """Create a repository that holds `files`, those named in `large` as large ones; `properties` as of Repo."""
        repo = self.store.create(kind, id, **properties)
        blobs = {path: Blob(data, path in large) for path, data in files.items()}
        repo.large.update((blob.sha256, blob.data) for blob in blobs.values() if blob.lfs)
        repo.commit("main", lambda there: there.update(blobs), "put")
        return repo

    def repo(self, id: str, kind: str = "model") -> Repo:
        repo = self.store.find(kind, id)
        assert repo, f"no {kind} {id}"
        return repo

    def files(self, id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Every file but the .gitattributes that the Hub adds."""
        files = self.repo(id, kind).at(revision).files
        return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}

    def fail(self, match: str, **fault: Any) -> Fault:
        self.faults.append(Fault(match, **fault))
        return self.faults[-1]

    def calls(self) -> list[str]:
        """The requests so far as `METHOD /path`, and forgets them."""
        calls, self.requests = [str(received) for received in self.requests], []
        return calls

    def sent(self) -> int:
        """Bytes of large files that came since the requests were last forgotten."""
        return sum(received.body for received in self.requests if received.method == "PUT")

    # Clients.

    def environment(self, token: str = "write", **more: str) -> dict[str, str]:
        """What a client process needs: no token for "", and nothing of this process's own Hub settings."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
        return {**own, "HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": str(self.home / (token or "nobody")),
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1", **more}  # fmt: skip

    def run(self, code: str, *arguments: object, token: str = "write", **environment: str) -> str:
        """What Python prints that runs `code` as a client; `arguments` are its sys.argv[1:]. Its failure is ours."""
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment(token, **environment),
                              cwd=self.home, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    def ask(self, code: str, *arguments: object, token: str = "write", **environment: str) -> Any:
        """What a client's `code` gives to `say`, as JSON; it finds `api`, an HfApi, and `sys`."""
        output = self.run(PRELUDE + textwrap.dedent(code), *arguments, token=token, **environment)
        return json.loads(output.splitlines()[-1])

    # One request.

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        account = self.accounts.get(token)
        received = Received(request.method, request.path)
        self.requests.append(received)
        fault = next((fault for fault in self.faults if fault.meets(received)), None)
        try:
            await read(request, received, fault)
            if fault:
                await asyncio.sleep(fault.delay)
            if fault and fault.status:
                raise HubError(fault.status, fault.message)
            if token and not account:
                raise HubError(401, "Invalid credentials in Authorization header")
            request[ACCOUNT] = account
            answer = await handler(request)
        except ConnectionResetError:
            return reset(request)
        except HubError as error:
            answer = _refusal(error, fault.headers if fault else {})
        except web.HTTPException as error:
            code = "RepoNotFound" if error.status == 404 else None
            answer = _refusal(HubError(error.status, "This Hub has no such repository or call", code), {})
        if fault and fault.cut is not None:
            await answer_in_part(request, answer, fault.cut)
            return reset(request)
        if fault and fault.lost:
            return reset(request)
        received.status = answer.status
        return answer


def _refusal(error: HubError, headers: Mapping[str, str]) -> web.Response:
    told = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {}), **headers}
    return web.json_response({"error": error.message}, status=error.status, headers=told)
