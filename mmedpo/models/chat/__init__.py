"""Interface of chat models: endpoints, local models and offline stand-ins answer the same requests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmedpo.models import thoughts
from mmedpo.models.thoughts import Answer
from mmedpo.runs import bounded_json

AGAIN = "run the same command with --resume, or unchanged if it has no --resume, to continue"
WAITING = "the result of a batch is awaited"  # failure of a request that a later start of the run asks again


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model.

    Attributes:
        prompt: name and version of the prompt template ("judge@2").
        variables: values that fill the template; offline stand-ins read these instead of `text`.
        text: the user message.
        images: encoded image files in their order, in any format that Pillow reads.
        schema: JSON schema of the answer.
        readable: returns True for a reply that its reader can use. `CachedChat` asks others anew in a later run.
        max_tokens: longest reply in tokens; None is the client's own.
        samples: answers to draw, which the reply holds in `samples`; None asks for one reply. Endpoints only.
        seed: of these samples; None is the client's own.
    """

    prompt: str
    variables: Mapping[str, Any]
    text: str
    images: tuple[bytes, ...] = ()
    schema: dict[str, Any] | None = None
    readable: Callable[[str], bool] = field(default=bool, compare=False)
    max_tokens: int | None = None
    samples: int | None = None
    seed: int | None = None

    @property
    def image_digests(self) -> list[str]:
        """Return the SHA-256 of each image file."""
        return [hashlib.sha256(image).hexdigest() for image in self.images]


@dataclass(frozen=True)
class ChatReply(Answer):
    """Reply of a chat model: either `text`, or `failure`, the reason for none.

    Attributes:
        prompt_tokens, completion_tokens: counts, None where unknown.
        sent: parameters that the endpoint accepted, by the names it accepted.
        served: the endpoint's "model" and "system_fingerprint", as far as it reports them.
        seconds: time until the answer; in a batch of this process, its share. None where unknown.
        samples: answers to a request for samples, maybe fewer than asked for; `text` is then ''.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    sent: Mapping[str, Any] | None = field(default=None, compare=False)
    served: Mapping[str, str] = field(default_factory=dict, compare=False)
    seconds: float | None = field(default=None, compare=False)
    samples: tuple[Answer, ...] = ()


class ChatModel(Protocol):
    """Protocol of all chat models; `name` and `revision` (None: unknown) are recorded in the provenance."""

    name: str
    revision: str | None

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        """Return one reply per request, in order. Endpoints take requests one by one, as they can be sent."""


OnReplies = Callable[[Mapping[int, ChatReply]], None]


class ChatClient(ChatModel, Protocol):
    """Chat model whose answers cost time or money, so that `mmedpo.models.chat.cache.CachedChat` stores them.

    Attributes:
        settings: all that an answer depends on beside model and request.
        batch_size: requests computed together; 1 computes each by itself.
    """

    settings: Mapping[str, Any]
    batch_size: int

    def complete(self, requests: Iterable[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """Return replies as `ChatModel.complete`, and pass them to `on_replies` by position as they arrive.

        Replies of a batch, or of one moment, are passed together. If `on_replies` raises, no new request starts;
        running ones finish and are passed too, then the error is raised.
        """


def parse_json(text: str) -> dict[str, Any] | None:
    """Return the last complete JSON object in `text`, or None.

    Prose, code fences and thoughts are skipped.

    Example: `parse_json('Sure: {"score": 0.8}')` is `{"score": 0.8}`; of `'{"score": 0.8, "ra'` it is None.
    """
    return bounded_json.last_object(thoughts.strip(text) or "")
