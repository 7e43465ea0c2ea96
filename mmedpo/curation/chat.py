"""Chat models by name, as the command line and recipes spell them."""

from __future__ import annotations

from typing import Any

from mmedpo.curation.standins import STANDINS
from mmedpo.errors import InputError
from mmedpo.llm import ChatModel, EndpointChat


def open_chat(spec: str, **options: Any) -> ChatModel:
    """The chat model that `spec` names; `options` go to `EndpointChat` and mean nothing to a stand-in.

    - `standin:rules`, `standin:strict`, `standin:lenient`, `standin:lexical`: offline rules, never a model;
    - `http://host:port/v1#model`: an OpenAI-compatible endpoint (vLLM, TGI);
    - `hub:org/model` or `hub:org/model@provider`: an inference provider of the Hugging Face Hub.

    Raises:
        InputError: `spec` has none of these forms; the message lists them.
    """
    scheme, _, rest = spec.partition(":")
    if spec in STANDINS:
        return STANDINS[spec]()
    url, _, model = spec.partition("#")
    if scheme in ("http", "https") and model:
        return EndpointChat(model, base_url=url, **options)
    model, at, provider = rest.partition("@")
    if scheme == "hub" and all(model.partition("/")) and bool(provider) == bool(at):
        return EndpointChat(model, provider=provider or None, **options)
    raise InputError(
        f"{spec!r} names no chat model. Give {', '.join(STANDINS)} (offline rules), http://host:port/v1#model-name "
        "(an OpenAI-compatible endpoint), hub:org/model or hub:org/model@provider (the Hugging Face Hub)."
    )
