"""Prompts of a curation, and answers that repeat them."""

from __future__ import annotations

from pathlib import Path

from mmedpo.data.text import carries, words
from mmedpo.models.chat.prompts import Prompts

_PROMPTS = Prompts(Path(__file__).parent)
render, contents = _PROMPTS.render, _PROMPTS.contents


def echoes(text: str, prompt: str) -> bool:
    """Return True where `text` is a placeholder without a word ("..."), or three or more words in a row of `prompt`."""
    said = words(text)
    return bool(text.strip()) and (not said or (len(said) >= 3 and carries(prompt, text)))
