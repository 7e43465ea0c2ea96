"""Chat models behind one small interface, and the client for OpenAI-compatible and Hub inference endpoints."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from mmedpo.errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import AsyncInferenceClient
    from tenacity import RetryCallState

KEY_VARIABLE = "MMEDPO_API_KEY"
LONGEST_RETRY_AFTER = 600.0  # seconds; a server that asks for more is asked again after this
SHOWN_CHARACTERS = 300  # of a server's error message
# What one request may be refused for while the next one is fine: bad content, too long, a wrong field.
_REFUSED_REQUEST = (400, 413, 422)
_TRANSIENT = (408, 425, 429)
_ADVICE = {
    401: f"Set {KEY_VARIABLE} (an endpoint of your own) or HF_TOKEN (the Hub) to a key that is valid there",
    402: "Its credits are used up; add some or choose another endpoint",
    403: "The key is known but may not use this model; ask for access or give another key",
    404: "Check the URL (an OpenAI-compatible one ends in /v1) and the model's name",
}


@dataclass(frozen=True)
class ChatRequest:
    """One question: `prompt` is the template's name and version ("judge@1"), `variables` what it was filled from (an
    offline stand-in reads these instead of `text`), `text` the user message, `image` an encoded image file of any
    format Pillow knows, `schema` the JSON schema of the answer."""

    prompt: str
    variables: Mapping[str, Any]
    text: str
    image: bytes | None = None
    schema: dict[str, Any] | None = None


@dataclass(frozen=True)
class ChatReply:
    """What came back: `text` (may be empty), or `failure`, why nothing did. Exactly one of them is set."""

    text: str | None = None
    failure: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.failure is None):
            raise ValueError("A ChatReply has either a text or a failure.")


class ChatModel(Protocol):
    """Anything that answers chat requests; `name` and `revision` (None: unknown) go into the provenance."""

    name: str
    revision: str | None

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply a request, in order."""


class EndpointChat:
    """A chat model behind an OpenAI-compatible URL (vLLM, TGI, ...) or a provider of the Hugging Face Hub.

    Args:
        model: The model's name at the endpoint, or its id on the Hub.
        base_url: `http(s)://host:port/v1`; None asks the Hub's inference providers.
        api_key: Default: `MMEDPO_API_KEY` for a `base_url`, the Hub's own token for the Hub and its endpoints.
        provider: A Hub inference provider; None lets the Hub choose.
        concurrency: Requests in flight at once, at least 1.
        timeout: Seconds without a byte from the server before an attempt counts as failed.
        max_tokens, temperature, seed: Passed on: the longest answer in tokens; 0 is greedy; of the sampling.
        attempts: Tries a request, the first one included, before it becomes a failure reply.
        waits: Seconds (first, longest): the n-th wait is random up to first * 2^(n-1), and `Retry-After` at least.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        provider: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        attempts: int = 5,
        waits: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        if concurrency < 1 or attempts < 1:
            raise InputError(f"concurrency ({concurrency}) and attempts ({attempts}) must be at least 1.")
        self.name = model
        self.revision: str | None = None
        self.base_url, self.provider, self.place = base_url, provider, _place(base_url, provider)
        self.concurrency, self.timeout, self.attempts, self.waits = concurrency, timeout, attempts, waits
        self._sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        self._key = api_key or _default_key(base_url)
        self._takes_schema = True
        self._has_answered = False

    def complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        """One reply a request, in order; a request that fails for good has its reason in `failure`.

        Raises:
            InputError: no request can work: the endpoint refuses the key or does not know the model, or it has never
                answered this client and cannot be reached or refuses what it is sent.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            outcomes = asyncio.run(self._complete(requests))
        else:  # in a notebook, whose own loop is running
            with ThreadPoolExecutor(1) as pool:
                outcomes = pool.submit(asyncio.run, self._complete(requests)).result()
        refusals = [outcome for outcome in outcomes if isinstance(outcome, InputError)]
        if refusals and not self._has_answered:
            raise refusals[0]
        return [ChatReply(failure=str(o)) if isinstance(o, InputError) else o for o in outcomes]

    async def _complete(self, requests: Sequence[ChatRequest]) -> list[ChatReply | InputError]:
        from huggingface_hub import AsyncInferenceClient

        # The client would send the Hub's token to any URL; a None header holds it back.
        headers = {} if self._key or self.base_url is None else {"authorization": None}
        where: dict[str, Any] = {"base_url": self.base_url, "provider": self.provider, "headers": headers}
        slots = asyncio.Semaphore(self.concurrency)
        async with AsyncInferenceClient(token=self._key, timeout=self.timeout, **where) as client:
            return list(await asyncio.gather(*(self._ask(client, slots, request) for request in requests)))

    async def _ask(
        self, client: AsyncInferenceClient, slots: asyncio.Semaphore, request: ChatRequest
    ) -> ChatReply | InputError:
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        retry, stop = retry_if_exception(_is_transient), stop_after_attempt(self.attempts)
        async with slots:
            try:
                retrying = AsyncRetrying(retry=retry, stop=stop, wait=self._wait, reraise=True)
                text: str = await retrying(self._once, client, request)
            except Exception as error:
                return self._verdict(error)
        self._has_answered = True
        return ChatReply(text=text)

    def _verdict(self, error: Exception) -> ChatReply | InputError:
        """A failed or (InputError returned) refused request; an InputError is raised if all requests will fare so."""
        import httpx2
        from huggingface_hub.errors import OfflineModeIsEnabled

        if isinstance(error, InputError):
            return error
        who = f"{self.place}, asked for the model {self.name!r},"
        if isinstance(error, OfflineModeIsEnabled):
            raise InputError(
                f"{who} cannot be reached: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, and huggingface_hub then "
                "refuses every request, to a local server too. Unset it for this command."
            ) from None
        said = self._described(error)
        if isinstance(error, httpx2.ConnectError) and not self._has_answered:
            raise InputError(f"{who} does not answer ({said}). Start the server or correct the URL.") from None
        if _is_transient(error):
            return ChatReply(failure=f"no answer after {self.attempts} attempts: {said}")
        if not _status(error) and not isinstance(error, ValueError):
            raise error
        advice = _ADVICE.get(_status(error), "Check the URL, the model, the provider and the request")
        refusal = InputError(f"{who} refuses: {said}. {advice}.")
        if _status(error) in _REFUSED_REQUEST:
            return refusal
        raise refusal from None

    async def _once(self, client: AsyncInferenceClient, request: ChatRequest) -> str:
        if request.schema is None or not self._takes_schema:
            return await self._post(client, request, None)
        # huggingface_hub sends it to a URL as TGI's {"type": "json_object", "value": schema}: JSON mode for vLLM.
        form = {"name": "answer", "schema": request.schema, "strict": True}
        try:
            return await self._post(client, request, {"type": "json_schema", "json_schema": form})
        except Exception as error:
            if _status(error) not in _REFUSED_REQUEST:
                raise
            text = await self._post(client, request, None)
            self._takes_schema = False
            return text

    async def _post(self, client: AsyncInferenceClient, request: ChatRequest, constraint: Any) -> str:
        content: Any = request.text
        if request.image is not None:
            picture = {"type": "image_url", "image_url": {"url": data_url(request.image)}}
            content = [picture, {"type": "text", "text": request.text}]
        messages: list[Any] = [{"role": "user", "content": content}]
        answer = await client.chat_completion(messages, model=self.name, response_format=constraint, **self._sampling)
        return str(answer.choices[0].message.content or "")

    def _wait(self, state: RetryCallState) -> float:
        from tenacity import wait_random_exponential

        drawn = wait_random_exponential(multiplier=self.waits[0], max=self.waits[1])(state)
        return max(drawn, _retry_after(state.outcome.exception() if state.outcome else None))

    def _described(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing came within {self.timeout:g} s"
        text = f"{type(error).__name__}: {error}"
        if status := _status(error):
            text = f"HTTP {status}: {getattr(error, 'server_message', None) or 'no explanation'}"
        # Some servers quote the key back.
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN_CHARACTERS]


def _place(base_url: str | None, provider: str | None) -> str:
    """Where requests go, without credentials, for messages."""
    if base_url is None:
        return f"the Hugging Face Hub (provider {provider or 'auto'})"
    with suppress(ValueError):
        url = urlsplit(base_url)
        if url.scheme in ("http", "https") and url.hostname and url.port != 0:
            return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    # huggingface_hub would take it for a model id and send the request to the Hub.
    raise InputError(f"{base_url!r} is not the URL of an endpoint; give one like http://localhost:8000/v1.")


def _default_key(base_url: str | None) -> str | None:
    from huggingface_hub import get_token

    if base_url is None:
        return get_token()
    url = urlsplit(base_url)
    on_hub = url.scheme == "https" and (url.hostname or "").endswith((".huggingface.co", ".huggingface.cloud"))
    return os.environ.get(KEY_VARIABLE) or (get_token() if on_hub else None)


def _status(error: BaseException | None) -> int:
    """The HTTP status behind an error of huggingface_hub, 0 if it has none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def _is_transient(error: BaseException) -> bool:
    """Whether asking again may help: rate limits, server errors, timeouts, broken connections and bodies."""
    import httpx2

    if status := _status(error):
        return status in _TRANSIENT or status >= 500
    # What huggingface_hub raises on a body that is not a chat completion.
    broken_body = (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError, IndexError, KeyError)
    return isinstance(error, (TimeoutError, httpx2.TransportError, *broken_body))


def _retry_after(error: BaseException | None) -> float:
    """Seconds the server asked to wait (a number or an HTTP date), in [0, LONGEST_RETRY_AFTER]."""
    value = error.response.headers.get("retry-after", "") if _status(error) else ""  # type: ignore[union-attr]
    seconds = 0.0
    with suppress(ValueError, TypeError):
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    with suppress(ValueError):
        seconds = float(value)
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)  # in this order NaN becomes 0


def data_url(image: bytes) -> str:
    """An encoded image as `data:image/...;base64,...`; raises InputError if Pillow does not know its format."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(image)) as opened:
            mime = Image.MIME[opened.format or ""]
    except (UnidentifiedImageError, KeyError):
        raise InputError(f"{len(image)} bytes are not an image of a known format; give PNG or JPEG.") from None
    return f"data:{mime};base64,{base64.b64encode(image).decode('ascii')}"


def parse_json(text: str) -> dict[str, Any] | None:
    """The last whole JSON object in `text` (prose, code fences and thoughts around it are skipped), or None.

    Example: `parse_json('Sure: {"score": 0.8}')` is `{"score": 0.8}`; of `'{"score": 0.8, "ra'` it is None.
    """
    decoder, found, start = json.JSONDecoder(), None, text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except RecursionError:  # nothing anyone asked for nests so deep, and each further try takes as long
            return None
        except ValueError:
            end = start + 1
        start = text.find("{", end)
    return found
