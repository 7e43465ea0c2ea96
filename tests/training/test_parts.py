"""What is trained lies in the language model, or in a projector that was asked for: by every door, in every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, build
from launches import arguments
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText
from trl import ModelConfig

from mmedpo import MMedPOConfig
from mmedpo.errors import InputError
from mmedpo.training import run
from mmedpo.training.model import choose_trained
from mmedpo.training.parts import in_projector, trained_parts

LAYERS, LINEARS = 2, 7  # of the families' tiny language models, and in each layer
OUTSIDE = ("vision", "visual", "projector", "connector", "merger")


def chosen(model: Any, tmp_path: Path, **settings: Any) -> Any:
    """The model as `choose_trained` makes it ready."""
    own = {name: settings.pop(name) for name in ("projector_learning_rate",) if name in settings}
    config = MMedPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, bf16=False, **own)
    peft_config = choose_trained(model, ModelConfig(**{"use_peft": True, **settings}), config)
    return get_peft_model(model, peft_config) if peft_config else model


@pytest.mark.parametrize("name", FAMILIES)
def test_targets_are_the_language_models_in_every_family(name: str, tmp_path: Path) -> None:
    for settings, modules in [
        ({}, LAYERS * LINEARS),
        ({"lora_target_modules": ["q_proj", "v_proj"]}, LAYERS * 2),
        ({"lora_target_modules": ["q_proj"], "use_dora": True}, LAYERS),  # one name, which TRL makes a text of
        ({"lora_target_modules": ["all-linear"]}, LAYERS * LINEARS),
        ({"lora_target_modules": [r".*\.(q_proj|fc1|qkv|linear_1)"]}, LAYERS),
        ({"lora_target_modules": ["q_proj", "lm_head"]}, LAYERS + 1),
        ({"lora_modules_to_save": ["lm_head"]}, LAYERS * LINEARS + 1),
    ]:
        model = chosen(build(name).model, tmp_path, **settings)
        found = trained_parts(model)
        trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
        assert found["language_model"] == {
            "parameters": sum(value.numel() for value in trained.values()), "modules": modules,
        }, settings  # fmt: skip
        assert found["projector"] == found["vision_tower"] == {"parameters": 0, "modules": 0}
        keys = {*trained, *get_peft_model_state_dict(model)}
        assert not [key for key in keys if any(part in key for part in OUTSIDE)], settings


@pytest.mark.parametrize("name", FAMILIES)
def test_projector_and_full_fine_tuning_leave_the_tower_in_every_family(name: str, tmp_path: Path) -> None:
    for settings in ({"use_peft": False}, {"use_peft": False, "projector_learning_rate": 1e-4},
                     {"projector_learning_rate": 1e-4}):  # fmt: skip
        found = trained_parts(chosen(build(name).model, tmp_path, **settings))
        assert found["language_model"]["parameters"] and found["vision_tower"]["parameters"] == 0
        assert bool(found["projector"]["parameters"]) == ("projector_learning_rate" in settings)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_lies_elsewhere_is_refused_by_name_in_every_family(name: str, tmp_path: Path) -> None:
    model = build(name).model
    inside = {id(module) for module in model.get_decoder().modules()}
    linears = [
        key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) not in inside
    ]
    tower = next(key for key in linears if not in_projector(key) and key != "lm_head")
    projector = next(key for key, _ in model.named_modules() if in_projector(key))
    for setting, named, said in [
        ("lora_target_modules", tower, "the vision tower is never trained"),
        ("lora_target_modules", projector, "train the projector with projector_learning_rate"),
        ("lora_target_modules", "q_prj", "names no module of the model"),
        ("lora_target_modules", "mlp", "mlp, which is not a linear layer; name layers such as q_proj"),
        ("lora_target_modules", r".*layers.*", ", which is not a linear layer; name layers such as q_proj"),
        ("lora_target_modules", "(", "is not a regular expression"),
        ("lora_modules_to_save", tower, "the vision tower is never trained"),
        ("lora_modules_to_save", tower.split(".")[1], "the vision tower is never trained"),
        ("lora_modules_to_save", "model", "the vision tower is never trained"),
        ("lora_target_parameters", f"{tower}.weight", "the vision tower is never trained"),
    ]:
        with pytest.raises(InputError) as refused:
            chosen(model, tmp_path, **{setting: [named]})
        (fault,) = refused.value.faults
        assert (fault.column, said in fault.sentence and repr(named) in fault.sentence) == (setting, True), fault


def test_a_run_says_and_records_what_is_trained(
    preferences: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(preferences, tiny_model, tmp_path / "adapter", max_steps=1, lora_r=4)
    run.main([*command, "--lora_target_modules", "q_proj", "v_proj"])
    layers, width = 2, 128
    parameters = layers * 2 * 4 * 2 * width  # modules, rank, inputs and outputs
    nothing = {"parameters": 0, "modules": 0}
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["trained_parameters"] == parameters
    assert record["trained"] == {
        "language_model": {"parameters": parameters, "modules": 2 * layers}, "projector": nothing,
        "vision_tower": nothing,
    }  # fmt: skip
    line = f"Trained: language model {parameters:,} parameters in {2 * layers} modules; projector nothing; vision tower"
    assert capsys.readouterr().out.count(f"{line} nothing.\n") == 1
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 * layers and all("language_model" in name for name in saved)


def test_an_adapter_with_weights_of_the_tower_is_not_gone_on_from(
    preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plain = AutoModelForImageTextToText.from_pretrained(tiny_model)
    get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "elsewhere")
    command = {"use_peft": "false", "adapter_name_or_path": tmp_path / "elsewhere"}
    with pytest.raises(InputError, match=r"\[adapter_name_or_path\]: has weights for 2 modules of the vision tower"):
        run.main(arguments(preferences, tiny_model, tmp_path / "adapter", **command))
    (tmp_path / "elsewhere" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors. Give --adapter_name_or_path a fin"):
        run.main(arguments(preferences, tiny_model, tmp_path / "adapter", **command))
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere"}
