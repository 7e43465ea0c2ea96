"""Escape untrusted text (of tables, models and records) for Markdown."""

from __future__ import annotations

import re

# Characters of Markdown and HTML; starts of link targets, blocks and bare URLs, which would become links.
SPECIAL = re.compile(
    r"([\\`*|<~]|(?<=\bwww)\.|(?<!\w)_|_(?!\w)|(?<=\])[(\[]|&(?=#?\w+;)|^[#>+-](?=[\s#>]|$)|(?<=^\d)[.)](?=\s)|(?<=\w):(?=//))"
)
MATH = re.compile(r"\$|\\\\(?=[(\[])")  # starts of formulas on the Hub and GitHub, the backslash escaped
OPEN = "[More information needed"  # start of a card's open field (`publish.card`)


def inline(text: str) -> str:
    """Return text escaped for one line or table cell of Markdown."""
    return MATH.sub(lambda sign: f"&#{ord(sign[0][0])};", SPECIAL.sub(r"\\\1", closed(_line(text))))


def code(text: str) -> str:
    """Return text escaped for a code span, also inside a table cell."""
    return closed(_line(text)).replace("`", "'").replace("|", "\\|")


def closed(text: str) -> str:
    """Return text without the mark of a card's open field."""
    return text.replace(OPEN, OPEN.replace("M", "m"))


def _line(text: str) -> str:
    return " ".join("".join(letter for letter in text if letter.isprintable() or letter.isspace()).split())
