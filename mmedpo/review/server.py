"""Server of the review page. It sends nothing to other machines, and the page loads nothing from them."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from mmedpo.data.text import unit_interval
from mmedpo.errors import InputError
from mmedpo.review import edits as edits_of_row
from mmedpo.review import shown
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import EDITED, NAME, Verdict, Verdicts

PAGE = Path(__file__).parent / "page"
FILES = {"/": "review.html", "/review.js": "review.js", "/viewer.js": "viewer.js", "/review.css": "review.css"}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
}  # fmt: skip
OPEN = ("/", "/review.js", "/viewer.js", "/review.css", "/login")  # before the password
COOKIE, PASSWORD = "mmedpo-review", "MMEDPO_REVIEW_PASSWORD"  # the latter is an environment variable
WRONG_PASSWORD = 1.0  # seconds until the next try
MOST_BYTES = 2**20  # of a request


@dataclass(frozen=True)
class Review:
    """What is reviewed, in which order, and where verdicts go.

    Attributes:
        places: of rows, in the order in which they are shown.
        blind: which side is chosen, and all that tells it, is hidden.
        seed: of the order of the sides in a blind review.
        restricted: name of the restricted source, or None.
    """

    pairs: Pairs
    places: list[int]
    verdicts: Verdicts
    blind: bool = False
    seed: int = 0
    restricted: str | None = None

    def swapped(self, id: str) -> bool:
        """Return True if a blind review shows the rejected side first."""
        return self.blind and unit_interval("sides", self.seed, id) < 0.5

    def done(self, reviewer: str) -> list[int]:
        """Return the positions on which a reviewer has given a verdict."""
        rows = {row for row, name in self.verdicts.last() if name == reviewer}
        return [position for position, place in enumerate(self.places) if self.pairs.rows[place].name in rows]

    def verdict(self, sent: Mapping[str, Any], reviewer: str) -> Verdict:
        """Return the verdict that a page sent.

        Raises:
            InputError: it cannot be used, or is about another version of the row.
        """
        row = self.pairs.read(self.places[int(sent["position"])])
        if sent["digest"] != digest(row) or sent.get("blind", self.blind) != self.blind:
            raise InputError(
                "The dataset, the order of its pairs or the kind of review has changed since this pair was shown. Load "
                "the page again."
            )
        before = {**shown.texts(row), "boxes": shown.boxes(row)}
        edits = (
            {} if self.blind else {name: sent[name] for name in EDITED if sent.get(name, before[name]) != before[name]}
        )
        better = {"first": "rejected" if self.swapped(row["id"]) else "chosen", "neither": "neither"}
        better["second"] = "chosen" if better["first"] == "rejected" else "rejected"
        said = better[sent["better"]] if self.blind and sent.get("better") else None
        decision = sent["decision"] if said is None else "accept" if said == "chosen" else "reject"
        given = Verdict(
            id=sent["id"], row=row["id"], digest=sent["digest"], reviewer=reviewer,
            time=datetime.now(UTC).isoformat(timespec="seconds"), decision=decision, seconds=sent.get("seconds"),
            reason=sent.get("reason") or "", relevance=None if self.blind else sent.get("relevance"), better=said,
            before={name: before[name] for name in edits}, after=edits,
        )  # fmt: skip
        if fault := edits_of_row.fault(row, edits):
            raise InputError(f"The edited pair cannot be used: {fault}.")
        return given


class Site:
    """Handlers of the page's requests. Addresses hold positions and no ids, which may name patients."""

    def __init__(self, review: Review, host: str, password: str | None) -> None:
        self.review, self.host, self.password = review, host, password
        self.session = secrets.token_urlsafe(32)  # cookie of those who gave the password

    def application(self) -> web.Application:
        made = web.Application(middlewares=[self.guard], client_max_size=MOST_BYTES)
        for path, name in FILES.items():
            made.router.add_get(path, partial(self.file, PAGE / name))
        made.router.add_post("/login", self.login)
        made.router.add_get("/api/start", self.start)
        made.router.add_get("/api/pairs/{position:\\d+}", self.pair)
        made.router.add_get("/api/images/{position:\\d+}/{side:first|second}/{number:\\d+}", self.image)
        made.router.add_post("/api/verdicts", self.add)
        return made

    @web.middleware
    async def guard(self, request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> web.StreamResponse:
        """Refuse pages of other sites, and everybody without the password; turn errors into messages."""
        own = {"localhost", "127.0.0.1", "[::1]", self.host}
        if is_own(self.host) and re.sub(r":\d+$", "", request.host) not in own:
            return _said("This name is not the review's. Open the address that the command printed.", 403)
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            return _said("Another site sent this request.", 403)
        if self.password and not self.may_read(request) and request.path not in OPEN:
            return _said("Give the password first.", 401)
        try:
            response: web.StreamResponse = await handler(request)
        except InputError as error:
            response = _said(str(error), 409)
        except OSError as error:
            response = _said(f"{error.filename or 'A file'}: {error.strerror or error}. Tell who runs the server.", 507)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError):
            # No page of ours sends that.
            response = _said("The request is not of this page. Load the page again.", 400)
        except web.HTTPException as error:
            response = _said(f"{error.reason}.", error.status)
        response.headers.update(SAFE)
        return response

    def may_read(self, request: web.Request) -> bool:
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(errors="replace"), self.session.encode())

    async def file(self, file: Path, request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file)

    async def login(self, request: web.Request) -> web.Response:
        given = str((await request.json())["password"])
        if not hmac.compare_digest(given.encode(), (self.password or "").encode()):
            await asyncio.sleep(WRONG_PASSWORD)
            return _said("This is not the password.", 401)
        response = web.json_response({})
        response.set_cookie(COOKIE, self.session, httponly=True, samesite="Strict")
        return response

    async def start(self, request: web.Request) -> web.Response:
        review, reviewer = self.review, _reviewer(request)
        return web.json_response({
            "name": review.pairs.folder.resolve().name, "pairs": len(review.places), "blind": review.blind,
            "restricted": review.restricted, "done": review.done(reviewer) if reviewer else [],
        })  # fmt: skip

    async def pair(self, request: web.Request) -> web.Response:
        review, position = self.review, int(request.match_info["position"])
        place = review.places[position]
        row = await asyncio.to_thread(review.pairs.read, place)
        said = review.verdicts.last()
        mine = said.get((row["id"], _reviewer(request)))
        facts = {
            "position": position, "digest": digest(row),
            "mine": mine and {**asdict(mine), "better": _place_of(mine.better, review.swapped(row["id"]))},
            "others": sum(id == row["id"] for id, _ in said) - (mine is not None),
        }  # fmt: skip
        about = {} if review.blind else shown.about(row, review.pairs.rows[place])
        return web.json_response({**shown.pair(row, review.swapped(row["id"])), **facts, **about})

    async def image(self, request: web.Request) -> web.Response:
        asked, review = request.match_info, self.review
        row = await asyncio.to_thread(review.pairs.read, review.places[int(asked["position"])])
        images = shown.sides(row, review.swapped(row["id"]))[asked["side"] == "second"].images
        return web.Response(body=images[int(asked["number"])]["bytes"], content_type="image/png")

    async def add(self, request: web.Request) -> web.Response:
        verdict = self.review.verdict(await request.json(), _reviewer(request))
        self.review.verdicts.append([verdict])
        return web.json_response({})


def serve(review: Review, host: str, port: int, password: str | None, ready: Callable[[str], None]) -> None:
    """Serve a review until it is interrupted.

    Args:
        host: address to listen on.
        password: asked for before anything is shown; required where `host` is not of this machine alone.
        ready: gets the page's address.

    Raises:
        InputError: other machines could connect and no password is set, or the port cannot be opened.
    """
    if not password and not is_own(host):
        raise InputError(
            f"--host {host} opens the review to other machines. Set a password in {PASSWORD}, or leave out --host and "
            "reach this machine by an SSH tunnel."
        )

    async def run() -> None:
        runner = web.AppRunner(Site(review, host, password).application(), access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            ready(f"http://{'localhost' if is_own(host) else host}:{runner.addresses[0][1]}/")
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    try:
        asyncio.run(run())
    except OSError as error:
        raise InputError(f"{host}:{port} cannot be opened: {error.strerror}. Give another --port.") from None


def is_own(host: str) -> bool:
    """Return True if only this machine can connect to a host that is listened on."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reviewer(request: web.Request) -> str:
    return unquote(request.headers.get("X-Reviewer", ""))[:NAME]


def _place_of(better: str | None, swapped: bool) -> str | None:
    """Return "first" or "second" for the side that a blind reviewer found better."""
    if better not in ("chosen", "rejected"):
        return better
    return "first" if (better == "chosen") != swapped else "second"


def _said(sentence: str, status: int) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
