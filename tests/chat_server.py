"""A loopback OpenAI-compatible chat server for tests: real HTTP, programmable answers and faults, no network."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server sends: `text` as a chat completion with status 200, or `body` as it is."""

    text: str | None = ""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0  # seconds

    def payload(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": self.text}).encode()
        message = {"role": "assistant", "content": self.text}
        return json.dumps({"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()


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
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

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

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = server._respond(Received(self.path, headers, body, time.monotonic()))
                payload = answer.payload()
                try:
                    self.send_response(answer.status)
                    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    self.wfile.write(payload)
                except ConnectionError:
                    pass  # the client's timeout was what the test was about

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler
