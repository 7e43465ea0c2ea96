"""Settings of MMedPO training, as a TRL configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from trl import DPOConfig

from mmedpo.errors import InputError

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "sft", "mdpo_anchor")
UNSUPPORTED = {
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "truncation_mode": "keep_start",
}


@dataclass
class MMedPOConfig(DPOConfig):
    """`trl.DPOConfig` with what MMedPO adds, and without what its loss does not have.

    Differs from its parent: `loss_type` holds only `LOSS_TYPES`, and "sft" is the mean over pairs of each chosen side's
    mean token NLL (TRL's is over the batch's tokens, which batch size changes); `max_length` is None, because cutting a
    row may cut its image tokens. New are `weighted`, `prefix_sharing`, `reference_cache`, and the loss type
    "mdpo_anchor".
    """

    weighted: bool = field(
        default=True,
        metadata={
            "help": "Multiply each pair's preference loss by its `weight` column (the paper's equation 5). "
            "False is plain DPO on the same pairs: the control arm."
        },
    )
    prefix_sharing: bool = field(
        default=True,
        metadata={
            "help": "Read the prompt and images of a pair once for both answers where its sides see the same images. "
            "The loss stays the same; a check at the start of training falls back to separate rows where it would not."
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the reference's log-probabilities for later epochs, seeds and sweeps. What they "
            "depend on (weights, processor, settings, pair) is their name there, so that no stale one is found."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest row in tokens, image tokens included; a longer row is an error."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown:
            raise InputError(
                f"loss_type {unknown} is not supported: a clinical weight is defined for losses that are a mean over "
                f"pairs. Use one of {', '.join(LOSS_TYPES)} ('sft' is the NLL of the chosen side, 'mdpo_anchor' keeps "
                "its reward above 0; neither is weighted)."
            )
        changed = [name for name, only in UNSUPPORTED.items() if getattr(self, name) != only]
        if changed:
            raise InputError(f"{', '.join(changed)}: not supported by MMedPO's loss; leave TRL's default.")
        if self.reference_cache and self.sync_ref_model:
            raise InputError("reference_cache keeps what never changes; leave it out where sync_ref_model is on.")
        if self.beta <= 0:
            raise InputError(f"beta is {self.beta}; it must be positive.")
