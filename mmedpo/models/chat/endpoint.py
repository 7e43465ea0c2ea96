"""Client of OpenAI-compatible endpoints (vLLM, TGI, ...) and of the Hub's inference providers."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.keys import VARIABLE, Keys, on_hub, variable
from mmedpo.models.chat.limits import Pace
from mmedpo.models.chat.parameters import Parameters
from mmedpo.models.chat.transport import SHOWN_CHARACTERS, Kind, NoAnswer, Send, as_messages, to_hub, to_url
from mmedpo.runs.hosts import is_only_in_recipe

if TYPE_CHECKING:
    from tenacity import RetryCallState

QUIET = 5.0  # seconds of an outage before the warning
OUTAGE = 8  # failed requests in a row that count as an outage of the endpoint
log = logging.getLogger(__name__)
TRIVIAL = "Please answer yes."
PROBE = as_messages(ChatRequest("probe", {}, TRIVIAL))
CHECK = "Check the URL (an OpenAI-compatible one ends in /v1) and the model's name"
_ADVICE = {
    401: "Set HF_TOKEN to a token that is valid there, or log in with `hf auth login`",
    402: "Its credits are used up; add some or choose another endpoint",
    403: "The key is known but may not use this model; ask for access or give another key",
}


class EndpointChat:
    """Chat model behind an OpenAI-compatible URL (vLLM, TGI, ...) or a provider of the Hugging Face Hub.

    Args:
        model: The model's name at the endpoint, or its id on the Hub.
        base_url: `http(s)://host:port/v1`; None uses the Hub's inference providers.
        api_key: Default: the key in `keys` for the host of `base_url`, or the Hub's token for the Hub.
        provider: A Hub inference provider; None lets the Hub choose.
        max_tokens: Longest answer in tokens.
        temperature, seed: Of sampling; temperature 0 is greedy.
        concurrency: Requests in flight at once, at least 1.
        pace: Spacing of attempts in time; clients may share it.
        timeout: Seconds for one attempt, from sending to the end of its answer.
        attempts: Tries per request, the first one included.
        patience: Seconds to wait for an unavailable server (refused or reset connections, HTTP 429, 502, 503, 504).
            Until then requests are retried even beyond `attempts`. Only an answered request restarts the time.
        discreet: True limits messages to an error's kind and status, since some servers quote the request.
        parameters: Forms of parameters that the endpoint accepts; its clients may share them.
        keys: Keys of the endpoints; all clients of a run share them.
        waits: Seconds (first, longest): the n-th wait is random up to first * 2^(n-1), and at least `Retry-After`.
    """

    batch_size = 1

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        provider: str | None = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        concurrency: int = 8,
        pace: Pace | None = None,
        timeout: float = 120.0,
        attempts: int = 5,
        patience: float = 120.0,
        discreet: bool = False,
        parameters: Parameters | None = None,
        keys: Keys | None = None,
        waits: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        if concurrency < 1 or attempts < 1:
            raise InputError(f"concurrency ({concurrency}) and attempts ({attempts}) must be at least 1.")
        self.name = model
        self.revision: str | None = None
        self.settings: Mapping[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self.base_url, self.provider, self.place = base_url, provider, _place(base_url, provider)
        self.concurrency, self.pace, self.timeout = concurrency, pace or Pace(), timeout
        self.attempts, self.patience, self.discreet, self.waits = attempts, patience, discreet, waits
        self._key = _key(api_key, base_url, keys or Keys())
        self._secrets = _secrets(self._key, base_url)
        self.parameters = parameters or Parameters()
        self._answers: set[bool] = set()  # kinds of requests it has answered: False without, True with an image
        self._failed = 0  # failed requests in a row
        self._unavailable_since = math.inf  # time.monotonic() at the start of an outage
        self._warned = False  # True once the outage was warned of

    def complete(self, requests: Sequence[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """Return one reply per request, in order; a failed request has its reason in `failure`.

        Raises:
            InputError: no request can succeed (key refused, model unknown, endpoint unreachable at first contact, or a
                trivial request refused too), or `OUTAGE` requests failed in a row.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(self._complete(requests, on_replies))
        with ThreadPoolExecutor(1) as pool:  # a notebook runs a loop of its own
            return pool.submit(asyncio.run, self._complete(requests, on_replies)).result()

    async def _complete(self, requests: Sequence[ChatRequest], on_replies: OnReplies | None) -> list[ChatReply]:
        pending = enumerate(requests)
        replies: dict[int, ChatReply] = {}
        errors: list[Exception] = []

        async def work(batch: _Batch) -> None:
            for i, request in pending:
                try:
                    replies[i] = await self._ask(batch, request)
                    if on_replies is not None:
                        on_replies({i: replies[i]})
                except _BatchEnded:
                    return
                except Exception as error:
                    errors.append(error)
                    batch.ending.set()
                if batch.ending.is_set():
                    return

        workers = min(self.concurrency, len(requests))
        opened = (
            to_hub(self.provider, self._key) if self.base_url is None else to_url(self.base_url, self._key, workers)
        )
        async with opened as send:
            batch = _Batch(send)
            await asyncio.gather(*(work(batch) for _ in range(workers)))
        if errors:
            raise errors[0]
        return [replies[i] for i in range(len(requests))]

    async def _ask(self, batch: _Batch, request: ChatRequest) -> ChatReply:
        from tenacity import AsyncRetrying, retry_if_exception

        try:
            messages = as_messages(request)
        except InputError as error:
            return ChatReply(failure=str(error))
        unavailable_since = math.inf

        def stop(state: RetryCallState) -> bool:
            nonlocal unavailable_since
            tried, now = state.attempt_number >= self.attempts, time.monotonic()
            if _error_of(state).kind is Kind.FAILED_ATTEMPT:
                return tried
            unavailable_since, self._unavailable_since = min(unavailable_since, now), min(self._unavailable_since, now)
            self._warn_unavailable(_error_of(state), now)
            return tried and now - min(unavailable_since, self._unavailable_since) >= self.patience

        retry = retry_if_exception(self._may_pass)
        retrying = AsyncRetrying(retry=retry, stop=stop, wait=self._wait, sleep=batch.rest, reraise=True)
        try:
            reply: ChatReply = await retrying(self._attempt, batch, messages, request.schema)
        except NoAnswer as error:
            return await self._give_up(batch, request, error, retrying.statistics["attempt_number"])
        self._answers.add(request.image is not None)
        self._failed, self._unavailable_since, self._warned = 0, math.inf, False
        return reply

    def _warn_unavailable(self, error: NoAnswer, now: float) -> None:
        """Warn once per outage, with the seconds left to wait."""
        left = self.patience - (now - self._unavailable_since)
        if not self._warned and now - self._unavailable_since >= QUIET and left > 0:
            self._warned = True
            log.warning("%s does not answer (%s). It is tried for %.0f s more.", self.place, self._message(error), left)

    async def _attempt(self, batch: _Batch, messages: list[Any], schema: dict[str, Any] | None) -> ChatReply:
        """Return one answer, with parameters in forms that the endpoint accepts; warn once about those left out."""

        async def send(fields: dict[str, Any], probe: bool = False) -> ChatReply:
            reply = await self._send(batch, PROBE if probe else messages, fields)
            self._answers |= {False} if probe else set()
            return reply

        values = {**self.settings, **({} if schema is None else {"response_format": schema})}
        reply = await self.parameters.ask(values, send, batch.searching)
        if new := self.parameters.news():
            said = "%s, asked for the model %r, refuses %s: left out from here on, and recorded so.%s"
            varied = " A repeated question may be answered otherwise." * bool({"temperature", "seed"} & set(new))
            log.warning(said, self.place, self.name, " and ".join(new), varied)
        return reply

    async def _send(self, batch: _Batch, messages: list[Any], fields: Mapping[str, Any]) -> ChatReply:
        await batch.rest(self.pace.wait())
        try:
            async with asyncio.timeout(self.timeout):
                return await batch.send({"model": self.name, "messages": messages, **fields})
        except TimeoutError:
            raise NoAnswer(Kind.FAILED_ATTEMPT, f"nothing came within {self.timeout:g} s") from None

    def _may_pass(self, error: BaseException) -> bool:
        known = bool(self._answers)
        return isinstance(error, NoAnswer) and (
            error.kind in (Kind.UNAVAILABLE, Kind.FAILED_ATTEMPT) or (error.kind is Kind.UNREACHABLE and known)
        )

    def _wait(self, state: RetryCallState) -> float:
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.waits[0], max=self.waits[1])(state)
        return max(drawn, _error_of(state).retry_after)

    async def _give_up(self, batch: _Batch, request: ChatRequest, error: NoAnswer, attempts: int) -> ChatReply:
        """Return the failure of one request, or raise InputError where the whole batch must end."""
        said, who = self._message(error), f"{self.place}, asked for the model {self.name!r},"
        kept = " What was answered is kept: run the same command with --resume." if self._answers else ""
        if error.kind is Kind.FATAL:
            raise InputError(f"{who} refuses: {said}. {self._advice(error.status)}.{kept}") from None
        if error.kind is Kind.UNREACHABLE and not self._answers:
            raise InputError(f"{who} does not answer ({said}). Start the server or correct the URL.") from None
        with_image = request.image is not None
        if error.kind in (Kind.FAILED_ATTEMPT, Kind.BAD_REQUEST) and not await self._answers_any(batch, with_image):
            blind = ". If the model cannot look at images, name one that can, or show it none"
            advice = CHECK + blind * with_image
            raise InputError(f"{who} answers no question, not even a trivial one: {said}. {advice}.") from None
        if error.kind is Kind.BAD_REQUEST:
            return ChatReply(failure=f"refused: {self._without_address(said)}")
        self._failed += 1
        if self._failed >= OUTAGE:
            raise InputError(
                f"{who} does not answer any more: {self._failed} requests in a row failed ({said}). See to it.{kept}"
            ) from None
        return ChatReply(failure=f"no answer after {attempts} attempts: {self._without_address(said)}")

    async def _answers_any(self, batch: _Batch, with_image: bool) -> bool:
        """Return True where the endpoint answers requests with (without) an image; sends a trivial one if unknown."""
        async with batch.probing:
            if with_image not in self._answers:
                messages = as_messages(ChatRequest("probe", {}, TRIVIAL, _grey())) if with_image else PROBE
                try:
                    await self._send(batch, messages, self.parameters.fields(self.settings))
                except NoAnswer as error:
                    return error.kind in (Kind.UNAVAILABLE, Kind.UNREACHABLE)  # an outage proves nothing
                self._answers.add(with_image)
        return True

    def _advice(self, status: int) -> str:
        """Return a way to fix an endpoint that refuses every request."""
        if status == 401 and self.base_url:
            names = [variable(self.base_url)]
            if not is_only_in_recipe(self.base_url):
                names += [VARIABLE, "HF_TOKEN" * on_hub(self.base_url)]
            if not any(names):
                return "Type the endpoint's option: no key is sent to a host of this form that only a recipe names"
            return f"Set {' or '.join(filter(None, names))} to a key that is valid there"
        return _ADVICE.get(status, CHECK)

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


class _BatchEnded(Exception):
    """Raised in requests of a batch that has ended."""


class _Batch:
    """State shared by the requests of one `complete` call; created in the event loop that runs them."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.ending = asyncio.Event()
        self.probing, self.searching = asyncio.Lock(), asyncio.Lock()

    async def rest(self, seconds: float) -> None:
        """Wait; raise _BatchEnded if the batch ends before."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.ending.wait(), seconds)
        if self.ending.is_set():
            raise _BatchEnded


def _error_of(state: RetryCallState) -> NoAnswer:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, NoAnswer)
    return error


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


def _key(given: str | None, base_url: str | None, keys: Keys) -> str | None:
    """Return the key to send; the Hub's token goes to the Hub and its endpoints only."""
    from huggingface_hub import get_token

    found = keys.of(base_url, given) if base_url is not None else given or get_token()
    key = (found or "").strip()
    if not key.isascii() or not key.isprintable():
        raise InputError(f"The endpoint's key ({VARIABLE}) has characters that no HTTP header can; copy it again.")
    return key or None


def _secrets(key: str | None, base_url: str | None) -> list[str]:
    """Return key, password and query values in each form that a server may quote, the longest first."""
    import httpx2

    url = httpx2.URL(base_url or "")
    login = base64.b64encode(f"{url.username}:{url.password}".encode()).decode() if url.password else ""
    query = url.query.decode("ascii")
    values = [part.partition("=")[2] for part in query.split("&")] + [value for _, value in parse_qsl(query)]
    encoded = url.userinfo.decode("ascii").partition(":")[2]
    return sorted({key or "", login, url.password or "", encoded, *values} - {""}, key=len, reverse=True)


def _grey() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (224, 224), "grey").save(file, "PNG")
    return file.getvalue()
