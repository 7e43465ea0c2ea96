"""Settings of a training: `RunArguments`, and MMedPO's as a TRL configuration."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from trl import DPOConfig

from mmedpo import schema
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.runs.options import outside, refuse, unfit
from mmedpo.training import zero

# Means over pairs, which a weight per pair can scale.
PREFERENCE_LOSSES = ("sigmoid", "ipo", "hinge", "robust", "sigmoid_norm", "bco_pair")
ADDED_LOSSES = {  # never weighted, since they do not depend on the rejected response's relevance
    "sft": "the NLL of the chosen side",
    "mdpo_anchor": "keeps the chosen side's reward above 0",
    "tdpo_kl": "the token-wise KL divergence to the reference",
}
LOSS_TYPES = (*PREFERENCE_LOSSES, *ADDED_LOSSES)
MIXTURE_WEIGHTS = ("own", "anew")
SORTED = {"aot", "aot_unpaired"}  # of TRL
SMOOTHED = ("sigmoid", "robust")
UNSUPPORTED = {
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "truncation_mode": "keep_start",
}


@dataclass
class RunArguments:
    """Data and output of a run; other settings are in `MMedPOConfig` and TRL's `ModelConfig`."""

    dataset_name: list[str] = field(
        metadata={
            "help": "Preference datasets, mixed where several: folders of `mmedpo curate` or Hub ids. source:FOLDER "
            "trains on the gold answers of a source, but its test split, with loss_type sft."
        }
    )
    output: str = field(metadata={"help": "Folder for the adapter; it must not exist."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    dispreference: str = field(
        default="all",
        metadata={"help": "Kind of pair to train on: all, hallucinated_response or lesion_noise."},
    )
    dataset_revision: list[str] | None = field(
        default=None,
        metadata={
            "help": "Branch, tag or commit of a dataset on the Hub, one for each dataset; its commit is recorded."
        },
    )
    dataset_shares: list[float] | None = field(
        default=None,
        metadata={
            "help": "Share of an epoch's pairs for each of several datasets, as 0.7 0.3. An epoch has as many pairs "
            "as the datasets together; a small dataset repeats, a large one is sampled. None: all pairs, once."
        },
    )
    mixture_weights: str | None = field(
        default=None,
        metadata={
            "help": "Weights of several datasets: own (as they are, the default) or anew (normalised from the clinical "
            "relevance of the whole mixture)."
        },
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split to evaluate on during training; needs eval_strategy."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Stream the dataset, without a copy in the cache; needs max_steps."},
    )
    adapter_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Adapter to continue from, such as that of a supervised run (Hub id or folder). It is trained "
            "further. The reference is the model with this adapter, unchanged."
        },
    )
    resume: bool = field(default=False, metadata={"help": "Continue an interrupted run from its last checkpoint."})
    third_parties: bool = field(default=False, init=False)  # consent, set by `recipes.parse` from the command line

    def __post_init__(self) -> None:
        if self.dispreference not in ("all", *schema.DISPREFERENCES):
            raise InputError(
                f"dispreference {self.dispreference!r} is unknown; use all or {' or '.join(schema.DISPREFERENCES)}."
            )
        for name, kind in (("dataset_name", str), ("dataset_revision", str), ("dataset_shares", (int, float))):
            value = getattr(self, name)
            value = [value] if isinstance(value, kind) else value  # recipes have one without a list
            if value is not None and not (isinstance(value, list) and all(isinstance(one, kind) for one in value)):
                raise InputError(f"{name} is {value!r}; give {'texts' if kind is str else 'numbers'}, one a dataset.")
            setattr(self, name, value)
        self._refuse_mixture()

    def _refuse_mixture(self) -> None:
        """Raise InputError for settings of a mixture that cannot apply."""
        names, shares = self.dataset_name, self.dataset_shares
        several = len(names) > 1
        count = number_of(len(names), "datasets")
        cases = (
            (len({os.path.realpath(name) for name in names}) < len(names), "dataset_name has a dataset twice"),
            (
                self.dataset_revision and len(self.dataset_revision) != len(names),
                f"dataset_revision has {len(self.dataset_revision or [])} entries for {count}",
            ),
            (shares and not several, "dataset_shares needs several datasets"),
            (shares and several and len(shares) != len(names), f"dataset_shares has {len(shares or [])} for {count}"),
            (
                shares and not (all(share > 0 for share in shares) and math.isfinite(sum(shares))),
                f"dataset_shares are {shares}; give positive numbers",
            ),
            (self.mixture_weights and not several, "mixture_weights needs several datasets"),
            (
                self.mixture_weights not in (None, *MIXTURE_WEIGHTS),
                f"mixture_weights is {self.mixture_weights!r}; use {' or '.join(MIXTURE_WEIGHTS)}",
            ),
            (
                several and self.streaming,
                "streaming takes one dataset, since the sizes of several must be known; leave it out",
            ),
        )
        refuse([sentence for wrong, sentence in cases if wrong])

    def plain(self) -> dict[str, Any]:
        """Return the settings, of one dataset as texts instead of lists."""
        single = len(self.dataset_name) == 1
        revision = self.dataset_revision
        return {
            **vars(self),
            "dataset_name": self.dataset_name[0] if single else self.dataset_name,
            "dataset_revision": revision[0] if single and revision else revision,
        }


@dataclass
class MMedPOConfig(DPOConfig):
    """`trl.DPOConfig` with MMedPO's settings, and without those its loss does not have.

    Differences from the parent: `loss_type` takes `LOSS_TYPES` only, new among them "mdpo_anchor" and "tdpo_kl", and is
    by default "sigmoid" and "sft", since "sigmoid" alone was worse than both (docs/study.md). "sft" is the mean over
    pairs of each chosen side's mean token NLL; TRL's mean over the batch's tokens depends on the batch size.
    `label_smoothing` applies to "sigmoid" too (conservative DPO), where TRL ignores it. `max_length` is None, since
    cutting a row may cut its image tokens. `train_sampling_strategy` "group_by_length" also groups by kind of pair. The
    other fields below are new.
    """

    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid", "sft"],
        metadata={"help": f"Losses of a pair, summed with loss_weights: one or several of {', '.join(LOSS_TYPES)}."},
    )
    weighted: bool = field(
        default=True,
        metadata={
            "help": "Multiply each pair's preference loss by its `weight` column (the paper's equation 5). "
            "False: plain DPO on the same pairs, the control arm."
        },
    )
    prefix_sharing: bool = field(
        default=True,
        metadata={
            "help": "Compute images and what prompts begin with once for all pairs of a batch about the same images. "
            "The loss does not change; if a check at the start of training finds a difference, it is not used."
        },
    )
    reference: str = field(
        default="start",
        metadata={
            "help": "Reference of a continued adapter (adapter_name_or_path): start, the model with the adapter as it "
            "was, or base, the model without it."
        },
    )
    pairs_per_image: int = field(
        default=1,
        metadata={
            "help": "Fill steps with up to this many pairs about each image, whose tokens are then computed once for "
            "all of them (prefix_sharing). It decides which pairs meet in a step. 1: pairs are drawn one by one."
        },
    )
    reference_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the reference's log-probabilities, for later epochs, seeds and sweeps. Each is stored "
            "under a digest of weights, processor, settings and pair, so that a changed one is computed again."
        },
    )
    encode_images_once: bool = field(
        default=True,
        metadata={
            "help": "Encode each distinct image of a batch once, and use the result for the reference too where the "
            "vision tower is the same. The loss does not change; checked as prefix_sharing is."
        },
    )
    projector_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the projector between vision tower and language model. None: the projector is "
            "not trained. The vision tower is never trained."
        },
    )
    bco_shift: bool = field(
        default=False,
        metadata={
            "help": "Take BCO's reward shift off both sides' rewards in bco_pair: the weighted mean reward of all "
            "earlier steps. False: no shift, as in TRL."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Longest row in tokens, image tokens included; a longer row is an error."}
    )

    def __post_init__(self) -> None:
        if self.deepspeed:
            zero.require()
            if isinstance(self.deepspeed, str):
                zero.check_file(self.deepspeed)
        if self.reference not in ("start", "base"):
            raise InputError(f"reference is {self.reference!r}; use start or base.")
        refuse(outside(self) or unfit(self))  # before the parent computes with them
        if self.num_train_epochs == 0 and self.max_steps <= 0:
            raise InputError("num_train_epochs is 0: nothing would be trained. Give a larger number, or max_steps.")
        super().__post_init__()
        zero.compile_nothing()
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown:
            why = (
                "it sorts the pairs of a batch, so that no pair has a loss of its own for its weight"
                if set(unknown) <= SORTED
                else "a clinical weight needs a mean over the losses of pairs, and of these some are built in"
            )
            raise InputError(
                f"loss_type {unknown} is not supported: {why}. Use one of {', '.join(PREFERENCE_LOSSES)}, and add, if "
                "wanted and never weighted, "
                + "; ".join(f"{name} ({meaning})" for name, meaning in ADDED_LOSSES.items())
            )
        if self.loss_type != ["sft"] and not set(self.loss_type) & set(PREFERENCE_LOSSES):
            raise InputError(
                f"loss_type {self.loss_type} has no preference loss: add {' or '.join(PREFERENCE_LOSSES)}. "
                "Only 'sft' may stand alone, as the supervised control."
            )
        self._refuse_without_effect()
        changed = [name for name, only in UNSUPPORTED.items() if getattr(self, name) != only]
        if changed:
            raise InputError(f"{', '.join(changed)}: not supported by MMedPO's loss; leave TRL's default.")
        if self.reference_cache and self.sync_ref_model:
            raise InputError(
                "reference_cache needs a reference that does not change; leave it out where sync_ref_model is on."
            )
        if self.reference_cache and "tdpo_kl" in self.loss_type:
            raise InputError(
                "tdpo_kl needs the reference's distributions, which reference_cache does not store; leave one of them "
                "out."
            )
        if self.train_sampling_strategy == "batch_rebalance":
            raise InputError("train_sampling_strategy batch_rebalance is not supported; use random or group_by_length.")
        if self.pairs_per_image > 1 and self.train_sampling_strategy != "random":
            raise InputError(
                f"pairs_per_image orders the pairs itself: leave out train_sampling_strategy "
                f"{self.train_sampling_strategy}, or pairs_per_image."
            )
        for name in ("beta", "projector_learning_rate"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise InputError(f"{name} is {value}; it must be positive.")

    def _refuse_without_effect(self) -> None:
        """Raise InputError for settings of a loss that is not among `loss_type`, or that change nothing in it."""
        losses, smoothing = set(self.loss_type), self.label_smoothing
        cases = (
            (not 0 <= smoothing < 0.5, f"label_smoothing is {smoothing}; a share of wrong labels lies in [0, 0.5)"),
            (smoothing and losses.isdisjoint(SMOOTHED), f"label_smoothing needs {' or '.join(SMOOTHED)} in loss_type"),
            ("robust" in losses and not smoothing, "robust with label_smoothing 0 is sigmoid; give such as 0.1"),
            (self.bco_shift and "bco_pair" not in losses, "bco_shift needs bco_pair in loss_type"),
            (0 in (self.loss_weights or []), f"loss_weights are {self.loss_weights}; leave out a loss of weight 0"),
            (self.ld_alpha is not None and losses == {"sft"}, "ld_alpha needs a preference loss in loss_type"),
        )
        refuse([sentence for wrong, sentence in cases if wrong])
