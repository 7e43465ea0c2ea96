"""Chat models by name, as the command line and recipes spell them."""

from __future__ import annotations

from typing import Any

from mmedpo.curation.standins import STANDINS
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatClient, ChatModel
from mmedpo.models.chat.cache import Absent, CachedChat
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget
from mmedpo.models.chat.names import FORMS, names_endpoint, open_endpoint
from mmedpo.runs.ledger import Ledger


def open_chat(
    spec: str,
    budget: Budget,
    cache: Ledger,
    used: Ledger,
    batch_size: int = 8,
    discreet: bool = False,
    **sampling: Any,
) -> ChatModel:
    """The chat model that `spec` names, with a memory (`CachedChat`) unless it is a stand-in.

    - `standin:rules`, `standin:strict`, `standin:lenient`, `standin:lexical`: offline rules, never a model;
    - `http://host:port/v1#model`: an OpenAI-compatible endpoint (vLLM, TGI);
    - `hub:org/model` or `hub:org/model@provider`: an inference provider of the Hugging Face Hub;
    - `local:org/model` or `local:folder`: a model in this process, which answers `batch_size` requests at once;
    - `cache:model`: nobody; what `cache` holds of an endpoint's answers is given again.

    Args:
        budget, cache, used: shared by all chat models of a run.
        discreet: messages do not say what an endpoint answered, which may quote what it was asked.
        sampling: `max_tokens`, `temperature` and `seed`; they mean nothing to a stand-in.

    Raises:
        InputError: `spec` has none of these forms (the message lists them), or its model cannot be opened.
    """
    if spec in STANDINS:
        return STANDINS[spec]()
    return CachedChat(_client(spec, budget, batch_size, discreet, sampling), budget, cache, used)


def _client(spec: str, budget: Budget, batch_size: int, discreet: bool, sampling: dict[str, Any]) -> ChatClient:
    scheme, _, rest = spec.partition(":")
    if scheme == "local" and rest:
        from mmedpo.models.chat.local import LocalChat

        return LocalChat(rest, batch_size=batch_size, **sampling)
    if scheme == "cache" and rest:
        return Absent(EndpointChat(rest, **sampling))
    if names_endpoint(spec):
        return open_endpoint(spec, budget, discreet=discreet, **sampling)
    raise InputError(
        f"{spec!r} names no chat model. Give {', '.join(STANDINS)} (offline rules), {FORMS}, local:org/model or "
        "local:folder (in this process), or cache:model (only what was answered before)."
    )
