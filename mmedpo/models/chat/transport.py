"""One request to an OpenAI-compatible URL or the Hugging Face Hub: sending, reading the answer, kinds of failure."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mmedpo.data import image_headers
from mmedpo.data.images import is_embedded, pixels, png
from mmedpo.errors import InputError
from mmedpo.models import thoughts
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.runs import bounded_json
from mmedpo.runs.hosts import is_loopback

if TYPE_CHECKING:
    import ssl

    import httpx2

Made = TypeVar("Made")

SERVED = ("model", "system_fingerprint")  # response fields that identify the model
LONGEST_BODY = 1_000_000  # bytes; an answer of some hundred tokens has a few thousand
LONGEST_RETRY_AFTER = 600.0  # seconds; longer waits are cut to this
SHOWN_CHARACTERS = 300  # of a server's message
MOST_TOKENS = 2**53  # largest integer that is exact in every JSON reader
TOO_LONG = f"the answer is longer than {LONGEST_BODY:,} bytes"
RENAMED = "max_completion_tokens"
WHOLE = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete")  # finish reasons, as servers spell them
REASON = re.compile(r"[\w.-]{1,40}")
CUT = ("length", "max_tokens", "max_output_tokens")
UNREADABLE = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError, RecursionError)


class Kind(Enum):
    """Kinds of failure, by their meaning for this request and later ones."""

    UNREACHABLE = "the connection was refused"
    UNAVAILABLE = "the endpoint is unavailable or rate limited"
    FAILED_ATTEMPT = "the attempt failed"
    BAD_REQUEST = "the request was refused"
    FATAL = "every request is refused"


_BY_STATUS = {
    **dict.fromkeys((429, 502, 503, 504), Kind.UNAVAILABLE),
    **dict.fromkeys((408, 425), Kind.FAILED_ATTEMPT),
    **dict.fromkeys((400, 413, 422), Kind.BAD_REQUEST),  # bad content, too long, wrong field
}


class NoAnswer(Exception):
    """Failure of an attempt: its kind, HTTP `status` (0: none) and `retry_after`, the server's wait in seconds."""

    def __init__(self, kind: Kind, said: str, status: int = 0, retry_after: float = 0.0) -> None:
        super().__init__(said)
        self.kind, self.status, self.retry_after = kind, status, retry_after


# Sends the fields of a chat completion request; raises NoAnswer, or InputError where no request can be sent at all.
Send = Callable[[Mapping[str, Any]], Awaitable[ChatReply]]


def as_messages(request: ChatRequest) -> list[Any]:
    """Return the messages of a chat completion request. Raises InputError as `data_url`."""
    content: Any = request.text
    if request.image is not None:
        picture = {"type": "image_url", "image_url": {"url": data_url(request.image)}}
        content = [picture, {"type": "text", "text": request.text}]
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

        async def send(fields: Mapping[str, Any]) -> ChatReply:
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
                said = f"redirected to {response.headers.get('location')}" if response.is_redirect else _message(body)
                raise _http_failure(response.status_code, said, response.headers)
            return _read(body, fields)

        yield send


@asynccontextmanager
async def to_hub(provider: str | None, key: str | None) -> AsyncIterator[Send]:
    """Open a client of the Hub's inference providers; None lets the Hub choose one."""
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    async with AsyncInferenceClient(provider=provider, token=key) as client:  # type: ignore[arg-type]

        async def send(fields: Mapping[str, Any]) -> ChatReply:
            try:
                with _network_failures():
                    own = {name: value for name, value in fields.items() if name != RENAMED}
                    more = {RENAMED: fields[RENAMED]} if RENAMED in fields else None  # unknown to the client
                    return _reply(asdict(await client.chat_completion(**own, extra_body=more)), fields)
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


def _message(body: bytes | bytearray) -> str:
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


def _read(body: bytes | bytearray, asked: Mapping[str, Any]) -> ChatReply:
    if len(body) > LONGEST_BODY:
        raise NoAnswer(Kind.BAD_REQUEST, TOO_LONG)
    try:
        return _reply(bounded_json.loads(body), asked)
    except (ValueError, *UNREADABLE):
        shown = _message(body)[:SHOWN_CHARACTERS]
        raise NoAnswer(Kind.FAILED_ATTEMPT, f"the answer is not a chat completion but {shown or 'empty'}") from None


def _reply(answer: dict[str, Any], asked: Mapping[str, Any]) -> ChatReply:
    """Return the reply in a chat completion's fields; unusable fields raise one of `UNREADABLE`.

    A thought in a field of its own goes into `raw` only. A message with neither thought nor text is no answer.
    """
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    message, ended = choice["message"], str(choice.get("finish_reason") or "stop")
    text, thought = _content(message.get("content")), message.get("reasoning_content") or message.get("reasoning") or ""
    if len(text) > LONGEST_BODY:
        raise NoAnswer(Kind.BAD_REQUEST, TOO_LONG)
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and 0 <= count <= MOST_TOKENS else None for count in counts)
    served = {
        name: _without_surrogates(said)[:SHOWN_CHARACTERS]
        for name in SERVED
        if isinstance(said := answer.get(name), str) and said.strip()
    }
    tokens: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "served": served}
    cut_at = None
    if text.strip() and (refusal := message.get("refusal")):
        raise NoAnswer(Kind.BAD_REQUEST, f"the model refused ({refusal})")
    if ended.lower() in CUT:
        cut_at = asked.get("max_tokens") or asked.get(RENAMED) or 0
    elif ended.lower() not in WHOLE:
        named = repr(ended) if REASON.fullmatch(ended) else "of no known form"  # another text may quote the question
        return ChatReply(failure=f"it ended by finish_reason {named}", **tokens)
    elif not text.strip() and not thought:
        why = message.get("refusal") or f"finish_reason {choice.get('finish_reason')!r}"
        raise NoAnswer(Kind.BAD_REQUEST, f"the answer has no content ({why})")
    if not text.strip() and isinstance(thought, str) and thought:
        text = f"<think>{thought}" + ("</think>" if cut_at is None else "")
    return ChatReply(**vars(thoughts.read(_without_surrogates(text), cut_at)), **tokens)


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON allows and files cannot store."""
    return text.encode("utf-8", "replace").decode()


def _content(content: Any) -> str:
    """Return a message's content, a text or a list of parts (Mistral's endpoint), without thoughts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content, str | None):
        raise TypeError(f"content is {content!r:.40}")
    return content or ""
