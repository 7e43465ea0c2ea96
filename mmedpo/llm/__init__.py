"""Chat models behind one small interface: endpoints, local models and offline stand-ins answer the same requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mmedpo.llm.limits import Budget, Limits

__all__ = ["Budget", "ChatClient", "ChatModel", "ChatReply", "ChatRequest", "Limits", "OnReplies", "parse_json"]


@dataclass(frozen=True)
class ChatRequest:
    """One question: `prompt` is the template's name and version ("judge@1"), `variables` what it was filled from (an
    offline stand-in reads these instead of `text`), `text` the user message, `image` an encoded image file of any
    format Pillow knows, `schema` the JSON schema of the answer."""

    prompt: str
    variables: Mapping[str, Any]
    text: str
    image: bytes | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatReply:
    """What came back: `text` (may be empty), or `failure`, why nothing did; exactly one of them is set. The tokens of
    the prompt and of the answer are None where nobody counted them."""

    text: str | None = None
    failure: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.failure is None):
            raise ValueError("A ChatReply has either a text or a failure.")


class ChatModel(Protocol):
    """Anything that answers chat requests; `name` and `revision` (None: unknown) go into the provenance."""

    name: str
    revision: str | None

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply a request, in order."""


OnReplies = Callable[[Mapping[int, ChatReply]], None]


class ChatClient(ChatModel, Protocol):
    """A chat model whose answers cost time or money, so that `mmedpo.llm.cache.CachedChat` keeps them.

    `settings` is all that an answer depends on beside the model and the request; of the requests, `batch_size` are
    computed together (1: each by itself).
    """

    settings: Mapping[str, Any]
    batch_size: int

    def complete(self, requests: Sequence[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """As `ChatModel.complete`. Replies are handed to `on_replies` by their place as soon as there are any, those
        of a batch together. If it raises, nothing new is begun; what is under way is finished and handed over too,
        and then the error goes on."""


def parse_json(text: str) -> dict[str, Any] | None:
    """The last whole JSON object in `text`, or None: prose and code fences around it are skipped, thoughts not read.

    Example: `parse_json('Sure: {"score": 0.8}')` is `{"score": 0.8}`; of `'{"score": 0.8, "ra'` it is None.
    """
    text = text.rpartition("</think>")[2]
    if "<think>" in text:  # cut off before the answer
        return None
    decoder, found, start = json.JSONDecoder(), None, text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except RecursionError:  # nothing anyone asked for nests so deep, and each further try takes as long
            return None
        except ValueError:
            end = start + 1
        start = text.find("{", end)
    return found
