"""Left and right in short medical texts, and answers that name the wrong side."""

from __future__ import annotations

import re
from functools import lru_cache

from mmedpo.data.normal_words import normal_words
from mmedpo.data.text import plain

# No side of the patient: the left of an image is the patient's right, and "right below" is just below.
_NO_SIDE = re.compile(
    r"\b(?:left|right)(?:[ -]hand)?(?: (?:side|half|part|portion|aspect|corner|edge))? (?:of|in|on) (?:the|this)"
    r" (?:image|picture|screen|scan|film|photo|photograph|slice)\b"
    r"|\b(?:image|picture|screen|scan|film|photo|photograph|slice)(?:'s)? (?:left|right)\b"
    r"|\bright (?:angles?|above|below|under|over|next|beside|behind|near|between|after|before|now|here|there)\b"
)
_JOINT = r"(?:-sided)?(?: ?[/&] ?|,? and(?: the)? |(?: [\w-]+){0,2},? or (?:[\w-]+ ){0,2}?)"
_BOTH = re.compile(
    rf"\bleft{_JOINT}right\b|\bright{_JOINT}left\b|\bbilateral(?:ly)?\b"
    r"|\bboth\b(?![^.,;:!?\n]{0,200} and\b)"  # "both the heart and the lung" names no side
)
_MARK = "bothside"  # word that stands for `_BOTH`


def sides(text: str) -> frozenset[str]:
    """Return the sides that a text states: "left", "right" and "both"; a denied side is not stated.

    Example:
        >>> sorted(sides("Not the right, but the left lung")), sorted(sides("left or right lung"))
        (['left'], ['both'])
    """
    found = normal_words(_BOTH.sub(_MARK, _NO_SIDE.sub(" ", plain(text).casefold())))
    return frozenset("both" if word == _MARK else word for word in found if word in ("left", "right", _MARK))


_gold_sides = lru_cache(maxsize=65536)(sides)


def is_conflict(answer: str, gold: str) -> bool:
    """Return True if the gold text names one side, and the answer names a side but not that one by itself.

    "left and right", "left or right", "both" and "bilateral" are "both", a side of its own. An answer that names both
    sides apart ("The left lung is clear, the right is not") is no conflict.
    """
    asked = _gold_sides(gold)
    if len(asked) != 1 or "both" in asked:
        return False
    named = sides(answer)
    return bool(named) and not asked & named
