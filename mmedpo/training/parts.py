"""Parts of a vision-language model, and the trained parameters in each."""

from __future__ import annotations

from typing import Any

import torch

from mmedpo.errors import InputError
from mmedpo.models.sharing import base_model, text_model

PARTS = ("language_model", "projector", "vision_tower")  # vision_tower is all that is in neither of the others
# Names of the projector in the model families.
PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")

Trained = dict[str, dict[str, int]]


def is_frozen(model: Any) -> bool:
    """Return True where only the language model and its head are trained, without vision tower and projector."""
    return not any(parameter.requires_grad for parameter in vision_parameters(model).values())


def same_encoder(model: Any, other: Any) -> bool:
    """Return True where two models make the same image features; False if ZeRO-3 has split one, which hides it."""
    ours, theirs = (vision_parameters(base_model(each)) for each in (model, other))
    return ours.keys() == theirs.keys() and not any(
        hasattr(own, "ds_id") or own.dtype != theirs[name].dtype or not torch.equal(own.cpu(), theirs[name].cpu())
        for name, own in ours.items()
    )


def vision_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters, by name, of all that makes image features: vision tower, projector and the rest."""
    parts = [text_model(model), base_model(model).get_output_embeddings()]
    language = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) not in language}


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
