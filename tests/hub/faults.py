"""What a test lets go wrong, and what it can see of the requests that came."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Received:
    """One request: `path` without the query, `body` in bytes that came, `status` None until (or if never) answered."""

    method: str
    path: str
    body: int = 0
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What becomes of the requests whose `METHOD /path` the regular expression `match` is found in.

    They wait `delay` seconds, and then: are answered by `status`; or lose their connection (TCP reset), after `cut`
    bytes of their own body, or of the answer's for a GET; or are carried out, and lose it instead of hearing so
    (`lost`). `skip` of them are left alone first, then `times` of them are met.
    """

    match: str
    status: int | None = None
    message: str = "as the test wants it"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    lost: bool = False
    times: int = 1
    skip: int = 0

    def meets(self, received: Received) -> bool:
        if self.times <= 0 or not re.search(self.match, str(received)):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


def reset(request: web.Request) -> web.Response:
    """End the connection by a reset; the answer returned goes nowhere."""
    if request.transport:
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        request.transport.abort()
    return web.Response()


async def read(request: web.Request, received: Received, fault: Fault | None) -> None:
    """Read the body, counting; up to `cut` bytes of it where the fault says so. Raises ConnectionResetError there."""
    if fault and fault.cut is not None and request.method != "GET":
        while received.body < fault.cut and (piece := await request.content.read(fault.cut - received.body)):
            received.body += len(piece)
        raise ConnectionResetError
    received.body = len(await request.read())


async def answer_in_part(request: web.Request, whole: web.StreamResponse, size: int) -> None:
    """Send the head and the first `size` bytes of an answer."""
    assert isinstance(whole, web.Response) and isinstance(whole.body, bytes)
    part = web.StreamResponse(status=whole.status, headers={**whole.headers, "Content-Length": str(len(whole.body))})
    await part.prepare(request)
    await part.write(whole.body[:size])
    await asyncio.sleep(0.05)  # a reset overtakes bytes that are still on their way
