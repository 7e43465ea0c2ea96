"""Time and length limits for chat templates, which are code from other people's repositories."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from mmedpo.errors import InputError

SECONDS = 20.0  # a template takes milliseconds
LONGEST = 2**20  # characters; a template adds a few hundred to the question


class _TooMuch(BaseException):
    """Limit exceeded. A BaseException, so that the code under test cannot catch it."""


def check(name: str, write: Callable[[], str], seconds: float = SECONDS) -> None:
    """Raise InputError where `write` takes longer than `seconds` or returns more than `LONGEST` characters.

    Other errors are ignored here; the later call of `write` reports them. Limits are checked at each line of Python, so
    a single huge operation is not interrupted.
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
    except Exception:  # an error of the template is reported when a question is rendered
        return
    finally:
        sys.settrace(before)
    if why:
        raise InputError(f"The chat template of {name!r} {why}. Use the template that the model was trained with.")
