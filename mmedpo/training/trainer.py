"""The clinically weighted multimodal preference trainer: TRL's DPOTrainer with a weight and a second image."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from transformers import TrainerCallback
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.models import load_processor
from mmedpo.training import sharing
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.reference import ReferenceCache, fingerprint

NOT_FOR_THE_MODEL = ("weight", "kind", "row_key")
TOLERANCE = {"exact": 1e-4, "rounded": 5e-2}  # of log-probabilities, relative to the largest: float32; anything coarser

logger = get_logger(__name__)


class _Opening(TrainerCallback):
    """What is settled once the model is where it will be trained, and before the first batch is made."""

    def __init__(self, trainer: MMedPOTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.settle_sharing()
        self.trainer.open_reference_cache()


class MMedPOTrainer(DPOTrainer):
    """Minimises the mean over pairs of `weight * loss(beta * margin)` (the paper's equation 5), where

        margin = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x*) - log ref(y_l|x*)],

    x* is the rejected side's own images where it has some, and log-probabilities are summed over answer tokens. Takes
    what `trl.DPOTrainer` takes, with a `MMedPOConfig`. The mean is over pairs and not over weights, so that batch size
    and gradient accumulation do not change the loss. Only answer tokens pass through the language-model head, and a
    pair whose sides see the same images is one row, read once (`mmedpo.training.sharing`), where the check that opens
    the training finds that this changes nothing.

    Metrics beside TRL's: `rewards/margins_<kind>` for each kind of dispreference, `weights/mean`, and `weights/mass`,
    the effective share of the batch (0, 1]: Kish's effective sample size (sum w)^2 / sum w^2 over the number of pairs.

    Raises:
        InputError: the training or evaluation dataset has no `weight` column.
    """

    args: MMedPOConfig
    model: Any
    ref_model: Any
    _signature_columns: Any

    def __init__(self, model: Any, args: MMedPOConfig, **kwargs: Any) -> None:
        for name in ("train_dataset", "eval_dataset"):
            columns = getattr(kwargs.get(name), "column_names", None)
            if columns is not None and "weight" not in columns:
                raise InputError(
                    f"The {name} has no `weight` column (it has {', '.join(columns)}). Curate it with `mmedpo curate`, "
                    "or add a column of ones if plain DPO is what you want."
                )
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = load_processor(model if isinstance(model, str) else model.config._name_or_path)
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = PreferenceCollator(kwargs["processing_class"], args.max_length)
        super().__init__(model, args=args, **kwargs)
        self._reference_cache: ReferenceCache | None = None
        self.add_callback(_Opening(self))

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = [
                *("prompt", "chosen", "rejected", "images", "rejected_images", "weight", "dispreference")
            ]

    def settle_sharing(self) -> None:
        """Compute one batch both ways, and let pairs share rows from now on if the results agree.

        Says which it is. Training calls this at its start; until it is called, every side has its own row.
        """
        collator = self.data_collator
        if not self.args.prefix_sharing or not isinstance(collator, PreferenceCollator):
            return
        refusals = [sharing.refusal(model) for model in (self.model, self.ref_model) if model is not None]
        reason = next((refusal for refusal in refusals if refusal), None) or self._disagreement(collator)
        collator.share = reason is None
        if reason is None:
            logger.info("Pairs with equal images share one row: prompt and images are read once for both answers.")
        else:
            logger.warning(f"Every side of a pair gets a row of its own, the slower way: {reason}.")

    def _disagreement(self, collator: PreferenceCollator) -> str | None:
        """How far log-probabilities of shared rows are from those of separate rows, where it is too far."""
        dataset: Any = self.train_dataset
        pairs = [{**pair, "rejected_images": None} for pair in itertools.islice(dataset, 2)]
        ways = [dataclasses.replace(collator, share=share)(pairs) for share in (False, True)]
        model, was_training = self.model_wrapped, self.model.training
        model.eval()
        try:
            with torch.no_grad(), self.compute_loss_context_manager():
                apart, shared = (self.answer_logps(model, self._prepare_inputs(inputs)) for inputs in ways)
        except sharing.NotApartError as error:
            return str(error)
        finally:
            model.train(was_training)
        difference = (apart - shared).abs().max() / apart.abs().max().clamp(min=1)
        difference = self.accelerator.gather(difference).max().item()  # every process decides alike
        exact = self.model.dtype == torch.float32 and self.accelerator.mixed_precision == "no"
        tolerance = TOLERANCE["exact" if exact else "rounded"]
        if difference <= tolerance:
            return None
        return f"log-probabilities of shared rows differ by {difference:.1e} relative, more than {tolerance:.0e}"

    def answer_logps(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of each answer token (float32, 2B x T, chosen first; 0 where a side has no such token)."""
        return sharing.answer_logps(model, {k: v for k, v in inputs.items() if k not in NOT_FOR_THE_MODEL})

    def reference_logps(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of each side (float32, 2B, chosen first) under the reference.

        The reference is the model without its new adapter, or the separate reference model.
        """
        model: Any = self.ref_model or self.model
        adapter: Any = contextlib.nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            unwrapped = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None)
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with (
            torch.no_grad(),
            adapter,
            disable_gradient_checkpointing(self.model, checkpointing),
        ):
            return self.answer_logps(model, inputs).sum(dim=1)

    def open_reference_cache(self) -> None:
        """From now on take the reference's log-probabilities from disk where they are known (`reference_cache`)."""
        collator = self.data_collator
        if not self.args.reference_cache or self.loss_types == ["sft"] or self._reference_cache is not None:
            return
        if not isinstance(collator, PreferenceCollator):
            raise InputError("reference_cache needs mmedpo's own collator, which names the pairs.")
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        # The reference is the model without what this run trains; an adapter "ref" is the one it began with.
        trained = [name for name in getattr(model, "peft_config", {}) if name != "ref"] if not self.ref_model else []
        settings = {
            "max_length": self.args.max_length, "precision": self.accelerator.mixed_precision, "tf32": self.args.tf32,
        }  # fmt: skip
        name = fingerprint(model, self.processing_class, settings, trained)
        self._reference_cache = ReferenceCache(Path(str(self.args.reference_cache)), name)
        collator.keyed = True

    def _known_reference_logps(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """`reference_logps`, from the cache where it is open."""
        if self._reference_cache is None or "row_key" not in inputs:
            return self.reference_logps(inputs)

        def compute() -> torch.Tensor:
            return torch.stack(self.reference_logps(inputs).chunk(2), dim=1)

        return torch.cat(self._reference_cache.get(inputs["row_key"], compute).unbind(1))

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if return_outputs:
            raise NotImplementedError("compute_metrics is not supported; use `mmedpo evaluate` on the saved adapter.")
        logps = self.answer_logps(model, inputs)
        lengths = inputs["completion_mask"].sum(dim=1)
        ratios = logps.sum(dim=1)
        if self.loss_types != ["sft"]:
            ratios = ratios - self._known_reference_logps(inputs)
        pair_loss = self.pair_loss(ratios, logps.sum(dim=1), lengths, inputs["weight"])
        self._record(inputs, ratios.detach(), logps.detach().sum(dim=1), pair_loss.detach())
        return pair_loss.mean()

    def pair_loss(
        self, ratios: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Loss of each pair (float, B): the weighted preference loss, plus what `loss_type` adds on the chosen side.

        Args:
            ratios: log pi / ref of each side (float, 2B, chosen first).
            logps: log-probability of each side (float, 2B).
            lengths: answer tokens of each side (int, 2B).
            weight: clinical weight of each pair (float, B).
        """
        chosen, rejected = ratios.chunk(2)
        weight = weight if self.args.weighted else torch.ones_like(weight)
        total = torch.zeros_like(chosen)
        shares: list[float] = self.loss_weights
        for name, share in zip(self.loss_types, shares, strict=True):
            if name == "sigmoid":
                total = total + share * weight * -F.logsigmoid(self.beta * (chosen - rejected))
            elif name == "hinge":
                total = total + share * weight * torch.relu(1 - self.beta * (chosen - rejected))
            elif name == "ipo":  # per token, as TRL has it from IPO's authors
                margin = torch.sub(*(ratios / lengths.clamp(min=1)).chunk(2))
                total = total + share * weight * (margin - 1 / (2 * self.beta)) ** 2
            elif name == "mdpo_anchor":  # mDPO (Wang et al., 2024), equation of L_AncPO with its delta of 0
                total = total + share * -F.logsigmoid(self.beta * chosen)
            elif name == "sft":
                total = total - share * (logps / lengths.clamp(min=1)).chunk(2)[0]
        return total

    def _record(
        self, inputs: dict[str, torch.Tensor], ratios: torch.Tensor, logps: torch.Tensor, loss: torch.Tensor
    ) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        chosen, rejected = (self.beta * ratios).chunk(2)
        columns = torch.stack(
            [chosen, rejected, *logps.chunk(2), inputs["weight"], inputs["kind"].to(chosen), loss], dim=1
        )
        chosen, rejected, logp_chosen, logp_rejected, weight, kind, loss = self.accelerator.gather(columns).unbind(1)
        margins = chosen - rejected
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (margins > 0).float(),
            "rewards/margins": margins,
            **{f"rewards/margins_{name}": margins[kind == i] for i, name in enumerate(schema.DISPREFERENCES)},
            "logps/chosen": logp_chosen,
            "logps/rejected": logp_rejected,
            "weights/mean": weight,
            "weights/mass": weight.sum() ** 2 / (weight.square().sum() * len(weight)).clamp(min=1e-12),
        }
        for name, value in values.items():
            # Supervised training asks no reference, so that it has no rewards.
            if value.numel() and not (self.loss_types == ["sft"] and name.startswith("rewards/")):
                metrics[name].append(value.mean().item())
