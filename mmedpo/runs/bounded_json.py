"""JSON of others, read within bounds: what nests or counts without end is no JSON, and is refused in time."""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH = 100  # lists and objects within each other
BROKEN = 100  # objects begun in a text that end nowhere; what holds more is no answer
BEGINNING = re.compile(r'\{\s*["}]')


def loads(text: str | bytes | bytearray) -> Any:
    """As `json.loads`.

    Raises:
        ValueError: no JSON; it nests deeper than `DEPTH`, or holds a whole number of more digits than Python reads.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it nests deeper than {DEPTH}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("it holds a number of too many digits") from None
    if is_deep(value):
        raise ValueError(f"it nests deeper than {DEPTH}")
    return value


def last_object(text: str) -> dict[str, Any] | None:
    """The last whole JSON object in a text, or None; None too where the text is made to be read for ever."""
    decoder, found, broken, start = json.JSONDecoder(), None, 0, 0
    while broken <= BROKEN and (begun := BEGINNING.search(text, start)):
        try:
            found, start = decoder.raw_decode(text, begun.start())
        except RecursionError:  # each further try would take as long
            return None
        except ValueError:
            start, broken = begun.start() + 1, broken + 1
    return None if broken > BROKEN or is_deep(found) else found


def is_deep(value: Any) -> bool:
    """Whether lists and objects nest deeper than `DEPTH`."""
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
