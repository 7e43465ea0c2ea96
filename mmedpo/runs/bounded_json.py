"""Reader of untrusted JSON, with limits on depth, digits and time."""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH = 100  # most nested lists and objects
BROKEN = 100  # most unfinished objects in a text
DECODER = json.JSONDecoder()
BEGINNING = re.compile(r'\{\s*["}]')


def loads(text: str | bytes | bytearray) -> Any:
    """Parse JSON, as `json.loads`.

    Raises:
        ValueError: not JSON, deeper than `DEPTH`, or with an integer of more digits than Python reads.
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
    """Return the last complete JSON object in a text; None without one, or if the search would take too long."""
    found, broken, start = None, 0, 0
    while broken <= BROKEN and (opening := BEGINNING.search(text, start)):
        try:
            found, start = DECODER.raw_decode(text, opening.start())
        except RecursionError:  # further attempts would take as long
            return None
        except ValueError:
            start, broken = opening.start() + 1, broken + 1
    return None if broken > BROKEN or is_deep(found) else found


def is_deep(value: Any) -> bool:
    """Return True if lists and objects nest deeper than `DEPTH`."""
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
