"""Text of data inside Markdown: it stays text, whatever a table, a model or a record of others holds."""

from __future__ import annotations

import re

# Of Markdown and HTML, the start of a link's target, of a block, and of a URL that would become a link by itself.
SPECIAL = re.compile(
    r"([\\`*|<~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[]|&(?=#?\w+;)|^[#>+-](?=[\s#>]|$)|(?<=^\d)[.)](?=\s)|(?<=\w):(?=//))"
)
OPEN = "[More information needed"  # how a card's open field begins (`publish.card`)


def inline(text: str) -> str:
    """Return text for one line or table cell of Markdown, with nothing in it that is read as markup."""
    return SPECIAL.sub(r"\\\1", closed(_line(text)))


def code(text: str) -> str:
    """Return text for a code span, which it does not end; in a table cell, too."""
    return closed(_line(text)).replace("`", "'").replace("|", "\\|")


def closed(text: str) -> str:
    """Return text that asks for nothing, as a card's open fields do."""
    return text.replace(OPEN, OPEN.replace("M", "m"))


def _line(text: str) -> str:
    return " ".join("".join(letter for letter in text if letter.isprintable() or letter.isspace()).split())
