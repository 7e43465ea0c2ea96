"""Errors of the Hub and the network: retries, and messages with a remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from json import JSONDecodeError
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mmedpo.data import gguf, trust
from mmedpo.errors import DISK_FULL, InputError
from mmedpo.runs.json_files import read_object

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ATTEMPTS = 5
CONFLICTS = (409, 412)  # a concurrent commit
PASSING = (408, 429, 500, 502, 503, 504)
LONGEST_WAIT = 300.0  # seconds; a longer wait is reported as an error
LONGEST_SAID = 1000  # characters of an error; a server's may have megabytes
LOGIN = "Run `hf auth login`, or set HF_TOKEN, with a token that may write (https://huggingface.co/settings/tokens)."
OTHERS = "The repository was changed by another process at the same time. Run the same command again."
ADVICE = {
    400: "The Hub rejects this request; correct what it names.",
    401: f"The token is invalid. {LOGIN}",
    403: "The token lacks permission: use one that may write to that name, ask its owner, or follow its message.",
    404: "The repository does not exist, or the token has no access to it: check its name and owner.",
    409: OTHERS,
    412: OTHERS,
    413: "A file is too large for the Hub; `mmedpo curate` writes a dataset in smaller ones by --shard_size.",
    429: "Too many requests to the Hub.",
}
LATER = "Nothing is published in part. Run the same command again later; finished uploads are not repeated."
NOT_SEEN = "Neither a folder nor an accessible repository has this name: check it, or log in by `hf auth login`."
ENDPOINT = "https://huggingface.co"
READING = {401: NOT_SEEN, 403: "The token has no access to it: ask its owner.", 404: NOT_SEEN}
NO_HUB = "the answer does not come from a Hub. Check HF_ENDPOINT and any proxy."
COMMIT = re.compile("[0-9a-f]{40}")  # the client takes any text, `../..` too, into paths of its cache
AGAIN = "Run the same command again later."

T = TypeVar("T")


def patiently(doing: str, action: Callable[[], T]) -> T:
    """Return the result of `action`, retried up to `ATTEMPTS` times after temporary errors; it must be repeatable.

    Args:
        doing: start of the error message, such as "The dataset was uploaded".
        action: call without arguments.

    Raises:
        InputError: a permanent error, or too many temporary ones (`in_words`).
    """
    from tenacity import Retrying, stop_after_attempt

    def wait(state: Any) -> Any:
        return wait_for(state.outcome.exception(), state.attempt_number) if state.outcome.failed else None

    stop = stop_after_attempt(ATTEMPTS)
    retrying = Retrying(retry=lambda state: wait(state) is not None, wait=wait, stop=stop, reraise=True)
    with in_words(doing):
        return retrying(action)


@contextmanager
def in_words(doing: str, reading: bool = False) -> Iterator[None]:
    """Raise errors of the Hub's client as InputError: `doing`, the reason, the remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _is_of_the_hub(error):
            raise
        raise InputError(f"{doing}: {reason(error, reading)}") from error


def why_unread(error: BaseException, name: str = "") -> str:
    """Return why `name`, a folder or a Hub id, could not be read, and the remedy.

    The reason is a GGUF file or a missing folder, else the error of Hub, network or disk that caused `error`, else its
    first line.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RemoteEntryNotFoundError

    if held := gguf.refusal(name):
        return held
    if name and Path(name).is_file():
        return "it is a file; give the folder that holds it"
    missing = _is_missing_folder(name)
    if not missing and (refused := trust.refused(error)):
        return refused
    beneath: BaseException | None = error
    while beneath is not None and not isinstance(beneath, RemoteEntryNotFoundError):  # the reader names the file
        if _has_reason(beneath) and (not missing or isinstance(beneath, GatedRepoError)):
            return (
                _offline(name) if isinstance(_cause(beneath), OfflineModeIsEnabled) else reason(beneath, reading=True)
            )
        beneath = beneath.__cause__ or beneath.__context__
    if missing:
        return "the folder does not exist; check the path"
    message = _first_line(error).partition(" Checkout 'https")[0]
    if constants.HF_HUB_OFFLINE and message.startswith("We couldn't connect to"):  # message of Transformers
        return _offline(name)
    return gguf.refusal(name, of_hub=name.count("/") == 1 and not constants.HF_HUB_OFFLINE) or message


def _offline(name: str) -> str:
    here = "the folder does not exist, " * bool(name and not Path(name).exists())
    return f"{here}HF_HUB_OFFLINE is set, and it is not in the cache. Check the name, or unset HF_HUB_OFFLINE."


def _is_missing_folder(name: str) -> bool:
    """Return True if a name looks like a path that does not exist, and not like a Hub id."""
    if not name or Path(name).exists():
        return False
    path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return path or ("/" in name and Path(name).parent.is_dir())


def reason(error: BaseException, reading: bool = False) -> str:
    """Return reason and remedy of an error of the Hub's client, the network or the disk."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    cause = _cause(error)
    where = f"{_first_line(error)} " if cause is not error else ""
    status, response = status_of(cause), getattr(cause, "response", None)
    later = AGAIN if reading else LATER
    if isinstance(cause, OfflineModeIsEnabled):
        what = "it is not in the cache" if reading else "nothing can be sent"
        return f"HF_HUB_OFFLINE is set, and {what}. Unset it for this command."
    if isinstance(cause, LocalTokenNotFoundError):
        return f"there is no token. {LOGIN}"
    if isinstance(cause, HFValidationError):
        return f"the name is not allowed: {_first_line(cause)}"
    if isinstance(cause, GatedRepoError):
        return f"the repository is gated ({_reply(cause)}). Open its page, request access, then run the command again."
    named = response is not None and "authorization" in response.request.headers
    if status == 401 and not where and not named and not reading:
        return f"there is no token. {LOGIN}"
    if status == 429:
        wait = patience(cause)
        return f"{where}HTTP 429: {_reply(cause)}. {ADVICE[429]} {f'It asks for {wait:.0f} s. ' if wait else ''}{later}"
    if status:
        return f"{where}HTTP {status}: {_reply(cause)}. {(READING if reading else ADVICE).get(status, later)}"
    if isinstance(cause, OSError) and cause.errno in DISK_FULL:
        return f"no space left on the disk ({cause.filename or 'HF_HOME'}). Free some, then run the command again."
    if isinstance(cause, OSError) and cause.errno is not None and not _is_of_the_network(cause):
        return f"{cause.strerror or cause}: {cause.filename or 'unknown file'}."
    if isinstance(cause, PermissionError):
        return f"{where}the token lacks permission ({_first_line(cause)}). {LOGIN}"  # raised by hf_xet
    if isinstance(cause, JSONDecodeError):
        return f"{where}{NO_HUB}"
    if _is_of_the_network(cause):
        return f"{where}the connection failed ({type(cause).__name__}: {_first_line(cause)}). {later}"
    return where + " ".join(str(cause).split())


def wait_for(error: BaseException, attempt: int) -> float | None:
    """Return the seconds to wait after attempt 1, 2, ...; None for a permanent error or a wait that is too long."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    cause = _cause(error)
    if cause is not error or isinstance(cause, OfflineModeIsEnabled):  # the client has retried large files itself
        return None
    status = status_of(cause)
    if status in CONFLICTS:
        return 0.1 * attempt
    if status in PASSING or _is_of_the_network(cause):
        wait = patience(cause) or min(2.0 ** (attempt - 1), 8.0)
        return wait if wait <= LONGEST_WAIT else None
    return None


def patience(error: BaseException) -> float:
    """Return the seconds to wait by Retry-After or the reset of the Hub's rate limit, else 0."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    with suppress(ValueError, OverflowError):  # thousands of digits
        if status_of(error) == 429 and (limit := parse_ratelimit_headers(headers)) and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    seconds = headers.get("retry-after", "").strip()
    return float(seconds) if seconds.isdecimal() else 0.0


def status_of(error: BaseException) -> int:
    """Return the HTTP status of an error, 0 without one."""
    return int(getattr(getattr(_cause(error), "response", None), "status_code", 0))


def writer(api: HfApi) -> dict[str, Any]:
    """Return the user by the Hub's `whoami` ("name", "orgs", ...).

    Raises:
        InputError: the token is unknown, invalid or read-only, or HF_ENDPOINT is no URL.
    """
    check_endpoint(api.endpoint)
    _check_token(api)
    who: dict[str, Any] = patiently("The Hub was asked who you are", api.whoami)
    token = (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise InputError(f"The token of {who['name']} is read-only. {LOGIN}")
    return who


def check_endpoint(endpoint: str) -> None:
    """Raise InputError if HF_ENDPOINT is no URL, before the import of huggingface_hub fails on it."""
    try:
        url = urlsplit(endpoint)
        known = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        known = False
    if not known:
        raise InputError(f"HF_ENDPOINT {endpoint!r} is not a URL. Unset it, or give one like {ENDPOINT}.")


def _check_token(api: HfApi) -> None:
    from huggingface_hub import get_token

    token = api.token if isinstance(api.token, str) else get_token()
    if token and not token.isascii():
        raise InputError(f"The token contains an invalid character. {LOGIN}")


def _cause(error: BaseException) -> BaseException:
    """Return the original error; for large files the client wraps it in a RuntimeError that names the file."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_of_the_hub(error: BaseException) -> bool:
    from huggingface_hub.errors import HFValidationError

    cause = _cause(error)
    uploaded = type(cause) is RuntimeError or type(cause) is ValueError  # raised by hf_xet and the LFS protocol
    return isinstance(cause, (OSError, HFValidationError, JSONDecodeError)) or _is_of_the_network(cause) or uploaded


def _has_reason(error: BaseException) -> bool:
    """Return True if `reason` knows an error; an OSError without a number is a library's wrapper of another error."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or status_of(error):
        return True
    if isinstance(error, OSError) and error.errno is None:
        return False
    return _is_of_the_network(error) or (isinstance(error, OSError) and error.errno in DISK_FULL)


def _is_of_the_network(error: BaseException) -> bool:
    from httpx2 import HTTPError

    return isinstance(error, (HTTPError, ConnectionError, TimeoutError)) and not status_of(error)


def _reply(error: BaseException) -> str:
    message = getattr(error, "server_message", None) or _first_line(error)
    return " ".join(str(message).split())[:LONGEST_SAID].rstrip(".")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_SAID]


def commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit of a Hub dataset's revision; errors of the Hub's client pass through.

    Raises:
        InputError: what answered is no Hub.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
        known = commit is None or bool(COMMIT.fullmatch(commit))
    except (JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError, RecursionError):
        known = False
    if not known:
        raise InputError(f"{name} cannot be read: {NO_HUB}")
    return commit


def recorded(name: str, file: str, kind: str, revision: str | None = None) -> dict[str, Any] | None:
    """Return a JSON file of a folder or of a repository ("dataset" or "model").

    Empty where there is none; None where the Hub is out of reach and the cache does not hold the file.
    """
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    if Path(name).exists():
        found = Path(name) / file
        return read_object(found) if found.exists() else {}
    try:
        return read_object(Path(hf_hub_download(name, file, repo_type=kind, revision=revision)))
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return {}
    except (HfHubHTTPError, HTTPError, OSError):
        return None
