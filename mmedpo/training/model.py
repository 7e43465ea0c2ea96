"""Model of a training: load, quantise, and choose the trained parameters."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig, get_peft_config, get_quantization_config

from mmedpo.errors import Fault, InputError
from mmedpo.models.adapters import with_adapter
from mmedpo.models.vision_language import load_model
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.parts import PROJECTORS, in_projector, vision_parameters

ALL_LINEAR = "all-linear"  # PEFT's name
TARGETS = "lora_target_modules"
ADAPTABLE = (  # modules with LoRA layers in PEFT
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention),
    Conv1D,
)


def open_model(model_args: ModelConfig, config: MMedPOConfig, adapter: str | None = None) -> dict[str, Any]:
    """Return the trainer's arguments for models: `model`, and `peft_config` or `ref_model`.

    Trained are the language model's linear layers through an adapter (`use_peft`), or the whole language model;
    `projector_learning_rate` adds the projector. The vision tower is never trained.

    Args:
        adapter: Hub id or folder of an adapter to continue from. It is trained further; the reference is the model with
            it at the start.

    Raises:
        InputError: a model or adapter cannot be loaded, settings exclude each other, or there is no projector.
    """
    name = str(model_args.model_name_or_path)

    def load() -> Any:
        return load_model(
            name, model_args.model_revision, str(model_args.dtype), model_args.attn_implementation,
            quantization_config=_quantisation(model_args, config), device_map=_device_map(model_args),
        )  # fmt: skip

    if adapter is not None and (model_args.use_peft or config.projector_learning_rate is not None):
        raise InputError(
            f"{adapter} has its own LoRA settings and trained modules; leave use_peft and "
            "projector_learning_rate out, or merge it into the model first."
        )
    model = load()
    if adapter is not None:
        return {"model": with_adapter(model, name, adapter, trainable=True)}
    peft_config = choose_trained(model, model_args, config)
    if peft_config is not None:
        return {"model": model, "peft_config": peft_config}
    return {"model": model, "ref_model": load()}  # TRL would load the Hub's main revision


def choose_trained(model: PreTrainedModel, model_args: ModelConfig, config: MMedPOConfig) -> PeftConfig | None:
    """Return the PEFT configuration of a new adapter; without LoRA, freeze what is not trained and return None.

    TRL's LoRA settings apply to the linear layers of the language model (the paper's choice) or to named modules in it.
    Names that the vision tower shares mean the language model's only (`_scoped`).

    Raises:
        InputError: a name lies outside the language model, or matches no module.
    """
    if not model_args.use_peft:
        kept = projector_modules(model) if config.projector_learning_rate is not None else []
        for name, parameter in vision_parameters(model).items():
            parameter.requires_grad_(any(name.startswith(f"{module}.") for module in kept))
        return None
    found = _scoped(model, model_args, language_model_linears(model))
    if config.projector_learning_rate is not None:
        found["lora_modules_to_save"] += projector_modules(model)
    named: dict[str, Any] = {setting: list(dict.fromkeys(names)) or None for setting, names in found.items()}
    settings = dataclasses.replace(model_args, **named)
    if config.disable_dropout:  # TRL's default; it includes LoRA's dropout
        settings.lora_dropout = 0.0
    return get_peft_config(settings)


def _scoped(model: Any, settings: ModelConfig, linears: Sequence[str]) -> dict[str, list[str]]:
    """Return whole names for `lora_target_modules`, `lora_target_parameters` and `lora_modules_to_save`, by setting.

    LoRA applies to the language model with its head, by default to `linears`; projector modules may also be saved. As
    in PEFT, a name is a module's name or its end; a single target may be a regular expression or "all-linear". Matches
    in other parts are dropped.

    Raises:
        InputError: a name matches nothing, or nothing in these parts; all are listed.
    """
    modules = [name for name, _ in model.named_modules() if name]
    parameters, outside = [name for name, _ in model.named_parameters()], vision_parameters(model)
    language, projector = _language_names(model, modules), {name for name in modules if in_projector(name)}
    targets = settings.lora_target_modules
    if targets is None or (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
        targets = list(linears)
    found: dict[str, list[str]] = {}
    faults: list[Fault] = []
    for setting, wanted, named, allowed in (
        (TARGETS, targets, modules, language),
        ("lora_target_parameters", settings.lora_target_parameters, parameters, {*parameters} - outside.keys()),
        ("lora_modules_to_save", settings.lora_modules_to_save, modules, language | projector),
    ):
        found[setting] = []
        for target in [wanted] if isinstance(wanted, str) else wanted or []:
            try:
                whole = re.compile(target if isinstance(wanted, str) else re.escape(target))
            except re.error as error:
                sentence = f"is not a regular expression ({error}); correct it"
            else:
                meant = [name for name in named if f".{name}".endswith(f".{target}") or whole.fullmatch(name)]
                inside = [name for name in meant if name in allowed]
                found[setting] += inside
                adapted = [model.get_submodule(name) for name in inside] if setting == TARGETS else []
                sentence = _fault(meant, inside, [isinstance(module, ADAPTABLE) for module in adapted])
            if sentence:
                faults.append(Fault("(settings)", setting, f"{target!r} {sentence}"))
    if faults:
        raise InputError("These modules cannot be trained:", faults)
    return found


def _fault(meant: Sequence[str], inside: Sequence[str], adaptable: Sequence[bool]) -> str:
    """Return what is wrong with a target's names: all, those in the parts that are trained, and where LoRA fits."""
    if not meant:
        return "names no module of the model; correct it"
    if not all(adaptable):  # containers, such as `model` and `mlp`, and norms
        return f"is {inside[adaptable.index(False)]}, which is not a linear layer; name layers such as q_proj"
    if inside:
        return ""
    if all(map(in_projector, meant)):
        return f"is {meant[0]}: LoRA is for the language model; train the projector with projector_learning_rate"
    return f"is {meant[0]}: the vision tower is never trained; name modules of the language model"


def _language_names(model: Any, named: Iterable[str]) -> set[str]:
    parts = [part for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None]
    inside = {id(module) for part in parts for module in part.modules()}
    return {name for name in named if id(model.get_submodule(name)) in inside}


def language_model_linears(model: PreTrainedModel) -> list[str]:
    """Return the names of the language model's linear layers, without the LM head."""
    inside = set(model.get_decoder().modules())
    return [name for name, module in model.named_modules() if module in inside and isinstance(module, torch.nn.Linear)]


def projector_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules between vision tower and language model.

    Raises:
        InputError: no module has a name of `PROJECTORS`.
    """
    found = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in PROJECTORS]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no module called {' or '.join(PROJECTORS)}, so projector_learning_rate has "
            "nothing to train; leave it out, or name modules with lora_modules_to_save."
        )
    names: list[str] = []
    for name, module in found:  # PEFT cannot copy a list of modules, only its members
        listed = isinstance(module, torch.nn.ModuleList)
        names += [f"{name}.{part}" for part, _ in module.named_children()] if listed else [name]
    return names


def _quantisation(model_args: ModelConfig, config: MMedPOConfig) -> Any:
    """Return TRL's settings, with bfloat16 compute for dtype "auto", and without a trained projector."""
    auto = model_args.dtype == "auto"
    settings = get_quantization_config(dataclasses.replace(model_args, dtype="bfloat16") if auto else model_args)
    if settings is not None and config.projector_learning_rate is not None:
        # Also used for 4 bits. Patterns match whole names; a list replaces the default, which skips the head.
        settings.llm_int8_skip_modules = [rf".*\.({'|'.join(PROJECTORS)})", "lm_head"]
    return settings


def _device_map(model_args: ModelConfig) -> Any:
    """Put quantised weights on the device of their process, since they cannot move later."""
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    return {"": PartialState().local_process_index} if quantised and torch.cuda.is_available() else None
