"""Keys of endpoints: one per host, never sent unencrypted to another machine.

Recipes and records name endpoints; keys are read from environment variables only.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from mmedpo.errors import InputError
from mmedpo.runs.hosts import is_loopback, is_only_in_recipe, place

if TYPE_CHECKING:
    import httpx2

VARIABLE = "MMEDPO_API_KEY"
_SENT: dict[str, str] = {}  # value of `VARIABLE`: the one host that this process sends it to
HOST = re.compile(r"[a-z0-9]+(-+[a-z0-9]+)*(\.[a-z0-9]+(-+[a-z0-9]+)*)*")  # hosts with distinct variables


class Keys:
    """Keys of the endpoints of one run; shared by its clients."""

    def __init__(self) -> None:
        self._plain: dict[str, bool] = {}  # host and port: True if it gets `MMEDPO_API_KEY`

    def of(self, url: str | None, given: str | None = None) -> str | None:
        """Return the key to send to `url`, None for the Hub; no key where there is none or the URL has a login.

        In order: `given`, the host's own `variable`, `MMEDPO_API_KEY` if the run has one host only, the Hub's token for
        the Hub's endpoints. A host that only a recipe names gets the key of its own `variable` only.

        Raises:
            InputError: `MMEDPO_API_KEY` would go to several hosts, of this run or this process; a key or login would
                cross a network over http; or a key has characters that no header can have.
        """
        from huggingface_hub import get_token

        key = (self._of_url(url, given) if url is not None else given or get_token() or "") or ""
        if not key.strip().isascii() or not key.strip().isprintable():
            raise InputError(
                f"The endpoint's key ({VARIABLE}) has characters that are not allowed in HTTP headers; copy it again."
            )
        return key.strip() or None

    def _of_url(self, url: str, given: str | None) -> str | None:
        from huggingface_hub import get_token

        host, own = place(url), variable(url)
        login, key, plain = bool(_url(url).userinfo), given, False
        if not (login or key):
            key = _read(own) if own else None
            if not (key or is_only_in_recipe(url)):
                plain = bool(key := _read(VARIABLE))
                key = key or (get_token() if on_hub(url) else None)
        self._plain[host] = plain
        if len(self._plain) > 1 and any(self._plain.values()):
            raise InputError(
                f"{VARIABLE} is a key for one host, but this run uses {', '.join(self._plain)}. Unset it, and set "
                f"{_listed(self._plain)} to the keys of the hosts that need one."
            )
        if (login or key) and _url(url).scheme == "http" and not is_loopback(url):
            kinds = {"The URL's login": login, "The key": given, VARIABLE: plain, own: True}
            what = next(name for name, holds in kinds.items() if holds)
            raise InputError(
                f"{what} would be sent to {host} over http, without encryption. Use https, a tunnel to this "
                "machine (http://localhost:port/v1), or leave it out."
            )
        if plain and (first := _SENT.setdefault(str(key), host)) != host:  # by a client without a run, or another run
            raise InputError(
                f"{VARIABLE} is a key for one host: this process sends it to {first}, not to {host}. Set "
                f"{own or VARIABLE} to the key of {host}{'' if own else ', in a process of its own'}."
            )
        return None if login else key


def variable(url: str) -> str | None:
    """Return the variable for the key of a URL's host and port, such as `MMEDPO_API_KEY__MY__CLINIC_ORG___8443`.

    `.` becomes `_`, `-` becomes `__`, and `:` before a port other than the scheme's becomes `___`. None for hosts that
    would be ambiguous, such as `my_host` or `[::1]`.
    """
    host, _, port = place(url).partition(":")
    if not HOST.fullmatch(host):
        return None
    name = host.replace("-", "__").replace(".", "_") + (f"___{port}" if port else "")
    return f"{VARIABLE}__{name.upper()}"


def on_hub(url: str) -> bool:
    """Return True where a URL is an endpoint of the Hugging Face Hub, which gets the Hub's token."""
    return _url(url).scheme == "https" and _url(url).host.endswith((".huggingface.co", ".huggingface.cloud"))


def advice(url: str | None) -> str:
    """Return how to give the key of `url`, None for the Hub, where it was refused."""
    if url is None:
        return "Set HF_TOKEN to a valid token, or log in with `hf auth login`"
    names = [variable(url), *([] if is_only_in_recipe(url) else [VARIABLE, "HF_TOKEN" * on_hub(url)])]
    if not any(names):
        return "Give the endpoint on the command line: a host of this form that only a recipe names gets no key"
    return f"Set {' or '.join(filter(None, names))} to a valid key"


def secrets(key: str | None, url: str | None) -> list[str]:
    """Return key, password and query values in each form that a server may quote, the longest first."""
    found = _url(url or "")
    login = base64.b64encode(f"{found.username}:{found.password}".encode()).decode() if found.password else ""
    query = found.query.decode("ascii")
    values = [part.partition("=")[2] for part in query.split("&")] + [value for _, value in parse_qsl(query)]
    encoded = found.userinfo.decode("ascii").partition(":")[2]
    return sorted({key or "", login, found.password or "", encoded, *values} - {""}, key=len, reverse=True)


def _url(url: str) -> httpx2.URL:
    """Parse a URL exactly as the client does."""
    import httpx2

    return httpx2.URL(url)


def _read(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _listed(places: dict[str, bool]) -> str:
    names = [variable(f"https://{host}") for host in places]
    return " and ".join(name for name in names if name) or "no other"
