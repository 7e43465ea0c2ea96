"""Text of data on the terminal: it stays text, whatever a reply, an id, a file name or an error of a server holds."""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

from rich.console import Console


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


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def guard() -> None:
    """Print warnings and tracebacks of this process as plain text, too."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())
    sys.excepthook = lambda *error: print(plain("".join(traceback.format_exception(*error))), file=sys.stderr, end="")
