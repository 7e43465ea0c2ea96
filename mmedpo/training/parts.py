"""Parts of a vision-language model, and the trained parameters in each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D
from trl import ModelConfig

from mmedpo.errors import Fault, InputError
from mmedpo.training.images import vision_parameters

PARTS = ("language_model", "projector", "vision_tower")  # vision_tower is all that is in neither of the others
# Names of the projector in the model families.
PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
ALL_LINEAR = "all-linear"  # PEFT's name
TARGETS = "lora_target_modules"
ADAPTABLE = (  # modules with LoRA layers in PEFT
    *(nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention),
    Conv1D,
)

Trained = dict[str, dict[str, int]]


def trained_parts(model: Any) -> Trained:
    """Return the number of trained parameters and modules in each of `PARTS`.

    Returns:
        {"language_model": {"parameters": .., "modules": ..}, ...}; modules are those of the model without an adapter.
    """
    outside = vision_parameters(model)
    found: dict[str, list[tuple[str, int]]] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "language_model" if name not in outside else "projector" if in_projector(name) else "vision_tower"
            owner = name.partition(".lora_")[0] if ".lora_" in name else name.rpartition(".")[0]
            found[part].append((owner, getattr(parameter, "ds_numel", parameter.numel())))
    return {
        part: {"parameters": sum(count for _, count in held), "modules": len({owner for owner, _ in held})}
        for part, held in found.items()
    }


def summary(trained: Trained) -> str:
    """Return one line on the trained parts for the terminal."""
    counts = (
        f"{part.replace('_', ' ')} {held['parameters']:,} parameters in {held['modules']} modules"
        if held["parameters"]
        else f"{part.replace('_', ' ')} nothing"
        for part, held in trained.items()
    )
    return f"Trained: {'; '.join(counts)}."


def in_projector(name: str) -> bool:
    """Return True where a module's or parameter's name lies in a projector."""
    return not set(PROJECTORS).isdisjoint(name.split("."))


def scoped(model: Any, settings: ModelConfig, linears: Sequence[str]) -> dict[str, list[str]]:
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
    faults: list[Fault] = []

    def adaptable(name: str) -> bool:
        return isinstance(model.get_submodule(name), ADAPTABLE)

    found = {
        setting: _meant(setting, wanted or [], named, allowed, faults, adaptable)
        for setting, wanted, named, allowed in (
            (TARGETS, targets, modules, language),
            ("lora_target_parameters", settings.lora_target_parameters, parameters, {*parameters} - outside.keys()),
            ("lora_modules_to_save", settings.lora_modules_to_save, modules, language | projector),
        )
    }
    if faults:
        raise InputError("What is to be trained cannot be:", faults)
    return found


def _language_names(model: Any, named: Iterable[str]) -> set[str]:
    parts = [part for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None]
    inside = {id(module) for part in parts for module in part.modules()}
    return {name for name in named if id(model.get_submodule(name)) in inside}


def _meant(
    setting: str, wanted: str | Sequence[str], named: Sequence[str], allowed: set[str], faults: list[Fault],
    adaptable: Callable[[str], bool],
) -> list[str]:  # fmt: skip
    found: dict[str, None] = {}
    for target in [wanted] if isinstance(wanted, str) else wanted:
        try:
            whole = re.compile(target) if isinstance(wanted, str) else None
        except re.error as error:
            faults.append(Fault("(settings)", setting, f"{target!r} is no regular expression ({error}); mend it"))
            continue
        meant = [name for name in named if f".{name}".endswith(f".{target}") or (whole and whole.fullmatch(name))]
        found |= dict.fromkeys(name for name in meant if name in allowed)
        # PEFT has no LoRA for containers, such as `model` and `mlp`, and for norms.
        odd = next((name for name in meant if name in allowed and setting == TARGETS and not adaptable(name)), None)
        if odd:
            faults.append(
                Fault("(settings)", setting, f"{target!r} is {odd}, no linear layer; name layers such as q_proj")
            )
        elif not meant:
            faults.append(Fault("(settings)", setting, f"{target!r} names nothing in the model; nothing would train"))
        elif allowed.isdisjoint(meant):
            sentence = "the vision tower is never trained; name modules of the language model"
            if all(map(in_projector, meant)):
                sentence = "LoRA is for the language model; train the projector with projector_learning_rate"
            faults.append(Fault("(settings)", setting, f"{target!r} is {meant[0]}: {sentence}"))
    return list(found)


def refuse_trained_tower(model: Any, projector: bool) -> None:
    """Raise InputError if the vision tower is trained, or if `projector` is set and nothing of it is trained."""
    trained = [name for name, value in vision_parameters(model).items() if value.requires_grad]
    others = [name for name in trained if not in_projector(name)]
    if others or (projector and not trained):
        found = f"trained are {', '.join(others[:3])} and others" if others else "its parameters are frozen"
        rule = "projector_learning_rate trains the projector" if projector else "the vision tower is never trained"
        raise InputError(
            f"{rule}, but {found}. Let mmedpo.training.model.choose_trained(model, model_args, config) freeze it and "
            "make the trainer's peft_config."
        )
