"""Checks before training: every known fault in one message, before weights are loaded.

The model is built on PyTorch's meta device, without memory. Each distinct image is read once: all headers, and a sample
in full. Lengths are exact: the collator makes the texts, and the model's processor is given blank images, since image
tokens depend on sizes only.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel
from transformers.modeling_utils import set_zero3_state
from trl import ModelConfig

from mmedpo.data import trust
from mmedpo.errors import Fault, InputError
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.parts import trained_parts, vision_parameters
from mmedpo.training.preflight.rows import Findings, check_pairs

ADAM = 8  # bytes of optimizer state a trained parameter


def check(
    datasets: Sequence[Dataset | IterableDataset],
    processor: Any,
    config: MMedPOConfig,
    model_args: ModelConfig,
    output: Path,
    adapter: Callable[[PreTrainedModel], Any],
) -> Findings:
    """Check everything that would stop or spoil a training; return warnings and the trained parts.

    Checked are columns and types; weights; images (all headers, a seeded sample in full); answers; whether chosen and
    rejected differ as a preference; each row's tokens against `max_length`; trained parameters; quantisation; disk
    space. Checks that need a faulty column are skipped.

    Args:
        datasets: pairs to train on, and maybe to evaluate on; a streamed dataset is checked in part.
        output: the output folder; it need not exist.
        adapter: returns the run's PEFT configuration for a model without weights, or freezes what is not trained and
            returns None.

    Raises:
        InputError: with all faults; rows with the same fault are one fault.
    """
    named = str(model_args.dtype).removeprefix("torch.")
    if named not in ("None", "auto") and not isinstance(getattr(torch, named, None), torch.dtype):
        raise InputError(f"dtype is {named!r}; use auto, float32, bfloat16 or float16.")
    found = Findings()
    architecture: Any = AutoConfig.from_pretrained(
        model_args.model_name_or_path or "", revision=model_args.model_revision, **trust.only_data()
    )
    rows = [check_pairs(dataset, processor, config, architecture, found) for dataset in datasets]
    _quantisation(config, model_args, found)
    _precision(architecture, config, model_args, found)
    _model(rows[0], architecture, config, model_args, output, adapter, found)
    if found.faults:
        raise InputError("The training cannot start:", found.faults)
    return found


def _quantisation(config: MMedPOConfig, model_args: ModelConfig, found: Findings) -> None:
    name = "load_in_4bit" if model_args.load_in_4bit else "load_in_8bit"
    if not getattr(model_args, name):
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        found.setting(name, "needs bitsandbytes, which is not installed: pip install bitsandbytes")
    if not model_args.use_peft:
        found.setting(name, "freezes all weights; set use_peft to true to train an adapter")
    if config.deepspeed_plugin is not None and config.deepspeed_plugin.zero_stage == 3:
        found.setting(name, "cannot be split over processes by ZeRO-3; use ZeRO-1 or ZeRO-2, or leave it out")


def _precision(architecture: Any, config: MMedPOConfig, model_args: ModelConfig, found: Findings) -> None:
    """Check the weights' dtype, which mixed precision decides under DeepSpeed."""
    if config.deepspeed_plugin is None:
        return
    asked = str(architecture.dtype if model_args.dtype == "auto" else model_args.dtype).removeprefix("torch.")
    held = "bfloat16" if config.bf16 else "float16" if config.fp16 else "float32"
    if held not in ("float32", asked):
        found.warnings.append(f"DeepSpeed holds the weights in {held} (mixed precision), not in {asked} (dtype).")
    elif asked != held and config.deepspeed_plugin.zero_stage == 3:
        found.setting("dtype", f"is {asked}, but ZeRO-3 without mixed precision uses float32; set bf16 or fp16 too")


def _model(
    rows: int, architecture: Any, config: MMedPOConfig, model_args: ModelConfig, output: Path,
    adapter: Callable[[PreTrainedModel], Any], found: Findings,
) -> None:  # fmt: skip
    """Check the trained parameters, and the disk space that they take."""
    dtype = architecture.dtype if model_args.dtype == "auto" else model_args.dtype
    try:
        # Without it, ZeRO-3 would split the model, which needs all processes.
        with torch.device("meta"), set_zero3_state():
            model = AutoModelForImageTextToText.from_config(architecture, dtype=dtype or torch.float32)
            peft_config = adapter(model)
            if peft_config is not None:
                model = get_peft_model(model, peft_config)
    except InputError as error:
        found.faults += error.faults or [Fault("(settings)", "projector_learning_rate", str(error))]
        return
    except (ValueError, TypeError) as error:  # PEFT's own checks
        named = "lora_target_parameters" if model_args.lora_target_parameters else "lora_target_modules"
        found.setting(named, str(error).partition("\n")[0])
        return
    found.trained = trained_parts(model)
    if tower := found.trained["vision_tower"]["modules"]:  # only a given adapter's settings can; others are scoped
        name = next(name for name, value in vision_parameters(model).items() if value.requires_grad)
        found.setting(
            "adapter_name_or_path",
            f"has weights for {tower} modules of the vision tower ({name.partition('.lora_')[0]}, ...), which are "
            "never trained; merge the adapter into the model first, and train a new one",
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        found.setting("use_peft", "leaves nothing to train")
    saved = sum(parameter.nbytes for parameter in (trained if peft_config is not None else model.parameters()))
    state = 0 if config.save_only_model else ADAM * sum(parameter.numel() for parameter in trained)
    _disk(output, saved, _checkpoints(rows, config) * (saved + state), found)


def _checkpoints(rows: int, config: MMedPOConfig) -> int:
    """Return the most checkpoints on disk at once: those kept, and one being written."""
    epoch = math.ceil(rows / (config.train_batch_size * config.gradient_accumulation_steps * config.world_size)) or 1
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * epoch)
    every = config.save_steps if config.save_steps >= 1 else max(1, math.ceil(config.save_steps * steps))
    count = math.ceil(steps / (epoch if config.save_strategy == "epoch" else every))
    most = math.inf if config.save_total_limit is None else config.save_total_limit + 1
    return 0 if config.save_strategy == "no" else int(min(count, most))


def _disk(output: Path, saved: int, checkpoints: int, found: Findings) -> None:
    output = output.resolve()
    free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.exists())).free
    if saved + checkpoints > free:
        found.setting(
            "output",
            f"needs about {(saved + checkpoints) / 1e9:.1f} GB, {checkpoints / 1e9:.1f} of them for checkpoints; "
            f"{free / 1e9:.1f} GB are free. Set save_total_limit or save_only_model, or name another disk",
        )
