"""Hosts of endpoints, and checks whether they are this machine."""

from __future__ import annotations

import ipaddress
import re

HUB = "the Hugging Face Hub"
_COMMA = re.compile(r",\s*(?=https?://|hub:)", re.IGNORECASE)  # between endpoints of one model
ONLY_IN_RECIPES: set[str] = set()  # `place`s that are in a recipe and were not typed on the command line


def endpoints(model: str) -> list[str]:
    """Return the single endpoints of a model's name (`http://a/v1#m,http://b/v1#m`); of another model, its name."""
    return _COMMA.split(model)


def place(url: str) -> str:
    """Return host and port as the HTTP client parses them, without the default port of the scheme."""
    import httpx2

    return httpx2.URL(url.strip().partition("#")[0]).netloc.decode("ascii").rpartition("@")[2]


def is_only_in_recipe(url: str) -> bool:
    """Return True if host and port of a URL come from a recipe, which is untrusted, and were not typed."""
    return place(url) in ONLY_IN_RECIPES


def is_remote(model: str) -> bool:
    """Return True if a model's name has an endpoint on another machine (http://..., hub:...)."""
    schemes = [(one, one.partition(":")[0].lower()) for one in endpoints(model.strip())]
    return any(
        not is_loopback(one.partition("#")[0]) if scheme in ("http", "https") else scheme == "hub"
        for one, scheme in schemes
    )


def is_loopback(url: str) -> bool:
    """Return True if a URL's host is localhost, 127.0.0.0/8 or ::1, parsed as the HTTP client does.

    Other names do not count, since their addresses may change.
    """
    import httpx2

    try:
        host = httpx2.URL(url).host
    except httpx2.InvalidURL:
        return False
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host(model: str) -> str:
    """Return the host of an endpoint, without user, path and query, which may be secrets."""
    import httpx2

    scheme, _, rest = model.strip().partition(":")
    if scheme.lower() == "hub":
        _, _, provider = rest.partition("@")
        return f"{HUB} ({provider})" if provider else HUB
    try:
        return httpx2.URL(model.strip().partition("#")[0]).raw_host.decode("ascii")
    except httpx2.InvalidURL:
        return "an unreadable address"
