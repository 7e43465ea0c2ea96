"""The clinically weighted multimodal preference trainer: TRL's DPOTrainer with a weight and a second image."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import selective_log_softmax, use_adapter

from mmedpo.errors import InputError
from mmedpo.models import load_processor
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig

NOT_FOR_THE_MODEL = {"completion_mask", "weight", "is_visual"}


class MMedPOTrainer(DPOTrainer):
    """Minimises the mean over pairs of `weight * loss(beta * margin)` (the paper's equation 5), where

        margin = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x*) - log ref(y_l|x*)],

    x* is the rejected side's own images where it has some, and log-probabilities are summed over answer tokens. Takes
    what `trl.DPOTrainer` takes, with a `MMedPOConfig`. The mean is over pairs and not over weights, so that batch size
    and gradient accumulation do not change the loss. Only answer tokens pass through the language-model head.

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

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = ["prompt", "chosen", "rejected", "images", "rejected_images", "weight"]

    def answer_logps(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Log-probability of each answer token (float, 2B x T; 0 where a row has no answer token).

        T counts the positions that hold an answer token in any row.
        """
        mask = inputs["completion_mask"][:, 1:].bool()
        positions = mask.any(dim=0).nonzero().squeeze(1)
        kwargs = {key: value for key, value in inputs.items() if key not in NOT_FOR_THE_MODEL}
        logits = model(**kwargs, use_cache=False, logits_to_keep=positions).logits
        logps = selective_log_softmax(logits.float(), inputs["input_ids"][:, 1:][:, positions])
        return logps * mask[:, positions]

    def reference_logps(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """`answer_logps` of the reference: the model without its new adapter, or the separate reference model."""
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
            return self.answer_logps(model, inputs)

    def _compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool) -> Any:
        if return_outputs:
            raise NotImplementedError("compute_metrics is not supported; use `mmedpo evaluate` on the saved adapter.")
        logps = self.answer_logps(model, inputs)
        lengths = inputs["completion_mask"].sum(dim=1)
        ratios = logps.sum(dim=1)
        if self.loss_types != ["sft"]:
            ratios = ratios - self.reference_logps(inputs).sum(dim=1)
        pair_loss = self.pair_loss(ratios, logps.sum(dim=1), lengths, inputs["weight"])
        self._record(inputs, ratios.detach(), logps.detach().sum(dim=1), pair_loss.detach())
        return pair_loss.mean()

    def pair_loss(
        self, ratios: torch.Tensor, logps: torch.Tensor, lengths: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Loss of each pair (float, B): the weighted preference loss, plus the chosen side's NLL where asked for.

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
            elif name == "sft":
                total = total - share * (logps / lengths.clamp(min=1)).chunk(2)[0]
        return total

    def _record(
        self, inputs: dict[str, torch.Tensor], ratios: torch.Tensor, logps: torch.Tensor, loss: torch.Tensor
    ) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        chosen, rejected = (self.beta * ratios).chunk(2)
        columns = torch.stack(
            [chosen, rejected, *logps.chunk(2), inputs["weight"], inputs["is_visual"].to(chosen), loss], dim=1
        )
        chosen, rejected, logp_chosen, logp_rejected, weight, visual, loss = self.accelerator.gather(columns).unbind(1)
        margins = chosen - rejected
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": (margins > 0).float(),
            "rewards/margins": margins,
            "rewards/margins_hallucinated_response": margins[visual == 0],
            "rewards/margins_lesion_noise": margins[visual == 1],
            "logps/chosen": logp_chosen,
            "logps/rejected": logp_rejected,
            "weights/mean": weight,
        }
        for name, value in values.items():
            # Supervised training asks no reference, so that it has no rewards.
            if len(value) and not (self.loss_types == ["sft"] and name.startswith("rewards/")):
                metrics[name].append(value.mean().item())
