"""Tokens that stand for an image in a model's prompt. Texts of a dataset must not contain them."""

from __future__ import annotations

import re

# From the processors in transformers 5.23 and the original code of LLaVA, InternVL, DeepSeek-VL, Phi-3 and Qwen:
# <image>, </img>, <IMG_CONTEXT>, <image_soft_token>, <start_of_image>, <|image_pad|>, <|vision_start|>, [IMG_END], ...
PLACEHOLDER = re.compile(
    r"""
      </?(?:image|img|video)\d*>                                        # LLaVA, InternVL, Kosmos, Video-LLaVA
    | <(?:image|img|im|video)[ _-]?(?:context|newline|pad|patch|placeholder|soft_token|start|end)>
    | <(?:start|end)_of_(?:image|img|video)>                            # Gemma
    | <low_res_im_start> | <fake_token_around_image> | <global-img> | <row_\d+_col_\d+>  # Molmo, Idefics
    | \[IMG(?:_BREAK|_END)?\]                                           # Pixtral
    | <\|[^<>|]*(?:image|img|video|vision)[^<>|]*\|> | <\|(?:media_pad|patch|tile_[xy]_separator)\|>
    """,
    re.VERBOSE | re.IGNORECASE,
)


def fault(text: str, own: str | None = None) -> str | None:
    """Return the fault of a text with a placeholder of any model family, or a processor's `own` one; else None."""
    found = PLACEHOLDER.search(text)
    held = own if own and own in text else found and found[0]
    return f"contains {held!r}, the placeholder of an image; remove it" if held else None


def last_end(prompt: str, own: str | None = None) -> int:
    """Return the index behind the last placeholder in a rendered prompt; the prompt's length where there is none."""
    ends = [found.end() for found in PLACEHOLDER.finditer(prompt)]
    ends += [prompt.rindex(own) + len(own)] if own and own in prompt else []
    return max(ends, default=len(prompt))
