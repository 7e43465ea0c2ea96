"""Limits of a run's chat calls: concurrency, pace and budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mmedpo.data.text import number_of
from mmedpo.errors import InputError, Stopped
from mmedpo.models.chat import AGAIN, ChatClient, ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.keys import Keys
from mmedpo.runs.options import check_types, option

if TYPE_CHECKING:
    from mmedpo.models.chat.batch_files import Batches


@dataclass(frozen=True)
class Limits:
    """Limits of all chat models of one run together; None is no limit.

    Args:
        concurrency: Requests in flight at once.
        requests_per_minute: Attempts sent, retries included, evenly spaced.
        max_calls: Requests that the cache cannot answer; retries and failures count once.
        max_tokens: Tokens of prompts and answers, as reported by endpoints. Requests in flight are finished, so that up
            to `concurrency` - 1 answers may exceed it.
        batches: Folder of batch files, in place of requests to endpoints.
        upload_batches: Send these files to the batch API of their endpoint, and fetch results from there.

    Raises:
        InputError: a limit under 1, or a budget for batches.
    """

    concurrency: int = 8
    requests_per_minute: int | None = None
    max_calls: int | None = None
    max_tokens: int | None = None
    batches: Path | None = None
    upload_batches: bool = False

    def __post_init__(self) -> None:
        for name, value in self._numbers().items():
            if value is not None and value < 1:
                raise InputError(f"The limit {name} is {value}; it must be at least 1.")
        if self.batches and (self.max_calls or self.max_tokens):
            raise InputError(
                "--max-calls and --max-tokens bound calls that are asked at once. Leave them out with --batch-api, and "
                "use --estimate, or the limits of the provider."
            )

    def _numbers(self) -> dict[str, int | None]:
        return {limit.name: getattr(self, limit.name) for limit in fields(self) if "batches" not in limit.name}

    def share(self, processes: int) -> Limits:
        """Return the limits of one of `processes`: an equal part, rounded down, at least 1."""
        if self.batches and processes > 1:
            raise InputError(f"--batch-api: {processes} processes would write the same batches. Start one.")
        shares = {name: value and max(1, value // processes) for name, value in self._numbers().items()}
        return replace(self, **shares)  # type: ignore[arg-type]


@dataclass(kw_only=True)
class Calling:
    """Options of commands that call chat endpoints; none of them changes an answer.

    Raises:
        InputError: an option of another type.
    """

    concurrency: int = option(8, "Most concurrent calls, over all chat models.")
    requests_per_minute: int | None = option(None, "Most requests a minute, over all chat models.")
    max_calls: int | None = option(None, "Budget: stop after this many new calls.")
    max_tokens: int | None = option(None, "Budget: stop after this many tokens of new calls.")
    third_parties: bool = field(default=False, init=False)  # consent, set by `recipes.parse` from the command line

    def __post_init__(self) -> None:
        check_types(self)

    @property
    def limits(self) -> Limits:
        return Limits(self.concurrency, self.requests_per_minute, self.max_calls, self.max_tokens)


class Pace:
    """Evenly spaced points in time, `per_minute` a minute (None: no spacing), shared by clients."""

    def __init__(self, per_minute: int | None = None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0

    def wait(self) -> float:
        """Reserve the next free point in time and return the seconds until then."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._gap
        return turn - now


class Budget:
    """Budget of a run: `limits`, `pace` and `keys` of all its chat models, and the `calls` and `tokens` used."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.pace = limits, Pace(limits.requests_per_minute)
        self.keys = Keys()
        self.calls = self.tokens = 0
        self.on_calls: Callable[[], object] = lambda: None  # is told of new calls

    @cached_property
    def batches(self) -> Batches | None:
        """Batch files in place of requests to endpoints, or None."""
        from mmedpo.models.chat.batch_files import Batches

        return Batches(self.limits.batches, self.limits.upload_batches) if self.limits.batches else None

    def ask(self, chat: ChatClient, requests: Iterable[ChatRequest], keep: OnReplies) -> None:
        """Ask `chat` the requests that the budget allows, and pass replies to `keep` by position as they arrive.

        Raises:
            Stopped: the budget does not allow all requests; the allowed ones are answered.
            InputError: raised by `chat` or `charge`.
        """
        wanted = iter(requests)
        asked = answered = 0

        def allowed() -> Iterator[ChatRequest]:
            nonlocal asked
            # Whole batches round as in a run without a limit.
            while not self._is_spent(asked - answered if chat.batch_size == 1 else 0):
                request = next(wanted, None)
                if request is None:
                    return
                asked += 1
                yield request

        def note(replies: Mapping[int, ChatReply]) -> None:
            nonlocal answered
            keep(replies)
            answered += len(replies)
            self.charge(replies.values(), chat.name)
            if answered < asked:
                self.refuse_spent()

        with suppress(Stopped):  # raised anew where requests are left
            chat.complete(allowed(), note)
        if answered < asked or next(wanted, None) is not None:
            self.refuse_spent()

    def charge(self, replies: Iterable[ChatReply], model: str) -> None:
        """Count new calls. Raises InputError if `max_tokens` is set and no tokens are reported."""
        for reply in replies:
            self.calls += 1
            self.tokens += (reply.prompt_tokens or 0) + (reply.completion_tokens or 0)
            if self.limits.max_tokens is not None and reply.text is not None and reply.completion_tokens is None:
                raise InputError(
                    f"The endpoint of {model!r} does not report how many tokens it used, so --max-tokens "
                    f"{self.limits.max_tokens} cannot be applied. Give --max-calls instead; answers so far are kept."
                )
        self.on_calls()

    def _is_spent(self, in_flight: int) -> bool:
        most_calls, most_tokens = self.limits.max_calls, self.limits.max_tokens
        no_calls = most_calls is not None and self.calls + in_flight >= most_calls
        return no_calls or (most_tokens is not None and self.tokens >= most_tokens)

    def refuse_spent(self) -> None:
        """Raise Stopped if no new calls are allowed."""
        most = {"calls": self.limits.max_calls, "tokens": self.limits.max_tokens}
        if self._is_spent(0):
            flags = ", ".join(f"--max-{what} {limit}" for what, limit in most.items() if limit is not None)
            raise Stopped(
                f"The budget ({flags}) is spent: {number_of(self.calls, 'new calls')}, "
                f"{number_of(self.tokens, 'tokens')}. Answers so far are kept: {AGAIN}."
            )
