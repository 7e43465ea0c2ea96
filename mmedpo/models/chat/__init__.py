"""Chat models behind one small interface: endpoints, local models and offline stand-ins answer the same requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmedpo.models import thoughts
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.thoughts import Answer
from mmedpo.runs import bounded_json

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
class ChatReply(Answer):
    """What came back: `text`, or `failure`, why nothing did; exactly one of them is set. The tokens of the prompt and
    of the answer are None where nobody counted them; `sent` are the settings that an endpoint took with the request,
    under the names it took them by; `served` is what it says of the model that answered ("model",
    "system_fingerprint"), empty where it says nothing."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    sent: Mapping[str, Any] | None = field(default=None, compare=False)
    served: Mapping[str, str] = field(default_factory=dict, compare=False)


class ChatModel(Protocol):
    """Anything that answers chat requests; `name` and `revision` (None: unknown) go into the provenance."""

    name: str
    revision: str | None

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply a request, in order."""


OnReplies = Callable[[Mapping[int, ChatReply]], None]


class ChatClient(ChatModel, Protocol):
    """A chat model whose answers cost time or money, so that `mmedpo.models.chat.cache.CachedChat` keeps them.

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
    return bounded_json.last_object(thoughts.strip(text) or "")
