"""Text of data on the terminal: it stays text, whatever a reply, an id, a file name or an error of a server holds."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console

MOVES = re.compile(r"\r(?!\n)|(\x1b\[A)+\Z")  # how tqdm begins a bar again, and goes up to it
_formatwarning = warnings.formatwarning


def plain(text: str) -> str:
    """Return text without escapes, other control characters and marks of direction; ends of lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else " " * letter.isspace() for letter in text
    )  # fmt: skip


def say(text: str) -> None:
    """Print text at once, also from a process whose output is a pipe."""
    print(plain(text), flush=True)


class Screen(Console):
    """A console that prints text as it is: no [markup], no :emoji: and no escapes are read in it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(each) if isinstance(each, str) else each for each in objects), **options)


class Plain:
    """A stream that takes text as `plain` leaves it, whoever writes: print, loggers and bars of libraries, tracebacks.

    Rich writes past it, for it colours lines and moves the cursor of its bars; what it is given is plain (`Screen`).
    """

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # the name by which rich finds it

    def write(self, text: str) -> int:
        begun = MOVES.match(text)
        kept = begun[0] if begun else ""
        self.rich_proxied_file.write(kept + plain(text[len(kept) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return plain(super().getMessage())


def _warning(*given: Any, **named: Any) -> str:
    return plain(_formatwarning(*given, **named))


def guard() -> None:
    """Make all that this process prints plain text, whichever library prints it.

    Logged messages and warnings are made plain by themselves: their handlers may have taken the stream before, and
    while rich shows a bar it takes the stream's place.
    """
    sys.stdout, sys.stderr = (
        one if one is None or isinstance(one, Plain) else Plain(one) for one in (sys.stdout, sys.stderr)
    )
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    sys.excepthook = lambda *error: print("".join(traceback.format_exception(*error)), file=sys.stderr, end="")
