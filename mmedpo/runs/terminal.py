"""Terminal output without escapes: replies, ids, file names and server errors cannot control the terminal."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console

MOVES = re.compile(r"\r(?!\n)|(\x1b\[A)+\Z")  # tqdm's moves to the start of a bar, and up to it
_formatwarning = warnings.formatwarning


def plain(text: str) -> str:
    """Return text without escapes, other control characters and direction marks; line ends and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else " " * letter.isspace() for letter in text
    )  # fmt: skip


def say(text: str) -> None:
    """Print text and flush, since output may be a pipe."""
    print(plain(text), flush=True)


class Screen(Console):
    """Console that prints text literally: [markup], :emoji: and escapes have no effect."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(each) if isinstance(each, str) else each for each in objects), **options)


class Plain:
    """Stream that makes all text `plain`: print, loggers and bars of libraries, tracebacks.

    Rich bypasses it to colour lines and move its bars; its input is plain already (`Screen`).
    """

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream  # rich looks for this name

    def write(self, text: str) -> int:
        match = MOVES.match(text)
        move = match[0] if match else ""
        self.rich_proxied_file.write(move + plain(text[len(move) :]))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return plain(super().getMessage())


def _warning(*args: Any, **kwargs: Any) -> str:
    return plain(_formatwarning(*args, **kwargs))


def silence_libraries() -> None:
    """Hide warnings of libraries that users cannot act on."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it warns of missing CPU kernels


def guard() -> None:
    """Make all output of this process plain text, whichever library prints it.

    Log messages and warnings are made plain separately: their handlers may hold the original stream, and rich replaces
    the stream while it shows a bar.
    """
    sys.stdout, sys.stderr = (
        one if one is None or isinstance(one, Plain) else Plain(one) for one in (sys.stdout, sys.stderr)
    )
    logging.setLogRecordFactory(_Record)
    warnings.formatwarning = _warning
    sys.excepthook = lambda *error: print("".join(traceback.format_exception(*error)), file=sys.stderr, end="")
