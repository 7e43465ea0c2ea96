"""Chat completions of endpoints, read into replies; kinds of failure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from mmedpo.models import thoughts
from mmedpo.models.chat import ChatReply
from mmedpo.models.thoughts import Answer

SERVED = ("model", "system_fingerprint")  # response fields that identify the model
LONGEST_BODY = 1_000_000  # bytes; an answer of some hundred tokens has a few thousand
SHOWN_CHARACTERS = 300  # of a server's message
MOST_TOKENS = 2**53  # largest integer that is exact in every JSON reader
TOO_LONG = f"the answer is longer than {LONGEST_BODY:,} bytes"
RENAMED = "max_completion_tokens"
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete")  # finish reasons, as servers spell them
REASON = re.compile(r"[\w.-]{1,40}")
CUT = ("length", "max_tokens", "max_output_tokens")
UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, RecursionError)


class Kind(Enum):
    """Kinds of failure, by their meaning for this request and later ones."""

    UNREACHABLE = "the connection was refused"
    UNAVAILABLE = "the endpoint is unavailable or rate limited"
    FAILED_ATTEMPT = "the attempt failed"
    BAD_REQUEST = "the request was refused"
    FATAL = "every request is refused"


class NoAnswer(Exception):
    """Failure of an attempt: its kind, HTTP `status` (0: none) and `retry_after`, the server's wait in seconds."""

    def __init__(self, kind: Kind, said: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(said)
        self.kind, self.status, self.retry_after = kind, status, retry_after


def reply_of(answer: dict[str, Any], asked: Mapping[str, Any], samples: bool) -> ChatReply:
    """Return the reply in a chat completion's fields; unusable fields raise one of `UNREADABLE`."""
    choices, usage = answer["choices"][: asked.get("n", 1)], answer.get("usage") or {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in counts)
    served = {
        name: _without_surrogates(said)[:SHOWN_CHARACTERS]
        for name in SERVED
        if isinstance(said := answer.get(name), str) and said.strip()
    }
    tokens: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "served": served}
    if samples and choices:
        return ChatReply("", samples=tuple(_sample(choice, asked) for choice in choices), **tokens)
    return ChatReply(**vars(_answer(choices[0], asked)), **tokens)


def _sample(choice: dict[str, Any], asked: Mapping[str, Any]) -> Answer:
    try:
        return _answer(choice, asked)
    except NoAnswer as error:
        return Answer(failure=str(error))


def _answer(choice: dict[str, Any], asked: Mapping[str, Any]) -> Answer:
    """Return the answer of one choice. Raises NoAnswer where it has neither thought nor text, or is refused.

    A thought in a field of its own goes into `raw` only.
    """
    message, ended = choice["message"], str(choice.get("finish_reason") or "stop")
    text, thought = _content(message.get("content")), message.get("reasoning_content") or message.get("reasoning") or ""
    if len(text) > LONGEST_BODY:
        raise NoAnswer(Kind.BAD_REQUEST, TOO_LONG)
    cut_at = None
    if text.strip() and (refusal := message.get("refusal")):
        raise NoAnswer(Kind.BAD_REQUEST, f"the model refused ({refusal})")
    if ended.lower() in CUT:
        cut_at = asked.get("max_tokens") or asked.get(RENAMED) or 0
    elif ended.lower() not in WHOLE:
        named = repr(ended) if REASON.fullmatch(ended) else "of no known form"  # another text may quote the question
        return Answer(failure=f"it ended by finish_reason {named}")
    elif not text.strip() and not thought:
        why = message.get("refusal") or f"finish_reason {choice.get('finish_reason')!r}"
        raise NoAnswer(Kind.BAD_REQUEST, f"the answer has no content ({why})")
    if not text.strip() and isinstance(thought, str) and thought:
        text = f"<think>{thought}" + ("</think>" if cut_at is None else "")
    return thoughts.read(_without_surrogates(text), cut_at)


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON allows and files cannot store."""
    return text.encode("utf-8", "replace").decode()


def _content(content: Any) -> str:
    """Return a message's content, a text or a list of parts (Mistral's endpoint), without thoughts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"content is {content!r:.40}")
    return content or ""
