"""Models that endpoints list (`/v1/models`), asked for once at the start of a run: for wrong names and for records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from mmedpo.models.chat import ChatModel
from mmedpo.models.chat.completion import LONGEST_BODY, SHOWN_CHARACTERS
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.transport import connection, run
from mmedpo.runs import bounded_json
from mmedpo.runs.provenance import portable

SECONDS = 5.0  # for the list of an endpoint, which need not have one
MOST = 20  # names that are recorded of it
SHOWN = 3


def served(chats: Iterable[ChatModel], say: Callable[[str], None]) -> dict[str, list[str]]:
    """Return the names that the endpoint of each model lists, by the model's recorded name.

    Each endpoint is asked once, with its key. One without a list is left out, as is the Hub.

    Args:
        say: gets a warning for each name that its endpoint does not list.
    """
    known: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    asked = [client for chat in chats for client in getattr(getattr(chat, "chat", chat), "endpoints", ())]
    told: set[tuple[str, str]] = set()
    for client in asked:
        if client.base_url is None:
            continue
        if client.place not in known:
            known[client.place] = run(_listed(client))
        names = known[client.place]
        if names and client.name not in names and (client.place, client.name) not in told:
            told.add((client.place, client.name))
            shown = ", ".join(map(portable, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
            say(
                f"{client.place} lists no model {client.name!r}, but {shown}. Some servers answer under any name: "
                "correct it, so that records name the model that answered."
            )
        if names:
            kept = names[:MOST] if client.name in names[:MOST] or client.name not in names else [client.name]
            found[portable(client.name)] = list(map(portable, kept))
    return found


async def _listed(client: EndpointChat) -> list[str]:
    """Return the ids and aliases that an endpoint lists; none where it has no such list."""
    import httpx2

    assert client.base_url is not None
    place, options = connection(client.base_url, client.key, "/models")
    body = bytearray()
    try:
        async with (
            asyncio.timeout(SECONDS), httpx2.AsyncClient(timeout=None, **options) as http,
            http.stream("GET", place) as response,
        ):  # fmt: skip
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LONGEST_BODY:
                    return []
        models = bounded_json.loads(body)["data"] if response.is_success else []
        names = [_clean(name) for model in models for name in (model["id"], *(model.get("aliases") or ()))]
        return list(dict.fromkeys(names))
    except (httpx2.RequestError, TimeoutError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []


def _clean(name: Any) -> str:
    """Return a name of a server without control characters, cut."""
    return "".join(letter for letter in str(name) if letter.isprintable())[:SHOWN_CHARACTERS]
