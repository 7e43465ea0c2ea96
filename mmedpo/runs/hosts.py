"""Where endpoints are: their host, and whether it is this machine."""

from __future__ import annotations

import ipaddress

HUB = "the Hugging Face Hub"
ONLY_IN_RECIPES: set[str] = set()  # places that a recipe of this process names and nobody typed


def place(url: str) -> str:
    """Host and port as the client reads them, the port only if it is not the scheme's own."""
    import httpx2

    return httpx2.URL(url.strip().partition("#")[0]).netloc.decode("ascii").rpartition("@")[2]


def is_only_in_recipe(url: str) -> bool:
    """Whether a recipe, which may be anybody's, chose the host and port of a URL."""
    return place(url) in ONLY_IN_RECIPES


def is_remote(model: str) -> bool:
    """Whether a model's name stands for an endpoint that is not on this machine (http://..., hub:...)."""
    scheme, _, _ = model.strip().partition(":")
    if scheme.lower() in ("http", "https"):
        return not is_loopback(model.strip().partition("#")[0])
    return scheme.lower() == "hub"


def is_loopback(url: str) -> bool:
    """Whether a URL is literally of this machine: localhost, 127.0.0.0/8 or ::1, read as the client reads it. A name
    that resolves to them is not: what it resolves to may change."""
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
    """Where an endpoint is, of its name: the host alone, since user, path and query may be secrets."""
    import httpx2

    scheme, _, rest = model.strip().partition(":")
    if scheme.lower() == "hub":
        _, _, provider = rest.partition("@")
        return f"{HUB} ({provider})" if provider else HUB
    try:
        return httpx2.URL(model.strip().partition("#")[0]).raw_host.decode("ascii")
    except httpx2.InvalidURL:
        return "an unreadable address"
