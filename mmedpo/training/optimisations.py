"""Verify optimisations: compute a batch both ways at the start of training, and use those that agree."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather

from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.reference import image_digest
from mmedpo.training.sharing import NotApartError, image_refusal, prefix_refusal

TOLERANCE = {"exact": 1e-4, "rounded": 5e-2}  # of log-probabilities, relative to the largest: float32; lower precision

NEAR = 32  # rows searched for other images

Logps = Callable[[dict[str, torch.Tensor]], torch.Tensor]

logger = get_logger(__name__)


def verify_optimisations(
    collator: PreferenceCollator, config: MMedPOConfig, models: Sequence[Any], dataset: Any, logps: Logps, exact: bool
) -> None:
    """Switch on in the collator the optimisations of `config` that the models compute correctly.

    These are `prefix_sharing` (one row for both answers of a pair) and `encode_images_once`; without them each side is
    a row with its own images. The choice is logged. All processes call this together and decide alike.

    Args:
        models: the trained model, and the separate reference if there is one.
        dataset: pairs, of which some are tried.
        logps: returns log-probabilities of a batch's answer tokens (float, 2B x T) without gradients.
        exact: numbers are float32; lower precision has a larger tolerance.
    """
    share, once = config.prefix_sharing, config.encode_images_once
    reasons: list[str] = []
    for tried in dict.fromkeys([(share, once), (share, False), (False, once), (False, False)]):
        chosen = dataclasses.replace(collator, share=tried[0], once=tried[1], keyed=False)
        checks = [check for check, used in ((prefix_refusal, chosen.share), (image_refusal, chosen.once)) if used]
        reason = next(filter(None, (check(model) for check in checks for model in models)), None)
        if reason is None and checks:
            reason = _disagreement(chosen, dataset, logps, exact)
        if reason is None:
            collator.share, collator.once = tried
            break
        reasons.append(reason)
    for name, used, asked, way in (
        ("prefix_sharing", collator.share, share, "prompt and images of a pair are computed once for both responses"),
        ("encode_images_once", collator.once, once, "each distinct image of a batch is encoded once"),
    ):
        if used:
            logger.info(f"{name}: {way}.")
        elif asked:
            logger.warning(f"{name} is not used; results are the same, but slower: {reasons[0]}.")


def _disagreement(collator: PreferenceCollator, dataset: Any, logps: Logps, exact: bool) -> str | None:
    """Return why a collator's batches cannot be used, None where log-probabilities agree with one row per side."""
    pairs = _probe(dataset)
    if collator.share:
        pairs = [{**pair, "rejected_images": None} for pair in pairs]
    plain = dataclasses.replace(collator, share=False, once=False)
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
    """Return three pairs: the first and last show the same images, the second others if there are any near."""
    first, *others = itertools.islice(iter(dataset), NEAR)
    shown = [image_digest(image) for image in first["images"]]
    others = [pair for pair in others if [image_digest(image) for image in pair["images"]] != shown] or others
    return [first, *others[:1], first]
