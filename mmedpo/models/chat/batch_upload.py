"""Batch API of an endpoint (`/files` and `/batches` beside its `/chat/completions`): uploads, states and results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mmedpo.errors import InputError
from mmedpo.models.chat import AGAIN
from mmedpo.models.chat.transport import UNREADABLE, connection, message_of
from mmedpo.runs import bounded_json, writable
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    import httpx2

URL = "/v1/chat/completions"  # of each request, by OpenAI's names
SECONDS = 600.0  # for one transfer
MARK = "mmedpo"  # metadata of a batch: round and digest of its file
SHOWN = 300  # characters of a provider's message
ENDED = ("completed", "failed", "expired", "cancelled")


class Provider:
    """Batch API of an endpoint.

    Args:
        place: The endpoint for messages.
        base_url, key: As of its client.
        discreet: True keeps the provider's words out of messages, since they may quote a request.

    Raises:
        InputError: by any method, if the endpoint has no such API or refuses.
    """

    def __init__(self, place: str, base_url: str | None, key: str | None, discreet: bool = False) -> None:
        if base_url is None:
            raise InputError(f"--batch-upload: {place} has no batch API. Name the URL of an endpoint.")
        self.place, self._url, self._key, self._discreet = place, base_url, key, discreet

    def start(self, file: Path) -> str:
        """Upload a file of requests and return the id of its batch; one that has been started already is found."""
        mark = f"{file.parent.name} {sha256(file)}"  # a later round may ask the same
        for batch in self._asked("GET", "/batches", params={"limit": 100}).get("data") or ():
            if (batch.get("metadata") or {}).get(MARK) == mark:
                return str(batch["id"])
        with file.open("rb") as requests:
            sent = {"file": (file.name, requests, "application/jsonl")}
            uploaded = self._asked("POST", "/files", data={"purpose": "batch"}, files=sent)
        started = {
            "input_file_id": uploaded["id"], "endpoint": URL, "completion_window": "24h", "metadata": {MARK: mark}
        }  # fmt: skip
        return str(self._asked("POST", "/batches", json=started)["id"])

    def fetch(self, batch: str, requests: list[str], results: Path, name: str) -> tuple[str, bool]:
        """Return the state of a batch in words, and whether it has ended: then its results are in the folder `results`.

        Of a batch that ended without files each request has an error.
        """
        found = self._asked("GET", f"/batches/{quote(batch, safe='')}")
        state, counts = str(found.get("status")), found.get("request_counts") or {}
        if state not in ENDED:
            done = f", {counts.get('completed', 0)} of {counts.get('total', '?')} done"
            return f"batch {batch}: {state}{done * bool(counts)}", False
        files = {kind: found.get(f"{kind}_file_id") for kind in ("output", "error")}
        for kind, id in files.items():
            if id:
                self._download(f"/files/{quote(id, safe='')}/content", results / f"{name}-{kind}.jsonl")
        if not any(files.values()):
            errors = (found.get("errors") or {}).get("data") or [{}]
            said = str(errors[0].get("message") or "no results")[:SHOWN]
            lines = [{"custom_id": id, "error": {"message": f"the batch ended as {state}: {said}"}} for id in requests]
            text = "".join(f"{json.dumps(line)}\n" for line in lines)
            writable.write_whole(results / f"{name}-{state}.jsonl", text.encode())
        return f"batch {batch}: {state}", True

    def _asked(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Return the JSON object that the API answers."""
        with self._answer(method, path, **more) as response:
            body = response.read()
        try:
            found = bounded_json.loads(body)
            if not isinstance(found, dict):
                raise ValueError
        except (ValueError, *UNREADABLE):
            raise InputError(
                f"{self.place} has no batch API: {path} answers no JSON object. Leave out --batch-upload."
            ) from None
        return found

    def _download(self, path: str, file: Path) -> None:
        working = writable.beside(file)
        with self._answer("GET", path) as response, working.open("wb") as output:
            for part in response.iter_bytes():
                output.write(part)
        working.replace(file)

    @contextmanager
    def _answer(self, method: str, path: str, **more: Any) -> Iterator[httpx2.Response]:
        import httpx2

        place, options = connection(self._url, self._key, path)
        try:
            with httpx2.Client(timeout=SECONDS, **options) as http, http.stream(method, place, **more) as response:
                if not response.is_success:
                    said = "" if self._discreet else f": {message_of(response.read())[:SHOWN]}"
                    raise InputError(
                        f"{self.place}, batch API: {path} answers HTTP {response.status_code}{said}. Correct what it "
                        f"refuses and {AGAIN}; or leave out --batch-upload and upload the files yourself."
                    )
                yield response
        except httpx2.RequestError as error:
            raise InputError(
                f"{self.place}, batch API: {path} failed ({type(error).__name__}: {error}). Then {AGAIN}."
            ) from None
