"""Chat clients against the loopback server, with waits in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from chat_server import ChatServer

from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.cache import CachedChat
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.runs.ledger import Ledger


@pytest.fixture
def ask() -> Callable[..., ChatRequest]:
    return lambda text="question", images=(), **more: ChatRequest("judge@2", {}, text, tuple(images), **more)


@pytest.fixture
def endpoint(chat_server: ChatServer) -> Callable[..., EndpointChat]:
    """Make a client of the server; failed requests are tried 5 times at once, and nobody is waited for."""

    def make(**options: object) -> EndpointChat:
        settings = {"base_url": chat_server.url, "waits": (0.001, 0.002), "patience": 0.0, **options}
        return EndpointChat(settings.pop("model", "med-7b"), **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def ledgers(tmp_path: Path) -> tuple[Ledger, Ledger]:
    """The cache and what a run used."""
    return Ledger(tmp_path / "cache.sqlite"), Ledger(tmp_path / "used.ledger")


@pytest.fixture
def cached(endpoint: Callable[..., EndpointChat], ledgers: tuple[Ledger, Ledger]) -> Callable[..., CachedChat]:
    """Make a client with a memory, of a new run each time, over the same ledgers."""

    def make(limits: Limits | None = None, **options: object) -> CachedChat:
        return CachedChat(endpoint(**options), Budget(limits or Limits()), *ledgers)

    return make
