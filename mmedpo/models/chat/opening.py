"""Chat models by name: endpoints, models in this process, cached answers alone, and offline stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models.chat import ChatClient, ChatModel
from mmedpo.models.chat.batch import BatchChat
from mmedpo.models.chat.cache import Absent, CachedChat
from mmedpo.models.chat.endpoint import FORMS, EndpointChat, names_endpoint, open_endpoint
from mmedpo.models.chat.limits import Budget
from mmedpo.runs.journal import Store
from mmedpo.runs.ledger import Ledger, Overlay


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
