"""A loopback OpenAI-compatible chat server for tests: real HTTP, programmable answers and faults, no network."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server sends: `text` as a chat completion with status 200, or `body` as it is; only its first `cut`
    bytes, and then the connection ends; or nothing and a TCP reset.

    `usage` are tokens of prompt and answer, `finish` is the finish_reason, `reasoning` a thought that the server split
    off, `content` what stands in place of the text, `served` further fields, `more` further choices,
    `early` bytes behind the answer, which nobody asked for.
    """

    text: str | None = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0  # seconds
    usage: tuple[int, int] | None = None
    cut: int | None = None
    reset: bool = False
    finish: str | None = "stop"
    reasoning: str | None = None
    content: Any = None
    served: Mapping[str, Any] = field(default_factory=dict)
    early: bytes = b""
    more: tuple[Answer, ...] = ()

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": self.text}).encode()
        choices = [one.choice(index) for index, one in enumerate((self, *self.more))]
        answer: dict[str, Any] = {"id": "x", "choices": choices, **self.served}
        if self.usage:
            answer["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
        return json.dumps(answer).encode()

    def choice(self, index: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.text if self.content is None else self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        return {"index": index, "message": message, "finish_reason": self.finish}


@dataclass(frozen=True)
class Received:
    """One request as it came in; `headers` have lower-case names, `at` is in seconds of `time.monotonic`."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float

    @property
    def text(self) -> str:
        """The user's text, without the image."""
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else next(part["text"] for part in content if "text" in part)

    @property
    def has_image(self) -> bool:
        return not isinstance(self.body["messages"][-1]["content"], str)


def o_series(received: Received) -> Answer | None:
    """The refusal of OpenAI's reasoning models, one parameter at a time, in their words; None where they take it."""
    renamed = "Use 'max_completion_tokens' instead."
    for name, code, more in (
        ("max_tokens", "unsupported_parameter", f"is not supported with this model. {renamed}"),
        ("temperature", "unsupported_value", "does not support 0 with this model. Only the default (1) is supported."),
        ("seed", "unsupported_parameter", "is not supported with this model."),
    ):
        if name in received.body:
            error = {"message": f"{code.replace('_', ' ').capitalize()}: '{name}' {more}", "param": name, "code": code}
            return Answer(body=json.dumps({"error": error}).encode(), status=400)
    return None


class ChatServer:
    """Use as a context manager. Answers come from `script`, in order, and then from `answer(received)`.

    >>> with ChatServer() as server:
    ...     server.script = [Answer("slow down", 429, {"Retry-After": "1"})]
    ...     server.answer = lambda received: Answer('{"score": 0.5, "rationale": ""}')
    ...     EndpointChat("any-model", base_url=server.url)
    """

    def __init__(self) -> None:
        self.script: list[Answer] = []
        self.answer: Callable[[Received], Answer] = lambda received: Answer("hello")
        self.received: list[Received] = []
        self.models: Any = None  # what /v1/models answers, JSON or bytes; None: there is no such page
        self.lists: list[dict[str, str]] = []  # headers of the requests for it
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.go()

    def go(self) -> None:
        """Be gone: every connection is reset, new ones are refused."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                _reset_on_close(connection)
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        self._listen()

    def _listen(self) -> None:
        self._http = _Http(("127.0.0.1", self._port), self._handler())
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def _respond(self, received: Received) -> Answer:
        with self._lock:
            self.received.append(received)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            scripted = self.script.pop(0) if self.script else None
        answer = scripted or self.answer(received)
        time.sleep(answer.delay)
        with self._lock:
            self._at_once -= 1
        return answer

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet

            def setup(self) -> None:
                super().setup()
                server._connections.add(self.connection)

            def finish(self) -> None:
                server._connections.discard(self.connection)
                with suppress(OSError):  # the client's timeout was what the test was about
                    super().finish()

            def handle(self) -> None:
                with suppress(OSError):
                    super().handle()

            def do_GET(self) -> None:
                server.lists.append({name.lower(): value for name, value in self.headers.items()})
                known = self.path.partition("?")[0].endswith("/models") and server.models is not None
                payload = server.models if isinstance(server.models, bytes) else json.dumps(server.models).encode()
                self.send_response(200 if known else 404)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = server._respond(Received(self.path, headers, body, time.monotonic()))
                if answer.reset:
                    self.close_connection = True
                    _reset_on_close(self.connection)
                    self.connection.close()
                    return
                payload = answer.payload()
                self.close_connection = answer.cut is not None
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload[: answer.cut] + answer.early)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _reset_on_close(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def curated_in_budgets(settings: Any, folder: Path, server: ChatServer, budgets: Sequence[int | None]) -> Any:
    """Curate into a folder in as many starts as there are budgets of calls, of which all but the last stop it.

    Returns:
        The calls that the server got, the manifest, and the bytes of the dataset's file.
    """
    from mmedpo.curation.run import curate_folder
    from mmedpo.errors import Stopped
    from mmedpo.models.chat.limits import Limits

    folder.mkdir()
    before = len(server.received)
    for most in budgets:
        try:
            made = curate_folder(settings, folder, limits=Limits(max_calls=most), judges_below_bar="go")
        except Stopped:
            assert most is not None
    return len(server.received) - before, made, next((folder / "data").iterdir()).read_bytes()
