"""Curation with a real chat model as writer and judge: the structure of what it gives, never its quality."""

from __future__ import annotations

import json

from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.endpoint import EndpointChat

SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 20}, "score": {"type": "number", "enum": [0, 0.5, 1]}},
    "required": ["place", "score"],
    "additionalProperties": False,
}


def test_schema_obeyed(real_chat: str) -> None:
    url, _, name = real_chat.partition("#")
    client = EndpointChat(name, base_url=url, max_tokens=100)
    request = ChatRequest("any", {}, "Name a place in the chest, and a score.", schema=SCHEMA)
    (reply,) = client.complete([request])
    said = json.loads(reply.text)
    assert set(said) == {"place", "score"} and len(said["place"]) <= 20 and said["score"] in (0, 0.5, 1)
