"""Words and polarity of short medical answers, shared by the schema's row rules, curation and the metrics."""

from __future__ import annotations

import re
from typing import Literal

Polarity = Literal["yes", "no"]

_WORD = re.compile(r"\w+(?:['’.-]\w+)*", re.UNICODE)


def words(text: str) -> list[str]:
    """Lower-cased words of `text`; inner apostrophes, points and hyphens stay ("t2-weighted", "3.5", "crohn's")."""
    return _WORD.findall(text.casefold())


def polarity(text: str) -> Polarity | None:
    """ "yes" or "no" if the answer opens with it, or if exactly one of the two occurs as a whole word; else None."""
    found = [word for word in words(text) if word in ("yes", "no")]
    if not found:
        return None
    first = words(text)[0]
    if first in ("yes", "no") or len(set(found)) == 1:
        return "yes" if found[0] == "yes" else "no"
    return None


def carries(text: str, answer: str) -> bool:
    """True if the words of `answer` occur in `text`, whole and in order ("effusion" is not in "effusions")."""
    needle, hay = words(answer), words(text)
    return bool(needle) and any(hay[i : i + len(needle)] == needle for i in range(len(hay) - len(needle) + 1))
