"""Client of OpenAI-compatible endpoints (vLLM, TGI, ...) and of the Hub's inference providers."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from mmedpo.data.images import png
from mmedpo.errors import InputError
from mmedpo.models.chat import AGAIN, ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.completion import SHOWN_CHARACTERS, Kind, NoAnswer
from mmedpo.models.chat.keys import Keys, advice, secrets
from mmedpo.models.chat.limits import Pace
from mmedpo.models.chat.parameters import Parameters, values_of
from mmedpo.models.chat.spreading import FAILED, BatchEnded, Dead, complete
from mmedpo.models.chat.transport import Send, as_messages, run, to_hub, to_url

if TYPE_CHECKING:
    from tenacity import RetryCallState

QUIET = 5.0  # seconds of an outage before the warning
OUTAGE = 8  # failed requests in a row that count as an outage of the endpoint
log = logging.getLogger(__name__)
CHECK = "Check the URL (an OpenAI-compatible one ends in /v1) and the model's name"
ADVICE = {
    402: "Its credits are used up; add credits or choose another endpoint",
    403: "The key is valid but has no access to this model; ask for access or give another key",
}


class EndpointChat:
    """Chat model behind an OpenAI-compatible URL (vLLM, TGI, ...) or a provider of the Hugging Face Hub.

    Args:
        model: The model's name at the endpoint, or its id on the Hub.
        base_url: `http(s)://host:port/v1`; None uses the Hub's inference providers.
        api_key: Default: the key in `keys` for the host of `base_url`, or the Hub's token for the Hub.
        provider: A Hub inference provider; None lets the Hub choose.
        max_tokens, temperature, seed: Longest answer in tokens; sampling, greedy at temperature 0.
        concurrency, pace: Requests in flight at once, and spacing of attempts in time, which clients may share.
        timeout: Seconds for one attempt, from sending to the end of its answer.
        attempts: Tries per request, the first one included.
        patience: Seconds to wait for an unavailable server (refused or reset connections, HTTP 429, 502, 503, 504).
            Until then requests are retried even beyond `attempts`. Only an answered request restarts the time.
        discreet: True limits messages to an error's kind and status, since some servers quote the request.
        keys: Keys of the endpoints; all clients of a run share them.
        waits: Seconds (first, longest): the n-th wait is random up to first * 2^(n-1), and at least `Retry-After`.

    Attributes:
        endpoints: This one and others of the same model, which share its requests. One that dies is removed: where
            others are left, it is waited for `attempts` times instead of `patience`.
        parameters: Forms of parameters that the endpoint accepts.
    """

    batch_size = 1

    def __init__(
        self, model: str, base_url: str | None = None, api_key: str | None = None, provider: str | None = None,
        max_tokens: int = 512, temperature: float = 0.0, seed: int = 0, concurrency: int = 8, pace: Pace | None = None,
        timeout: float = 120.0, attempts: int = 5, patience: float = 120.0, discreet: bool = False,
        keys: Keys | None = None, waits: tuple[float, float] = (1.0, 30.0),
    ) -> None:  # fmt: skip
        if concurrency < 1 or attempts < 1:
            raise InputError(f"concurrency ({concurrency}) and attempts ({attempts}) must be at least 1.")
        self.name = model
        self.revision: str | None = None
        self.settings: Mapping[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.base_url, self.provider, self.place = base_url, provider, _place(base_url, provider)
        self.concurrency, self.pace, self.timeout = concurrency, pace or Pace(), timeout
        self.attempts, self.patience, self.discreet, self.waits = attempts, patience, discreet, waits
        self.key = (keys or Keys()).of(base_url, api_key)
        self._secrets = secrets(self.key, base_url)
        self.parameters = Parameters()
        self.endpoints = [self]
        self._answers: set[bool] = set()  # kinds of requests it has answered: False without, True with an image
        self._failed = 0  # failed requests in a row
        self._unavailable_since, self._warned = math.inf, False  # time.monotonic() at the start of an outage

    def complete(self, requests: Iterable[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """Return one reply per request, in order; a failed request has its reason in `failure`.

        Raises:
            InputError: no request can succeed (key refused, model unknown, endpoint unreachable at first contact, or a
                trivial request refused too), or `OUTAGE` requests failed in a row.
        """
        return run(complete(self.endpoints, requests, on_replies))

    @asynccontextmanager
    async def opened(self, connections: int, ending: asyncio.Event) -> AsyncIterator[_Batch]:
        """Open the connections of a batch, which ends with `ending`."""
        opened = (
            to_hub(self.provider, self.key) if self.base_url is None else to_url(self.base_url, self.key, connections)
        )
        async with opened as send:
            yield _Batch(send, ending)

    async def ask(self, batch: _Batch, request: ChatRequest, alone: bool) -> ChatReply:
        """Return the reply to one request of a batch.

        Args:
            alone: False where other endpoints could answer it; then `Dead` is raised where this one is unavailable.

        Raises:
            BatchEnded: the batch has ended.
            InputError: as `complete`.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        try:
            messages = as_messages(request)
        except InputError as error:
            return ChatReply(failure=str(error))
        unavailable_since = math.inf

        def stop(state: RetryCallState) -> bool:
            nonlocal unavailable_since
            tried, now, error = state.attempt_number >= self.attempts, time.monotonic(), _error_of(state)
            if error.kind is Kind.FAILED_ATTEMPT:
                return tried
            unavailable_since, self._unavailable_since = min(unavailable_since, now), min(self._unavailable_since, now)
            self._warn_unavailable(error, now)
            patience = self.patience if alone or error.status else 0.0  # a status is of a server that lives
            return tried and now - min(unavailable_since, self._unavailable_since) >= patience

        retry = retry_if_exception(self._may_pass)
        retrying = AsyncRetrying(retry=retry, stop=stop, wait=self._wait, sleep=batch.rest, reraise=True)
        try:
            reply: ChatReply = await retrying(self._attempt, batch, messages, request)
        except NoAnswer as error:
            return await self._give_up(batch, request, error, retrying.statistics["attempt_number"], alone)
        self._answers.add(bool(request.images))
        self._failed, self._unavailable_since, self._warned = 0, math.inf, False
        return reply

    def _warn_unavailable(self, error: NoAnswer, now: float) -> None:
        """Warn once per outage, with the seconds left to wait."""
        left = self.patience - (now - self._unavailable_since)
        if not self._warned and now - self._unavailable_since >= QUIET and left > 0:
            self._warned = True
            log.warning("%s does not answer (%s). Trying for another %.0f s.", self.place, self._message(error), left)

    async def _attempt(self, batch: _Batch, messages: list[Any], request: ChatRequest) -> ChatReply:
        """Return one answer, with parameters in forms that the endpoint accepts; warn once about those left out."""

        async def send(fields: dict[str, Any], probe: bool = False) -> ChatReply:
            asked = _probe() if probe else messages
            reply = await self._send(batch, asked, fields, request.samples is not None and not probe)
            self._answers |= {False} if probe else set()
            return reply

        reply = await self.parameters.ask(values_of(self.settings, request), send, batch.searching)
        if new := self.parameters.news():
            said = "%s, asked for the model %r, does not take %s: left out and recorded as left out.%s%s"
            varied = " Answers may differ when a question is repeated." * bool({"temperature", "seed"} & set(new))
            single = " Each sample is a request of its own." * ("n" in new)
            log.warning(said, self.place, self.name, " and ".join(new), varied, single)
        if request.seed is not None and reply.sent and "seed" in reply.sent:  # one record for all requests
            reply = replace(reply, sent={**reply.sent, "seed": self.settings["seed"]})
        return reply

    async def _send(
        self, batch: _Batch, messages: list[Any], fields: Mapping[str, Any], samples: bool = False
    ) -> ChatReply:
        await batch.rest(self.pace.wait())
        try:
            async with asyncio.timeout(self.timeout):
                return await batch.send({"model": self.name, "messages": messages, **fields}, samples)
        except TimeoutError:
            raise NoAnswer(Kind.FAILED_ATTEMPT, f"no answer within {self.timeout:g} s") from None

    def _may_pass(self, error: BaseException) -> bool:
        passing = (Kind.UNAVAILABLE, Kind.FAILED_ATTEMPT, *((Kind.UNREACHABLE,) if self._answers else ()))
        return isinstance(error, NoAnswer) and error.kind in passing

    def _wait(self, state: RetryCallState) -> float:
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.waits[0], max=self.waits[1])(state)
        return max(drawn, float(_error_of(state).retry_after))

    async def _give_up(
        self, batch: _Batch, request: ChatRequest, error: NoAnswer, attempts: int, alone: bool
    ) -> ChatReply:
        """Return the failure of one request, or raise InputError where the whole batch must end."""
        said, who = self._message(error), f"{self.place}, asked for the model {self.name!r},"
        kept = f" Answers so far are kept: {AGAIN}." if self._answers else ""
        if error.kind is Kind.FATAL:
            remedy = advice(self.base_url) if error.status == 401 else ADVICE.get(error.status, CHECK)
            raise InputError(f"{who} refuses: {said}. {remedy}.{kept}") from None
        if not alone and error.kind in (Kind.UNAVAILABLE, Kind.UNREACHABLE):
            raise Dead(said)
        if error.kind is Kind.UNREACHABLE and not self._answers:
            raise InputError(f"{who} does not answer ({said}). Start the server or correct the URL.") from None
        with_image = bool(request.images)
        if error.kind in (Kind.FAILED_ATTEMPT, Kind.BAD_REQUEST) and not await self._answers_any(batch, with_image):
            if not alone and error.kind is Kind.FAILED_ATTEMPT:
                raise Dead(said)
            blind = ". If the model takes no images, name one that does, or send none" * with_image
            raise InputError(f"{who} fails for a trivial question too: {said}. {CHECK}{blind}.") from None
        if error.kind is Kind.BAD_REQUEST:
            return ChatReply(failure=f"refused: {self._without_address(said)}")
        self._failed += 1
        if self._failed >= OUTAGE and not alone:
            raise Dead(said)
        if self._failed >= OUTAGE:
            raise InputError(
                f"{who} is unavailable: {self._failed} requests in a row failed ({said}). Restart it.{kept}"
            ) from None
        return ChatReply(failure=f"{FAILED} {attempts} attempts: {self._without_address(said)}")

    async def _answers_any(self, batch: _Batch, with_image: bool) -> bool:
        """Return True where the endpoint answers requests with (without) an image; sends a trivial one if unknown."""
        async with batch.probing:
            if with_image not in self._answers:
                try:
                    await self._send(batch, _probe(with_image), self.parameters.fields(self.settings))
                except NoAnswer as error:
                    return error.kind in (Kind.UNAVAILABLE, Kind.UNREACHABLE)  # an outage proves nothing
                self._answers.add(with_image)
        return True

    def _message(self, error: NoAnswer) -> str:
        """Return an error's text on one line, without keys, which some servers quote."""
        if self.discreet:
            return f"HTTP {error.status}" if error.status else error.kind.value
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text[:SHOWN_CHARACTERS].rstrip(" .")

    def _without_address(self, said: str) -> str:
        """Remove server addresses from a text that is stored in a dataset's rows."""
        host = urlsplit(self.base_url or "").hostname
        text = re.sub(r"\bhttps?://\S+", "(a URL)", said)
        return text.replace(host, "(the endpoint)") if host else text


class _Batch:
    """State shared by the requests of one `complete` call to an endpoint; created in the event loop that runs them."""

    def __init__(self, send: Send, ending: asyncio.Event) -> None:
        self.send, self.ending = send, ending
        self.probing, self.searching = asyncio.Lock(), asyncio.Lock()

    async def rest(self, seconds: float) -> None:
        """Wait; raise BatchEnded if the batch ends before."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), seconds)
        if self.ending.is_set():
            raise BatchEnded


def _error_of(state: RetryCallState) -> Any:
    return state.outcome and state.outcome.exception()


def _place(base_url: str | None, provider: str | None) -> str:
    """Return the endpoint for messages, without credentials."""
    import httpx2

    if base_url is None:
        return f"the Hugging Face Hub (provider {provider or 'auto'})"
    with suppress(httpx2.InvalidURL):
        url = httpx2.URL(base_url)
        if url.scheme in ("http", "https") and url.host and url.port != 0:
            return str(url.copy_with(userinfo=b"", query=None))
    shown = base_url.rpartition("@")[2]
    raise InputError(f"{shown!r} is not the URL of an endpoint; give one like http://localhost:8000/v1.")


def _probe(with_image: bool = False) -> list[Any]:
    """Return the messages of a trivial request, maybe with a grey image."""
    grey = [png(np.full((224, 224, 3), 128, np.uint8), "grey")["bytes"]] * with_image
    return as_messages(ChatRequest("probe", {}, "Please answer yes.", tuple(grey)))
