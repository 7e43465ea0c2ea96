"""Verify optimisations: compute a batch both ways at the start of training, and use those that agree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather

from mmedpo.data.images import digest, open_rgb
from mmedpo.models.answers import LOOK_AHEAD
from mmedpo.models.prompts import TOLERANCE, Share
from mmedpo.models.sharing import NotApartError, image_refusal, prefix_refusal
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig

SHARED = {  # by `PreferenceCollator.share`
    "images": "all questions about the same images of a batch follow one copy of them",
    "prompt": "prompt and images of a pair are computed once for both responses",
    "": "",
}
ONCE = "each distinct image of a batch is encoded once"
NEAR = 32  # rows searched for other images

Logps = Callable[[dict[str, torch.Tensor]], torch.Tensor]

logger = get_logger(__name__)


def verify_optimisations(
    collator: PreferenceCollator, config: MMedPOConfig, models: Sequence[Any], dataset: Any, logps: Logps, exact: bool
) -> None:
    """Switch on in the collator the optimisations of `config` that the models compute correctly.

    These are `prefix_sharing` (one row for all that is asked about the same images, or else for both answers of a pair)
    and `encode_images_once`; without them each side is a row with its own images. The choice is logged. All processes
    call this together and decide alike.

    Args:
        models: the trained model, and the separate reference if there is one.
        dataset: pairs, of which some are tried.
        logps: returns log-probabilities of a batch's answer tokens (float, 2B x T) without gradients.
        exact: numbers are float32; lower precision has a larger tolerance.
    """
    shares: list[Share] = ["images", "prompt", ""] if config.prefix_sharing else [""]
    if type(collator.processor).__name__ in LOOK_AHEAD:
        shares = shares[1:] or shares
    reasons: list[str] = []
    for share, once in itertools.product(shares, [True, False] if config.encode_images_once else [False]):
        chosen = dataclasses.replace(collator, share=share, once=once)
        checks = [check for check, used in ((prefix_refusal, share), (image_refusal, once)) if used]
        reason = next(filter(None, (check(model) for check in checks for model in models)), None)
        if reason is None and checks:
            reason = _disagreement(chosen, dataset, logps, exact)
        if reason is None:
            collator.share, collator.once = share, once
            break
        reasons.append(reason)
    for name, asked, used in (
        ("prefix_sharing", config.prefix_sharing, SHARED[collator.share]),
        ("encode_images_once", config.encode_images_once, collator.once and ONCE),
    ):
        if used:
            logger.info(f"{name}: {used}.")
            if used == SHARED["prompt"] and reasons:
                logger.warning(f"prefix_sharing is used within pairs only: {reasons[0]}.")
        elif asked:
            logger.warning(f"{name} is not used; results are the same, but slower: {reasons[0]}.")
    if config.pairs_per_image > 1 and collator.share != "images":
        logger.warning("pairs_per_image orders the pairs, but nothing is shared between questions about an image here.")


def _disagreement(collator: PreferenceCollator, dataset: Any, logps: Logps, exact: bool) -> str | None:
    """Return why a collator's batches cannot be used, None where log-probabilities agree with one row per side."""
    pairs = _probe(dataset)
    if collator.share:
        pairs = [{**pair, "rejected_images": None} for pair in pairs]
    plain = dataclasses.replace(collator, share="", once=False)
    try:
        expected, found = (logps(way(pairs)) for way in (plain, collator))
    except NotApartError as error:
        return str(error)
    difference = gather((expected - found).abs().max() / expected.abs().max().clamp(min=1))
    largest, tolerance = difference.max().item(), TOLERANCE["exact" if exact else "rounded"]
    if largest <= tolerance:  # every process decides alike
        return None
    return f"log-probabilities differ by {largest:.1e} relative, more than {tolerance:.0e}"


def _probe(dataset: Any) -> list[dict[str, Any]]:
    """Return pairs of which all but the second, if there is a second, show the same images, with two questions."""

    def shown(pair: dict[str, Any]) -> list[str]:
        return [digest(open_rgb(image)) for image in pair["images"]]

    first, *others = itertools.islice(iter(dataset), NEAR)
    images = shown(first)
    others = [*itertools.islice((pair for pair in others if shown(pair) != images), 1)] or others
    *before, last = first["prompt"]
    other = {**first, "prompt": [*before, {**last, "content": f"{last['content']} Why?"}],
             "chosen": first["rejected"], "rejected": first["chosen"]}  # fmt: skip
    return [first, *others[:1], other, first]
