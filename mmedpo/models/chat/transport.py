"""One request to an OpenAI-compatible URL or the Hugging Face Hub: sending, and failures by HTTP status."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mmedpo.data import image_headers
from mmedpo.data.images import is_embedded, pixels, png
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.completion import (
    LONGEST_BODY,
    RENAMED,
    SHOWN_CHARACTERS,
    TOO_LONG,
    UNREADABLE,
    Kind,
    NoAnswer,
    reply_of,
)
from mmedpo.runs import bounded_json
from mmedpo.runs.hosts import is_loopback

if TYPE_CHECKING:
    import ssl

    import httpx2

Made = TypeVar("Made")

LONGEST_RETRY_AFTER = 600.0  # seconds; longer waits are cut to this


_BY_STATUS = {
    **dict.fromkeys((429, 502, 503, 504), Kind.UNAVAILABLE),
    **dict.fromkeys((408, 425), Kind.FAILED_ATTEMPT),
    **dict.fromkeys((400, 413, 422), Kind.BAD_REQUEST),  # bad content, too long, wrong field
}


# Sends the fields of a chat completion request; with True the reply has `samples`. Raises NoAnswer, or InputError
# where no request can be sent at all.
Send = Callable[[Mapping[str, Any], bool], Awaitable[ChatReply]]


def as_messages(request: ChatRequest) -> list[Any]:
    """Return the messages of a chat completion request. Raises InputError as `data_url`."""
    content: Any = request.text
    if request.images:
        shown = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in request.images]
        content = [*shown, {"type": "text", "text": request.text}]
    return [{"role": "user", "content": content}]


def data_url(image: bytes) -> str:
    """Return an encoded image as `data:image/...;base64,...`, without metadata.

    Servers decode it to the same pixels as `images.open_rgb`.

    Raises:
        InputError: the image cannot be used.
    """
    if not is_embedded(image):
        image = png(pixels(image), "image")["bytes"]
    kind = "jpeg" if image.startswith(image_headers.JPEG) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


def run(work: Coroutine[Any, Any, Made]) -> Made:
    """Run a coroutine to its end, also where an event loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def connection(url: str, key: str | None, path: str) -> tuple[httpx2.URL, dict[str, Any]]:
    """Return where to send requests for `path` of an endpoint, and the options of their client: login or key, no
    cookies, and no proxy for this machine.
    """
    import httpx2

    place = httpx2.URL(url)
    login = (place.username, place.password) if place.userinfo else None
    # A server's cookies would grow with each reply and be sent back to it.
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    options = {
        "headers": {"authorization": f"Bearer {key}"} if key and not login else {}, "auth": login,
        "verify": _trusted(), "trust_env": not is_loopback(url), "cookies": no_cookies,
    }  # fmt: skip
    # httpx2 logs URLs, so the login is removed.
    return place.copy_with(userinfo=b"", path=place.path.rstrip("/") + path), options


@asynccontextmanager
async def to_url(url: str, key: str | None, connections: int) -> AsyncIterator[Send]:
    """Open a client that posts to `url`/chat/completions.

    Redirects are not followed, and loopback requests use no proxy, so that patients' images reach the named host only.
    huggingface_hub's client is not used: it refuses local servers under HF_HUB_OFFLINE, and sends JSON schemas in a
    form that only TGI reads.
    """
    import httpx2

    place, options = connection(url, key, "/chat/completions")
    pool = httpx2.Limits(max_connections=connections)
    async with httpx2.AsyncClient(timeout=None, limits=pool, **options) as client:

        async def send(fields: Mapping[str, Any], samples: bool) -> ChatReply:
            body = bytearray()
            with _network_failures():
                async with client.stream("POST", place, json=fields, extensions={"trace": _watch}) as response:
                    if not getattr(response.extensions["network_stream"], "was_read", True):
                        raise NoAnswer(Kind.FAILED_ATTEMPT, "the server sent an answer before it was asked")
                    async for part in response.aiter_bytes():
                        body += part
                        if len(body) > LONGEST_BODY:
                            break
            if not response.is_success:
                said = f"redirected to {response.headers.get('location')}" if response.is_redirect else message_of(body)
                raise _http_failure(response.status_code, said, response.headers)
            return _read(body, fields, samples)

        yield send


@asynccontextmanager
async def to_hub(provider: str | None, key: str | None) -> AsyncIterator[Send]:
    """Open a client of the Hub's inference providers; None lets the Hub choose one."""
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    async with AsyncInferenceClient(provider=provider, token=key) as client:  # type: ignore[arg-type]

        async def send(fields: Mapping[str, Any], samples: bool) -> ChatReply:
            try:
                with _network_failures():
                    own = {name: value for name, value in fields.items() if name != RENAMED}
                    more = {RENAMED: fields[RENAMED]} if RENAMED in fields else None  # unknown to the client
                    return reply_of(asdict(await client.chat_completion(**own, extra_body=more)), fields, samples)
            except OfflineModeIsEnabled:
                raise InputError(
                    f"The model {fields['model']!r} on the Hugging Face Hub is out of reach: HF_HUB_OFFLINE or "
                    "TRANSFORMERS_OFFLINE is set. Unset it for this command, or name an endpoint of your own."
                ) from None
            except HfHubHTTPError as error:
                raise _http_failure(error.response.status_code, error.server_message, error.response.headers) from None
            except UNREADABLE as error:
                raise NoAnswer(Kind.FAILED_ATTEMPT, f"the answer is not a chat completion ({error})") from None
            except ValueError as error:  # the provider is unknown, there is no token, ...
                raise NoAnswer(Kind.FATAL, str(error)) from None

        yield send


async def _watch(event: str, info: Mapping[str, Any]) -> None:
    """Note on each new connection whether it was read since the last request (`was_read`).

    A second answer that came in one packet with the first would else be taken for the answer to the next request.
    """
    if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
        return
    stream = info["return_value"]
    read, write = stream.read, stream.write

    async def reading(*arguments: Any, **named: Any) -> bytes:
        stream.was_read = True
        return cast(bytes, await read(*arguments, **named))

    async def writing(*arguments: Any, **named: Any) -> None:
        stream.was_read = False
        await write(*arguments, **named)

    stream.read, stream.write = reading, writing


@cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates of the system or SSL_CERT_FILE, cached since reading them is slow."""
    import httpx2

    return httpx2.create_ssl_context()


@contextmanager
def _network_failures() -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.RequestError as error:
        kind = Kind.UNAVAILABLE if isinstance(error, httpx2.TransportError) else Kind.FAILED_ATTEMPT
        if isinstance(error, httpx2.ConnectError):
            kind = Kind.UNREACHABLE
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise NoAnswer(kind, f"the connection failed ({said})") from None


def _http_failure(status: int, said: str | None, headers: Mapping[str, str]) -> NoAnswer:
    kind = _BY_STATUS.get(status, Kind.FAILED_ATTEMPT if status >= 500 else Kind.FATAL)
    return NoAnswer(kind, f"HTTP {status}: {said or 'no explanation'}", status, _retry_after(headers))


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the wait in seconds that the server asked for (number or HTTP date), in [0, LONGEST_RETRY_AFTER]."""
    value = headers.get("retry-after", "")
    seconds = 0.0
    with suppress(ValueError, TypeError):
        seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    with suppress(ValueError):
        seconds = float(value)
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)  # in this order NaN becomes 0


def message_of(body: bytes | bytearray) -> str:
    """Return the message of an error body, in the forms of OpenAI, vLLM, TGI and FastAPI, or its text."""
    text = body.decode("utf-8", "replace").strip()
    with suppress(ValueError, RecursionError):
        found: Any = json.loads(text)
        named = ""
        for field in ("error", "message", "detail"):
            if isinstance(found, dict):
                named = found.get("param") or named
                found = found.get(field, found)
        if isinstance(found, str):
            text = f"{found} (param {named})" if isinstance(named, str) and named and named not in found else found
    return "a web page" if text.startswith("<") else " ".join(text.split())


def _read(body: bytes | bytearray, asked: Mapping[str, Any], samples: bool) -> ChatReply:
    if len(body) > LONGEST_BODY:
        raise NoAnswer(Kind.BAD_REQUEST, TOO_LONG)
    try:
        return reply_of(bounded_json.loads(body), asked, samples)
    except (ValueError, *UNREADABLE):
        shown = message_of(body)[:SHOWN_CHARACTERS]
        raise NoAnswer(Kind.FAILED_ATTEMPT, f"the answer is not a chat completion but {shown or 'empty'}") from None
