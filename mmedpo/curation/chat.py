"""Open chat models by the names that the command line and recipes use."""

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
    """Return the chat model that `spec` names; all but stand-ins are wrapped in a cache (`CachedChat`).

    - `standin:rules`, `standin:strict`, `standin:lenient`, `standin:lexical`: offline rules, not models;
    - `http://host:port/v1#model`: an OpenAI-compatible endpoint (vLLM, TGI);
    - `hub:org/model` or `hub:org/model@provider`: an inference provider of the Hugging Face Hub;
    - `local:org/model` or `local:folder`: a model in this process, with `batch_size` requests at once;
    - `cache:model`: recorded answers only; nothing is sent.

    Args:
        budget, cache, used: shared by all chat models of a run.
        discreet: keep replies of endpoints out of messages, since a reply may quote the request.
        sampling: `max_tokens`, `temperature` and `seed`; stand-ins ignore them.

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
