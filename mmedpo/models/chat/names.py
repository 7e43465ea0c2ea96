"""Names of endpoints, as in options and recipes."""

from __future__ import annotations

import re
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", re.ASCII)  # the Hub's client takes a URL too, and sends it the token
FORMS = (
    "http://host:port/v1#model-name (an OpenAI-compatible endpoint), hub:org/model or hub:org/model@provider (the "
    "Hugging Face Hub)"
)


def names_endpoint(spec: str) -> bool:
    """Return True where `spec` is meant as an endpoint's name, well-formed or not."""
    return spec.startswith(("http://", "https://", "hub:"))


def open_endpoint(spec: str, budget: Budget, **sampling: Any) -> EndpointChat:
    """Return the client of the endpoint `spec` (see `FORMS`), with the budget's concurrency, pace and keys.

    Args:
        sampling: `max_tokens`, `temperature`, `seed` and `discreet` of `EndpointChat`.

    Raises:
        InputError: `spec` has none of the forms.
    """
    calling = {"concurrency": budget.limits.concurrency, "pace": budget.pace, "keys": budget.keys, **sampling}
    url, _, model = spec.partition("#")
    if url.startswith(("http://", "https://")) and model:
        return EndpointChat(model, base_url=url, **calling)
    scheme, _, rest = spec.partition(":")
    model, at, provider = rest.partition("@")
    if scheme == "hub" and HUB_ID.fullmatch(model) and bool(provider) == bool(at):
        return EndpointChat(model, provider=provider or None, **calling)
    raise InputError(f"{spec!r} names no endpoint. Give {FORMS}.")
