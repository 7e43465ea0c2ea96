"""Clinically weighted multimodal preference trainer: TRL's DPOTrainer with weights and rejected images."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.models.answers import Answers
from mmedpo.models.sharing import BATCH_IMAGES, BatchImages, read_answers
from mmedpo.models.vision_language import load_processor
from mmedpo.training.callbacks import BeforeTraining, Logs, RewardShift, Unlogged
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.grouping import GroupedSampler, ImageSampler, images_and_questions, lengths_and_kinds
from mmedpo.training.losses import desensitised, pair_losses, shared_lengths
from mmedpo.training.optimisations import verify_optimisations
from mmedpo.training.parts import is_frozen, refuse_trained_tower, same_encoder, vision_parameters
from mmedpo.training.reference import ReferenceCache, reference_fingerprint

logger = get_logger(__name__)

# For the collator.
COLUMNS = ("id", "prompt", "chosen", "rejected", "images", "rejected_images", "weight", "dispreference")
NOT_FOR_THE_MODEL = ("weight", "kind", "side_keys", *BATCH_IMAGES)


class MMedPOTrainer(DPOTrainer):
    """Trainer that minimises the mean over pairs of `weight * loss(beta * margin)` (the paper's equation 5), where

        margin = [log pi(y_w|x) - log ref(y_w|x)] - [log pi(y_l|x*) - log ref(y_l|x*)],

    x* holds the rejected side's images if it has some, and log-probabilities are sums over answer tokens.

    Arguments are those of `trl.DPOTrainer`, with a `MMedPOConfig`. The mean is over pairs, not over weights, so that
    batch size and gradient accumulation do not change the loss. Only answer tokens pass through the language-model
    head. Prefix sharing and encoding images once (`models.sharing`) are used where the check at the start finds equal
    results.

    Metrics beside TRL's: `rewards/margins_<kind>` for each kind of pair; `weights/mean`, `weights/sd`, and
    `weights/mass`, Kish's effective sample size (sum w)^2 / sum w^2 over the number of pairs, in (0, 1]; `kl`, the
    divergence of `tdpo_kl`; `rewards/shift` of `bco_shift`.

    Raises:
        InputError: a dataset has no `weight` column; the vision tower is trained; or `projector_learning_rate` is set
            and nothing of the projector is trained.
    """

    args: MMedPOConfig
    model: Any
    ref_model: Any
    _metrics: Any
    _signature_columns: Any

    def __init__(self, model: Any, args: MMedPOConfig, **kwargs: Any) -> None:
        for name in ("train_dataset", "eval_dataset"):
            columns = getattr(kwargs.get(name), "column_names", None)
            if columns is not None and schema.DIGEST in columns:
                raise InputError(f"The {name} cannot be used: {schema.STRIPPED}.")
            if columns is not None and "weight" not in columns:
                raise InputError(
                    f"The {name} has no `weight` column (it has {', '.join(columns)}). Curate it with `mmedpo curate`, "
                    "or add a column of ones for plain DPO."
                )
            if columns is not None:
                kwargs[name] = schema.undecoded(kwargs[name])  # the collator opens images
        if kwargs.get("processing_class") is None:
            kwargs["processing_class"] = load_processor(model if isinstance(model, str) else model.config._name_or_path)
        if kwargs.get("data_collator") is None:
            kwargs["data_collator"] = PreferenceCollator(kwargs["processing_class"], args.max_length)
        super().__init__(model, args=args, **kwargs)
        self._signature_columns = [*COLUMNS]
        if args.reference == "base" and "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy of the adapter at the start
        refuse_trained_tower(self.model, args.projector_learning_rate is not None)
        if is_peft_model(self.model) and not self.is_deepspeed_enabled:  # DeepSpeed keeps float32 weights itself
            # TRL makes adapters on quantised weights in bfloat16, which would round away steps of a low rate.
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and (".lora_" in name or self.accelerator.mixed_precision != "no"):
                    parameter.data = parameter.data.float()
        # Policy and reference share features only if both have the same frozen vision tower.
        self._frozen = is_frozen(self.model) and (self.ref_model is None or same_encoder(self.model, self.ref_model))
        self._reference_cache: ReferenceCache | None = None
        unlogged = Unlogged()
        self._metrics["train"] = unlogged
        self.add_callback(BeforeTraining(self))
        self.add_callback(Logs(unlogged))
        self._shift = RewardShift()
        self.add_callback(self._shift)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        settings = self.args
        size = settings.train_batch_size * settings.gradient_accumulation_steps * settings.world_size
        seed = settings.seed if settings.data_seed is None else settings.data_seed
        if settings.pairs_per_image > 1 and isinstance(dataset, Dataset):
            named = images_and_questions(dataset)
            return ImageSampler(*named, settings.train_batch_size, size, settings.pairs_per_image, seed)
        if settings.train_sampling_strategy != "group_by_length" or not isinstance(dataset, Dataset):
            return super()._get_train_sampler(train_dataset)
        processor: Any = self.processing_class
        return GroupedSampler(*lengths_and_kinds(dataset, processor.tokenizer), size, seed)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        return SequentialSampler(eval_dataset)  # transformers would look for lengths in the dataset

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # transformers would take one more step when resuming from the last checkpoint.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        # When several processes skip batches, nothing else sets the sampler's epoch.
        batches = kwargs["train_dataloader"].batch_sampler
        while hasattr(batches, "batch_sampler"):
            batches = batches.batch_sampler
        if hasattr(getattr(batches, "sampler", None), "set_epoch"):
            batches.sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        made = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self.args.projector_learning_rate is not None and not made:
            projector = {id(value) for value in vision_parameters(self.model).values() if value.requires_grad}
            for group in list(optimizer.param_groups):
                moved = [parameter for parameter in group["params"] if id(parameter) in projector]
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in projector]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": self.args.projector_learning_rate})
        return optimizer

    def verify_optimisations(self) -> None:
        """Choose the optimisations of the collator by `optimisations.verify_optimisations`, if it is mmedpo's own."""
        if not isinstance(self.data_collator, PreferenceCollator):
            return
        models = [model for model in (self.model, self.ref_model) if model is not None]
        exact = self.model.dtype == torch.float32 and self.accelerator.mixed_precision == "no"
        was_training = self.model.training

        def logps(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            with torch.no_grad(), self.compute_loss_context_manager():
                return self.answer_logps(self.model_wrapped, self._prepare_inputs(batch))

        self.model_wrapped.eval()
        try:
            verify_optimisations(self.data_collator, self.args, models, self.train_dataset, logps, exact)
        finally:
            self.model_wrapped.train(was_training)

    def open_reference_cache(self) -> None:
        """Open the cache of the setting `reference_cache`, once; supervised training needs none."""
        settings = self.args
        if self._reference_cache or settings.reference_cache is None or self.loss_types == ["sft"]:
            return
        if not isinstance(self.data_collator, PreferenceCollator):
            raise InputError("reference_cache needs mmedpo's own collator.")
        model = self.accelerator.unwrap_model(self.ref_model or self.model)
        # The reference is the model without the trained adapters; "ref" is the adapter at the start.
        trained = [name for name in getattr(model, "peft_config", {}) if name != "ref"] if not self.ref_model else []
        decisive = {"precision": self.accelerator.mixed_precision, "tf32": settings.tf32}
        name = reference_fingerprint(model, self.processing_class, decisive, trained)
        self._reference_cache = ReferenceCache(Path(settings.reference_cache), name)

    def answers(self, model: Any, inputs: dict[str, torch.Tensor], seen: BatchImages | None = None) -> Answers:
        """Return a model's distributions at the answers of a batch (2B of them, chosen first)."""
        plain = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
        return read_answers(model, plain, seen or self._images(inputs))

    def answer_logps(self, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the log-probability of each answer token (float32, 2B x T, chosen first; 0 where there is none)."""
        return self.answers(model, inputs).logps()

    def _images(self, inputs: dict[str, torch.Tensor]) -> BatchImages | None:
        once = getattr(self.data_collator, "once", False) or "pictures" in inputs
        return BatchImages(inputs, self._frozen) if once else None

    def reference_answers(self, inputs: dict[str, torch.Tensor], seen: BatchImages | None = None) -> Answers:
        """Return `answers` of the reference: the model without its new adapter, or the separate reference model."""
        model: Any = self.ref_model or self.model
        adapter: Any = contextlib.nullcontext()
        if self.ref_model is None and is_peft_model(self.model):
            unwrapped = self.accelerator.unwrap_model(self.model)
            adapter = use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None)
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), adapter, disable_gradient_checkpointing(self.model, checkpointing):
            return self.answers(model, inputs, seen)

    def reference_logps(self, inputs: dict[str, torch.Tensor], seen: BatchImages | None = None) -> torch.Tensor:
        """Return the reference's log-probability of each side (float32, 2B, chosen first), as `desensitised`."""
        tokens = self.reference_answers(inputs, seen).logps()
        return desensitised(tokens, inputs["completion_mask"].sum(dim=1), self.args.ld_alpha)

    def _cached_as(self, inputs: dict[str, Any], lengths: torch.Tensor) -> list[str]:
        """Return the names of the sides' reference log-probabilities; `ld_alpha` makes those of longer sides differ."""
        if self.args.ld_alpha is None:
            return inputs["side_keys"]
        sides = zip(inputs["side_keys"], lengths.tolist(), shared_lengths(lengths).tolist(), strict=True)
        return [f"{key} {self.args.ld_alpha} {shared}" if own > shared else key for key, own, shared in sides]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if return_outputs:
            raise NotImplementedError("compute_metrics is not supported; use `mmedpo evaluate` on the saved adapter.")
        seen = self._images(inputs)
        answers = self.answers(model, inputs, seen)
        tokens, lengths = answers.logps(), inputs["completion_mask"].sum(dim=1)
        logps, ratios = tokens.sum(dim=1), desensitised(tokens, lengths, self.args.ld_alpha)
        kl = torch.zeros_like(inputs["weight"])
        if "tdpo_kl" in self.loss_types:
            reference = self.reference_answers(inputs, seen)
            ratios = ratios - desensitised(reference.logps(), lengths, self.args.ld_alpha)
            divergence = answers.divergence(reference).sum(dim=1) / lengths.clamp(min=1)
            kl = torch.stack(divergence.chunk(2)).mean(dim=0)
        elif self.loss_types != ["sft"]:
            live, known = partial(self.reference_logps, inputs, seen), self._reference_cache
            ratios = ratios - (live() if known is None else known.get(self._cached_as(inputs, lengths), live))
        pair_loss = pair_losses(self.args, ratios, logps, lengths, inputs["weight"], kl, self._shift.value)
        self._record(inputs, ratios, logps, kl, pair_loss)
        if self.model.training:
            self._refuse_lost(self._metrics["train"]["loss"][-1])
        return pair_loss.mean()

    def _refuse_lost(self, loss: float) -> None:
        """Raise InputError where the loss is no finite number; only float16's loss scaler recovers from that."""
        if math.isfinite(loss) or self.args.fp16:
            return
        raise InputError(
            f"The loss is {loss} at step {self.state.global_step + 1}, which would make all weights NaN. Check the "
            "model's weights and the dataset's `weight` column (`mmedpo audit`), or train with a lower learning_rate."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train" if self.model.training else "eval"]
        if squares := metrics.pop("weights/square", None):  # all batches since the last log
            mean, square = fmean(metrics["weights/mean"]), fmean(squares)
            metrics["weights/sd"] = [math.sqrt(max(square - mean**2, 0.0))]
            metrics["weights/mass"] = [mean**2 / square if square else 0.0]
        super().log(logs, start_time)

    @torch.no_grad()
    def _record(
        self, inputs: dict[str, Any], ratios: torch.Tensor, logps: torch.Tensor, kl: torch.Tensor, loss: torch.Tensor
    ) -> None:
        """Add the means over all processes' pairs to the metrics of training or evaluation."""
        metrics = self._metrics["train" if self.model.training else "eval"]
        chosen, rejected = (self.beta * ratios).chunk(2)
        columns = [chosen, rejected, *logps.chunk(2), inputs["weight"], inputs["kind"].to(chosen), kl, loss]
        gathered = self.accelerator.gather(torch.stack(columns, dim=1))
        chosen, rejected, logp_chosen, logp_rejected, weight, kind, kl, loss = gathered.unbind(1)
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
            "weights/square": weight.square(),
            **({"kl": kl} if "tdpo_kl" in self.loss_types else {}),
            **({"rewards/shift": torch.tensor(self._shift.value)} if self.args.bco_shift else {}),
            # Replaces the Trainer's own sum, which a resumed run would start at zero.
            **({"loss": loss} if self.model.training else {}),
        }
        for name, value in values.items():
            # Supervised training has no reference and thus no rewards.
            if value.numel() and not (self.loss_types == ["sft"] and name.startswith("rewards/")):
                metrics[name].append(value.mean().item())
        if self.args.bco_shift and self.model.training:
            self._shift.add(chosen, rejected, weight if self.args.weighted else torch.ones_like(weight))
