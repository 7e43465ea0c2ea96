"""Chat model behind a provider's batch API: requests are collected in files, and results of files are its replies."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from mmedpo.errors import InputError
from mmedpo.models.chat import WAITING, ChatModel, ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.batch_files import Batches, Result, failure
from mmedpo.models.chat.batch_upload import Provider
from mmedpo.models.chat.cache import CacheKeys
from mmedpo.models.chat.completion import UNREADABLE, NoAnswer, reply_of
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.parameters import Parameters, values_of
from mmedpo.models.chat.transport import as_messages

log = logging.getLogger(__name__)
ATTEMPTS = 3  # rounds in which a request is asked
ADDRESS = re.compile(r"\bhttps?://\S+")


class BatchChat:
    """Client in place of the endpoint `chat`, whose answers it shares in a cache.

    A request without a result waits (`WAITING`). An error is asked again in the next round, at most `ATTEMPTS` times,
    a refused request only where its refusal names a parameter that has another form.

    Args:
        chat: Its model and settings are those of the requests; it is not asked itself.
        discreet: True limits messages to an error's status, since some providers quote the request.
    """

    batch_size = 1

    def __init__(self, chat: EndpointChat, batches: Batches, discreet: bool = False) -> None:
        self.name, self.revision, self.settings = chat.name, chat.revision, chat.settings
        self._keys = CacheKeys(self)
        self.batches, self.discreet = batches, discreet
        if batches.uploads:
            batches.providers[self.name] = Provider(chat.place, chat.base_url, chat.key, discreet)
        self._named: set[str] = set()

    @cached_property
    def _parameters(self) -> Parameters:
        """Parameters in the forms of the last round, and the next ones of those that it refused."""
        found = Parameters()
        for number in sorted(self.batches.forms):
            if forms := self.batches.forms[number].get(self.name):
                found.forms |= forms
                found.go_on(self.batches.refusals[number, self.name])
        return found

    def complete(self, requests: Iterable[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """Return one reply per request, in order."""
        self.batches.read()
        replies = [self._reply(request) for request in requests]
        if on_replies is not None:
            on_replies(dict(enumerate(replies)))
        return replies

    def _reply(self, request: ChatRequest) -> ChatReply:
        key, values = self._keys.of(request), values_of(self.settings, request)
        id = key if request.max_tokens is None else f"{key[:48]}-{request.max_tokens}"  # providers take 64 characters
        result = self.batches.results.get(id)
        if result and (result.good or id not in self.batches.waiting):
            reply = self._read(id, request, result)
            if reply is not None:
                return reply
        elif id not in self.batches.waiting and self.batches.tries[id] >= ATTEMPTS:
            return ChatReply(failure=f"no result after {ATTEMPTS} rounds of batches")
        try:
            body = {"model": self.name, "messages": as_messages(request), **self._parameters.fields(values)}
        except InputError as error:
            return ChatReply(failure=str(error))
        self.batches.ask(id, self.name, self._parameters.forms, body)
        return ChatReply(failure=WAITING)

    def _read(self, id: str, request: ChatRequest, result: Result) -> ChatReply | None:
        """Return the reply of a result, or its failure; None where it is to be asked again."""
        values = values_of(self.settings, request)
        line, used = self.batches.line(result), Parameters()
        used.forms |= self.batches.forms[result.round][self.name]
        status, said = failure(line)
        short = f"HTTP {status}" if status else "an error of the batch"
        if result.good:
            try:
                reply = reply_of(line["response"]["body"], used.fields(values), request.samples is not None)
            except NoAnswer as error:
                return ChatReply(failure=f"refused: {self._shown(str(error), error.kind.value)}")
            except UNREADABLE:
                return ChatReply(failure="refused: the answer is not a chat completion")
            self._check_name(reply)
            used.forms["n"] = int(len(reply.samples) < values.get("n", 0))  # 1: it takes none
            return replace(reply, sent=used.sent({**values, "seed": self.settings["seed"]}))  # one for all requests
        if status in (400, 413, 422) and used.forms == self._parameters.forms:
            return ChatReply(failure=f"refused: {self._shown(said, short)}")
        if self.batches.tries[id] >= ATTEMPTS:
            return ChatReply(failure=f"no answer after {ATTEMPTS} rounds of batches: {self._shown(said, short)}")
        return None

    def _shown(self, said: str, short: str) -> str:
        return short if self.discreet else ADDRESS.sub("(a URL)", said)

    def _check_name(self, reply: ChatReply) -> None:
        """Warn once for each model that answered in place of the one that was asked."""
        served, asked = reply.served.get("model", self.name), self.name
        if served not in self._named and asked.rpartition("/")[2].casefold() not in served.casefold():
            log.warning(f"Batches for {asked!r} were answered by {served!r}, as the records say.")
        self._named.add(served)


def settle(chats: Iterable[ChatModel]) -> None:
    """Finish the batches of these chat models. Raises Stopped if requests wait for results."""
    for chat in chats:
        client = getattr(chat, "chat", None)
        if isinstance(client, BatchChat):
            client.batches.settle()
