"""The model of a training: loaded, quantised where asked, and with what is trained in it chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig
from transformers import PreTrainedModel
from trl import ModelConfig, get_peft_config, get_quantization_config

from mmedpo.errors import InputError
from mmedpo.models.adapters import with_adapter
from mmedpo.models.vision_language import load_model
from mmedpo.training import parts
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.images import vision_parameters
from mmedpo.training.parts import PROJECTORS


def open_model(model_args: ModelConfig, config: MMedPOConfig, adapter: str | None = None) -> dict[str, Any]:
    """What a trainer is given of models: `model`, `peft_config` for a new adapter, `ref_model` where there is none.

    Trained are the linear layers of the language model through an adapter (`use_peft`), or the whole language model;
    with `projector_learning_rate` the projector too. The vision tower never is.

    Args:
        adapter: Hub id or folder of an adapter to go on from. It is trained further, and the reference is the model
            with it as it is now.

    Raises:
        InputError: nothing loadable under the names, settings that exclude each other, or no projector found.
    """
    name = str(model_args.model_name_or_path)

    def load() -> Any:
        return load_model(
            name, model_args.model_revision, str(model_args.dtype), model_args.attn_implementation,
            quantization_config=_quantisation(model_args, config), device_map=_device_map(model_args),
        )  # fmt: skip

    if adapter is not None and (model_args.use_peft or config.projector_learning_rate is not None):
        raise InputError(
            f"{adapter} has LoRA settings and trained modules of its own; leave use_peft and "
            "projector_learning_rate out, or merge it into the model first."
        )
    model = load()
    if adapter is not None:
        return {"model": with_adapter(model, name, adapter, trainable=True)}
    peft_config = choose_trained(model, model_args, config)
    if peft_config is not None:
        return {"model": model, "peft_config": peft_config}
    return {"model": model, "ref_model": load()}  # TRL's own would be of the Hub's main revision


def choose_trained(model: PreTrainedModel, model_args: ModelConfig, config: MMedPOConfig) -> PeftConfig | None:
    """The new adapter of a model; or, where none is wanted, None, and what is not trained is frozen.

    TRL's LoRA settings hold, on the linear layers of the language model (the paper's choice) unless others of its
    modules are named. Names that the vision tower shares mean the language model's alone (`parts.scoped`).

    Raises:
        InputError: what is named lies outside the language model, or is no module.
    """
    if not model_args.use_peft:
        kept = projector_modules(model) if config.projector_learning_rate is not None else []
        for name, parameter in vision_parameters(model).items():
            parameter.requires_grad_(any(name.startswith(f"{module}.") for module in kept))
        return None
    found = parts.scoped(model, model_args, language_model_linears(model))
    if config.projector_learning_rate is not None:
        found["lora_modules_to_save"] += projector_modules(model)
    named: dict[str, Any] = {setting: list(dict.fromkeys(names)) or None for setting, names in found.items()}
    settings = dataclasses.replace(model_args, **named)
    if config.disable_dropout:  # TRL's default, which holds for LoRA's dropout too
        settings.lora_dropout = 0.0
    return get_peft_config(settings)


def language_model_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the language model of a vision-language model, the LM head left out."""
    inside = set(model.get_decoder().modules())
    return [name for name, module in model.named_modules() if module in inside and isinstance(module, torch.nn.Linear)]


def projector_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules between vision tower and language model.

    Raises:
        InputError: the model calls none of its modules by a name of `PROJECTORS`.
    """
    found = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in PROJECTORS]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no module called {' or '.join(PROJECTORS)}, so that projector_learning_rate "
            "finds nothing to train; leave it out, or name modules with lora_modules_to_save."
        )
    names: list[str] = []
    for name, module in found:  # PEFT cannot copy a list of modules, only its members
        listed = isinstance(module, torch.nn.ModuleList)
        names += [f"{name}.{part}" for part, _ in module.named_children()] if listed else [name]
    return names


def _quantisation(model_args: ModelConfig, config: MMedPOConfig) -> Any:
    """TRL's, computing in bfloat16 where the checkpoint is to decide, and sparing a projector to be trained."""
    auto = model_args.dtype == "auto"
    settings = get_quantization_config(dataclasses.replace(model_args, dtype="bfloat16") if auto else model_args)
    if settings is not None and config.projector_learning_rate is not None:
        # For 4 bits too. Patterns of whole names; the head is spared by default, which a list replaces.
        settings.llm_int8_skip_modules = [rf".*\.({'|'.join(PROJECTORS)})", "lm_head"]
    return settings


def _device_map(model_args: ModelConfig) -> Any:
    """Quantised weights are made on the device of their process, and cannot move later."""
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    return {"": PartialState().local_process_index} if quantised and torch.cuda.is_available() else None
