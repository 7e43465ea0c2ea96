"""Disk cache of chat answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache as memoised
from itertools import chain, islice
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models.chat import WAITING, ChatClient, ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.limits import Budget
from mmedpo.models.thoughts import Answer
from mmedpo.runs.journal import Store
from mmedpo.runs.ledger import Ledger, Overlay
from mmedpo.runs.provenance import portable

TOKENS = ("prompt_tokens", "completion_tokens")
AHEAD = 32  # requests made and looked up in one go, which takes a third of the time of one by one
MOST_BEGUN = 256
ROOM = 4  # times the longest reply, for a request whose reply was cut off


class CachedChat:
    """Chat client with a cache and a budget; equal requests are asked once.

    A request whose reply was cut off is asked again with `ROOM` times the length. A cached reply that its reader cannot
    use is asked anew by the next run that needs it, and kept if that fails.

    Args:
        chat: Client for answers that the cache does not hold.
        budget: Charged with new calls; shared by all chat models of a run.
        cache: Answers by request, stored as they arrive; failures are not stored. Runs may share it.
        used: Requests that this run got answers to, cached or new, for `tally`.
    """

    def __init__(self, chat: ChatClient, budget: Budget, cache: Ledger | Overlay, used: Store) -> None:
        self.name, self.revision = chat.name, chat.revision
        self.chat, self._budget, self._cache, self._used = chat, budget, cache, used
        self._keys, self._portable = CacheKeys(chat), memoised(portable)
        self._unread: set[str] = set()  # keys of this start's own requests whose replies their readers cannot use

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        """Return one reply per request, in order. Requests are made and looked up while others are in flight.

        Raises:
            Stopped: the budget does not allow all requests; the allowed ones are answered and cached.
            InputError: the client raised it, or `max_tokens` is set and the endpoint reports no tokens.
        """
        keys: list[str] = []
        replies: dict[str, ChatReply] = {}  # of the cache, then the new ones too
        asked: set[str] = set()

        def missing() -> Iterator[tuple[str, ChatRequest]]:
            wanted = iter(requests)
            while ahead := [(self._keys.of(request), request) for request in islice(wanted, AHEAD)]:
                own = [key for key, _ in ahead]
                known = self._cache.select(own)
                keys.extend(own)
                for key, request in ahead:
                    if key in replies or key in asked:
                        continue
                    if key in known:
                        replies[key] = self._kept(known[key])
                        if key in self._unread or request.readable(replies[key].text or ""):
                            continue
                    asked.add(key)
                    yield key, request

        found, cut = self._ask(missing())
        longer, _ = self._ask((key, self._with_room(request)) for key, request in cut.items())
        found |= {
            key: reply
            for key, reply in longer.items()
            if reply.cut or reply.text is not None or reply.failure == WAITING
        }
        replies |= {key: reply for key, reply in found.items() if reply.text is not None or key not in replies}
        answered = {key: reply for key, reply in replies.items() if reply.text is not None}
        self._used.update({key: {"model": self.name, **self._spent(reply)} for key, reply in answered.items()})
        return [replies[key] for key in keys]

    def _kept(self, value: Any) -> ChatReply:
        try:
            reply = ChatReply(**{**value, "samples": tuple(Answer(**one) for one in value.get("samples", ()))})
            counts = [getattr(reply, name) for name in TOKENS]
            wrong = not all(isinstance(count, int | None) for count in counts)
            if wrong or not isinstance(reply.text, str) or not isinstance(reply.seconds, float | int | None):
                raise TypeError
        except (TypeError, ValueError):
            raise InputError(
                f"{self._cache.path}: an entry of {self.name} is not an answer of a chat model. Remove the file if its "
                "content is not needed, or name another --cache."
            ) from None
        return reply

    def _with_room(self, request: ChatRequest) -> ChatRequest:
        return replace(request, max_tokens=ROOM * (request.max_tokens or self.chat.settings["max_tokens"]))

    def _ask(self, requests: Iterable[tuple[str, ChatRequest]]) -> tuple[dict[str, ChatReply], dict[str, ChatRequest]]:
        """Return the replies by key, and the requests whose replies were cut off."""
        wanted = iter(requests)
        first = next(wanted, None)  # without one, no connection is opened
        rest = chain([first], wanted) if first else iter(())
        in_flight: dict[int, tuple[str, ChatRequest]] = {}
        replies: dict[str, ChatReply] = {}
        cut: dict[str, ChatRequest] = {}

        def sent() -> Iterator[ChatRequest]:
            for place, (key, request) in enumerate(rest):
                in_flight[place] = key, request
                yield request

        def keep(new: Mapping[int, ChatReply]) -> None:
            found = {}
            for place, reply in new.items():
                key, request = in_flight.pop(place)
                replies[key] = reply
                if reply.cut:
                    cut[key] = request
                if reply.text is not None:
                    found[key] = {"text": reply.text, **_samples(reply), **self._spent(reply), **_took(reply)}
                (self._unread.discard if request.readable(reply.text or "") else self._unread.add)(key)
            self._cache.update(found)

        if first is not None:
            self._budget.ask(self.chat, sent(), keep)
        return replies, cut

    def _spent(self, reply: ChatReply) -> dict[str, Any]:
        spent: dict[str, Any] = {name: getattr(reply, name) for name in TOKENS}
        served = {name: self._portable(said) for name, said in reply.served.items()}
        sent = {} if reply.sent is None else {"sent": dict(reply.sent)}
        return spent | sent | ({"served": served} if served else {})


class Absent:
    """Client without a model: answers only what the cache holds for `chat`, everything else fails."""

    batch_size = 1
    failure = "the cache has no answer to this question, and no model was given"

    def __init__(self, chat: ChatClient) -> None:
        self.name, self.revision, self.settings = chat.name, chat.revision, chat.settings
        self.failure = f"{self.failure} (looked for: {self.name})"

    def complete(self, requests: Iterable[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        replies = [ChatReply(failure=self.failure) for _ in requests]
        if on_replies is not None:
            on_replies(dict(enumerate(replies)))
        return replies


def tally(used: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return {"calls", "prompt_tokens", "completion_tokens", "sent", "served"} by model.

    Tokens are None unless all answers reported them. "sent" lists each accepted combination of parameters once, and
    "served" how endpoints named who answered, where known.
    """
    totals: dict[str, dict[str, Any]] = {}
    for entry in used:
        total = totals.setdefault(entry["model"], {"calls": 0, **dict.fromkeys(TOKENS, 0)})
        total["calls"] += 1
        for name in TOKENS:
            total[name] = None if None in (total[name], entry[name]) else total[name] + entry[name]
        for name in ("sent", "served"):
            if entry.get(name) and entry[name] not in total.setdefault(name, []):
                total[name].append(entry[name])
    for total in totals.values():
        for name in ("sent", "served"):
            total.get(name, []).sort(key=str)  # independent of the order of arrival
    return dict(sorted(totals.items()))


def _samples(reply: ChatReply) -> dict[str, Any]:
    found = [{"failure": one.failure} if one.text is None else {"text": one.text} for one in reply.samples]
    return {"samples": found} if found else {}


def _took(reply: ChatReply) -> dict[str, float]:
    return {} if reply.seconds is None else {"seconds": round(reply.seconds, 3)}


class CacheKeys:
    """Keys of requests to a chat model: the SHA-256 of all that decides the answer, as JSON with sorted names.

    All but "text", which comes last, is the same for many requests, and is hashed once.
    """

    def __init__(self, chat: ChatClient) -> None:
        self._chat = chat
        self._begun: dict[tuple[Any, ...], tuple[Any, Any]] = {}  # schema, which the key has by its id, and hash

    def of(self, request: ChatRequest) -> str:
        """Return the key of a request; its schema is not changed later."""
        images = request.image_digests
        drawn = () if request.samples is None else (request.samples, request.seed, request.max_tokens)
        about = (request.prompt, id(request.schema), *drawn, *images)
        if about not in self._begun:
            if len(self._begun) == MOST_BEGUN:
                self._begun.clear()
            self._begun[about] = request.schema, self._begin(request, images, drawn)
        digest = self._begun[about][1].copy()
        digest.update(f', "text": {json.dumps(request.text)}}}'.encode())
        found: str = digest.hexdigest()
        return found

    def _begin(self, request: ChatRequest, images: Sequence[str], drawn: Sequence[Any]) -> Any:
        asked: dict[str, Any] = {
            "model": self._chat.name, "revision": self._chat.revision, "settings": dict(self._chat.settings),
            "prompt": request.prompt, "image": images if len(images) > 1 else next(iter(images), None),
            "schema": request.schema, **dict(zip(("samples", "seed", "max_tokens"), drawn, strict=False)),
        }  # fmt: skip
        return hashlib.sha256(json.dumps(asked, sort_keys=True).removesuffix("}").encode())
