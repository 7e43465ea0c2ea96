"""Number of tokens that images of different sizes add to a prompt, with few images processed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models.refusals import Sizes, extremes, prompt_tokens

SAMPLED = 24  # combinations of sizes processed beside the extremes


def image_tokens(
    processor: Any, shown: Collection[Sizes], prompts: Mapping[int, str]
) -> tuple[dict[Sizes, int], dict[Sizes, str]]:
    """Return the tokens that images of these sizes add to a prompt, and the reasons of the processor's refusals.

    The tokens include the tokenizer's first token. Blank images are processed, since tokens depend on sizes only. Of
    many sizes, the extremes and a sample are processed; the processor's own count gives the others, where it agrees
    with all that were processed.

    Args:
        prompts: a rendered prompt for each number of images.
    """
    added: dict[Sizes, int] = {}
    refused: dict[Sizes, str] = {}
    for number, prompt in prompts.items():
        alike = sorted(sizes for sizes in shown if len(sizes) == number)
        tried = {*extremes(alike), *random.Random(0).sample(alike, min(SAMPLED, len(alike)))}
        found, wrong = _processed(processor, prompt, tried)
        counted = {} if wrong else _counted(processor, alike)
        # The count may leave out what is the same for all sizes, such as marks around an image.
        differences = {found[sizes] - counted[sizes] for sizes in tried} if counted else set()
        if len(differences) == 1:
            (difference,) = differences
            found = {sizes: tokens + difference for sizes, tokens in counted.items()}
        else:
            others, more = _processed(processor, prompt, set(alike) - tried)
            found, wrong = found | others, wrong | more
        added |= found
        refused |= wrong
    return added, refused


def _processed(processor: Any, prompt: str, shown: Iterable[Sizes]) -> tuple[dict[Sizes, int], dict[Sizes, str]]:
    """Return as `image_tokens`, by processing blank images of each size."""
    added: dict[Sizes, int] = {}
    refused: dict[Sizes, str] = {}
    text_tokens = len(processor.tokenizer([prompt], add_special_tokens=False)["input_ids"][0])
    for sizes in shown:
        try:
            added[sizes] = prompt_tokens(processor, prompt, sizes) - text_tokens
        except InputError as error:
            added[sizes], refused[sizes] = 0, str(error)
    return added, refused


def _counted(processor: Any, shown: Sequence[Sizes]) -> dict[Sizes, int]:
    """Return tokens by the processor's own count, which has no public name; empty where it fails."""
    try:
        sizes = [(height, width) for images in shown for width, height in images]
        tokens = iter(processor._get_num_multimodal_tokens(image_sizes=sizes).num_image_tokens)
    except Exception:  # processors raise errors of any type
        return {}
    return {images: sum(itertools.islice(tokens, len(images))) for images in shown}
