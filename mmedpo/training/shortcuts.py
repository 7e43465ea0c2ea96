"""Verify optimisations: compute a batch both ways at the start of training, and use those that agree."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger

from mmedpo.training import images, sharing
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.reference import image_digest

if TYPE_CHECKING:
    from mmedpo.training.trainer import MMedPOTrainer

TOLERANCE = {"exact": 1e-4, "rounded": 5e-2}  # of log-probabilities, relative to the largest: float32; lower precision

NEAR = 32  # rows searched for other images

logger = get_logger(__name__)


def verify_optimisations(trainer: MMedPOTrainer) -> None:
    """Switch on the requested optimisations that the model computes correctly, in the trainer's collator.

    These are `prefix_sharing` (one row for both answers of a pair) and `encode_images_once`; without them each side is
    a row with its own images. The choice is logged. All processes call this together and decide alike.
    """
    collator = trainer.data_collator
    if not isinstance(collator, PreferenceCollator):
        return
    share, once = trainer.args.prefix_sharing, trainer.args.encode_images_once
    reasons: list[str] = []
    for tried in dict.fromkeys([(share, once), (share, False), (False, once), (False, False)]):
        chosen = dataclasses.replace(collator, share=tried[0], once=tried[1], keyed=False)
        reason = _disagreement(trainer, chosen) if any(tried) else None
        if reason is None:
            collator.share, collator.once = tried
            break
        reasons.append(reason)
    for name, used, asked, way in (
        ("prefix_sharing", collator.share, share, "prompt and images of a pair are read once for both answers"),
        ("encode_images_once", collator.once, once, "each distinct image of a batch is encoded once"),
    ):
        if used:
            logger.info(f"{name}: {way}.")
        elif asked:
            logger.warning(f"{name} is not used, which gives the same more slowly: {reasons[0]}.")


def _disagreement(trainer: MMedPOTrainer, collator: PreferenceCollator) -> str | None:
    """Return why a collator's batches cannot be used, None where log-probabilities agree with one row per side."""
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    parts = [part for part, used in ((sharing, collator.share), (images, collator.once)) if used]
    refusals = (part.refusal(model) for part in parts for model in models)
    if reason := next(filter(None, refusals), None):
        return reason
    pairs = _probe(trainer.train_dataset)
    if collator.share:
        pairs = [{**pair, "rejected_images": None} for pair in pairs]
    plain = dataclasses.replace(collator, share=False, once=False)
    model, was_training = trainer.model_wrapped, trainer.model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            expected, found = (
                trainer.answer_logps(model, trainer._prepare_inputs(way(pairs))) for way in (plain, collator)
            )
    except sharing.NotApartError as error:
        return str(error)
    finally:
        model.train(was_training)
    difference = (expected - found).abs().max() / expected.abs().max().clamp(min=1)
    difference = trainer.accelerator.gather(difference).max().item()  # every process decides alike
    exact = trainer.model.dtype == torch.float32 and trainer.accelerator.mixed_precision == "no"
    tolerance = TOLERANCE["exact" if exact else "rounded"]
    if difference <= tolerance:
        return None
    return f"log-probabilities differ by {difference:.1e} relative, more than {tolerance:.0e}"


def _probe(dataset: Any) -> list[dict[str, Any]]:
    """Return three pairs: the first and last show the same images, the second others if there are any near."""
    first, *others = itertools.islice(iter(dataset), NEAR)
    shown = [image_digest(image) for image in first["images"]]
    others = [pair for pair in others if [image_digest(image) for image in pair["images"]] != shown] or others
    return [first, *others[:1], first]
