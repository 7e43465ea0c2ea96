"""Requests spread over the endpoints of one model; one that dies is left out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import Any

from mmedpo.models.chat import ChatReply, ChatRequest, OnReplies

FAILED = "no answer after"  # beginning of a failure that another endpoint may not have
log = logging.getLogger(__name__)


class BatchEnded(Exception):
    """Raised in requests of a batch that has ended."""


class Dead(Exception):
    """Raised for a request that another endpoint may answer, since this one is unavailable."""


async def complete(living: list[Any], requests: Iterable[ChatRequest], on_replies: OnReplies | None) -> list[ChatReply]:
    """Return one reply per request, in order, as `ChatClient.complete`. A request is taken as soon as it can be sent.

    Args:
        living: `EndpointChat`s of one model, at least one; those that die are removed, and the last one never is.

    Raises:
        InputError: by an endpoint, of dead ones the last.
    """
    pending = enumerate(requests)
    replies: dict[int, ChatReply] = {}
    arrived: dict[int, ChatReply] = {}  # of `replies`, not yet passed on
    errors: list[Exception] = []
    workers = living[0].concurrency
    ending = asyncio.Event()

    @contextmanager
    def ended_by_errors() -> Iterator[None]:
        try:
            yield
        except Exception as error:
            errors.append(error)
            ending.set()

    def pass_on() -> None:
        """Pass on the replies of this turn of the event loop, together: each costs its receiver a commit."""
        found = dict(arrived)
        arrived.clear()
        if found and on_replies is not None:
            with ended_by_errors():
                on_replies(found)

    async def ask(worker: int, request: ChatRequest) -> ChatReply:
        failed: dict[Any, ChatReply] = {}
        reply: ChatReply
        while left := [client for client in living if client not in failed]:
            # By process too, since each process of a run may have one worker alone.
            client, alone = left[(worker + os.getpid()) % len(left)], len(living) == 1
            try:
                reply = await client.ask(batches[client], request, alone)
            except Dead as error:
                _leave_out(living, client, error)
                continue
            if reply.failure is None or not reply.failure.startswith(FAILED):
                return reply
            failed[client] = reply
        return reply

    async def work(worker: int) -> None:
        with suppress(BatchEnded), ended_by_errors():
            for i, request in pending:
                arrived[i] = replies[i] = await ask(worker, request)
                if len(arrived) == 1:
                    asyncio.get_running_loop().call_soon(pass_on)
                await asyncio.sleep(0)  # a reply is passed on before the next request is sent
                if ending.is_set():
                    return

    async with AsyncExitStack() as stack:
        batches = {client: await stack.enter_async_context(client.opened(workers, ending)) for client in living}
        try:
            await asyncio.gather(*map(work, range(workers)))
        finally:
            pass_on()
    if errors:
        raise errors[0]
    return [replies[i] for i in range(len(replies))]


def _leave_out(living: list[Any], client: Any, error: Dead) -> None:
    """Remove an endpoint that died, unless it is the last one, which is then waited for."""
    if client in living and len(living) > 1:
        living.remove(client)
        others = ", ".join(one.place for one in living)
        log.warning(
            "%s, asked for the model %r, is left out until the next start: it does not answer (%s). Its requests go to "
            "%s.", client.place, client.name, error, others,
        )  # fmt: skip
