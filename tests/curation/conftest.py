"""The loopback chat server as a fixture, and what `huggingface_hub` needs to talk to it in a closed-off test run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # where chat_server.py is

from chat_server import ChatServer


@pytest.fixture
def chat_server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    with ChatServer() as server:
        yield server
