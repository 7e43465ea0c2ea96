"""Code of others that makes a text, run once within bounds of time and length: a model's chat template."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mmedpo.errors import InputError

SECONDS = 20.0  # a template takes milliseconds
LONGEST = 2**20  # characters; a template writes some hundred around the question


class _TooMuch(BaseException):
    """Not an Exception, which the code under trial could handle."""


def check(name: str, write: Callable[[], str], seconds: float = SECONDS) -> None:
    """Raise InputError where `write` takes longer than `seconds`, or makes more text than `LONGEST`.

    Other errors are left to whoever calls `write` in earnest. Watched are the lines of Python, so that one operation
    of enormous size ends only with its memory.
    """
    ends, before = time.monotonic() + seconds, sys.gettrace()

    def watch(frame: FrameType, event: str, value: Any) -> Any:
        if time.monotonic() > ends or any(
            isinstance(held, str | list) and len(held) > LONGEST for held in (*frame.f_locals.values(), value)
        ):
            raise _TooMuch
        return watch

    why = ""
    sys.settrace(watch)
    try:
        if len(write()) > LONGEST:
            why = f"makes more than {LONGEST:,} characters of one question"
    except _TooMuch:
        why = f"did not end within {seconds:g} s and {LONGEST:,} characters"
    except (MemoryError, RecursionError, OverflowError) as error:
        why = f"did not end ({type(error).__name__})"
    except Exception:  # of the template itself: said where a question is rendered
        return
    finally:
        sys.settrace(before)
    if why:
        raise InputError(f"The chat template of {name!r} {why}. Use the template that the model was trained with.")
