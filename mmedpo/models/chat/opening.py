"""Chat models by name: endpoints, models in this process, cached answers alone, and offline stand-ins."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models.chat import ChatClient, ChatModel
from mmedpo.models.chat.batch import BatchChat
from mmedpo.models.chat.cache import Absent, CachedChat
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget
from mmedpo.runs.hosts import endpoints
from mmedpo.runs.journal import Store
from mmedpo.runs.ledger import Ledger, Overlay

# The Hub's client would take a URL for a model too, and send it the token.
HUB = re.compile(r"hub:([\w.-]+/[\w.-]+(?::[\w.-]+)?)(?:@(.+))?", re.ASCII)
FORMS = (
    "http://host:port/v1#model-name (an OpenAI-compatible endpoint), hub:org/model or hub:org/model@provider (the "
    "Hugging Face Hub)"
)


def open_chat(
    spec: str, budget: Budget, cache: Ledger | Overlay, used: Store, batch_size: int = 8, discreet: bool = False,
    standins: Mapping[str, Callable[[], ChatModel]] | None = None, **sampling: Any,
) -> ChatModel:  # fmt: skip
    """Return the chat model that `spec` names (docs/curation.md); all but stand-ins are wrapped in a cache.

    Args:
        budget, cache, used: shared by all chat models of a run. With `budget.batches` endpoints are not asked at once.
        batch_size: requests at once to a model in this process.
        discreet: keep replies of endpoints out of messages, since a reply may quote the request.
        standins: offline rules by name.
        sampling: `max_tokens`, `temperature` and `seed`; stand-ins ignore them.

    Raises:
        InputError: `spec` has no known form (the message lists them), or its model cannot be opened.
    """
    scheme, _, rest = spec.partition(":")
    client: ChatClient
    if standins and spec in standins:
        return standins[spec]()
    if scheme == "local" and rest:
        from mmedpo.models.chat.local import LocalChat

        client = LocalChat(rest, batch_size=batch_size, **sampling)
    elif scheme == "cache" and rest:
        client = Absent(EndpointChat(rest, **sampling))
    elif names_endpoint(spec):
        client = open_endpoint(spec, budget, discreet=discreet, **sampling)
        client = BatchChat(client, budget.batches, discreet) if budget.batches else client
    else:
        rules = f"{', '.join(standins)} (offline rules), " if standins else ""
        raise InputError(
            f"{spec!r} is not a chat model. Give {rules}{FORMS}, local:org/model or local:folder (in this process), or "
            "cache:model (cached answers only)."
        )
    return CachedChat(client, budget, cache, used)


def names_endpoint(spec: str) -> bool:
    """Return True where `spec` is meant as an endpoint's name, well-formed or not."""
    return spec.startswith(("http://", "https://", "hub:"))


def open_endpoint(spec: str, budget: Budget, **sampling: Any) -> EndpointChat:
    """Return the client of the endpoint `spec` (see `FORMS`), with the budget's concurrency, pace and keys.

    Several endpoints of one model, with commas between them, are one client.

    Args:
        sampling: further arguments of `EndpointChat`, such as `max_tokens`.

    Raises:
        InputError: `spec` has none of the forms, or names several models.
    """
    first, *others = [_open_one(one, budget, sampling) for one in dict.fromkeys(endpoints(spec))]
    if wrong := [one for one in others if one.name != first.name]:
        raise InputError(
            f"The endpoints {first.place} and {wrong[0].place} are given as one model, but named {first.name!r} and "
            f"{wrong[0].name!r}. Serve one model under one name, or give one of them."
        )
    first.endpoints += others
    return first


def _open_one(spec: str, budget: Budget, sampling: Mapping[str, Any]) -> EndpointChat:
    calling = {"concurrency": budget.limits.concurrency, "pace": budget.pace, "keys": budget.keys, **sampling}
    if on_hub := HUB.fullmatch(spec):
        return EndpointChat(on_hub[1], provider=on_hub[2], **calling)
    url, _, model = spec.partition("#")
    if url.startswith(("http://", "https://")) and model:
        return EndpointChat(model, base_url=url, **calling)
    raise InputError(f"{spec!r} is not an endpoint. Give {FORMS}.")


def separated(names: str) -> list[str]:
    """Return the models of a list with commas; neighbours that are endpoints of one model stay together.

    Example:
        >>> separated("http://a/v1#m,http://b/v1#m,local:org/n")
        ['http://a/v1#m,http://b/v1#m', 'local:org/n']
    """
    found: list[str] = []
    for name in map(str.strip, names.split(",")):
        if found and names_endpoint(name) and _model_of(name) == _model_of(endpoints(found[-1])[-1]):
            found[-1] += f",{name}"
        else:
            found.append(name)
    return found


def _model_of(spec: str) -> str | None:
    """Return the model that an endpoint is asked for; None of other models."""
    if on_hub := HUB.fullmatch(spec):
        return on_hub[1]
    return spec.partition("#")[2] if names_endpoint(spec) else None
