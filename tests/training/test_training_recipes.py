"""Training recipes: their headers are manuals whose options exist, and each recipe runs, on a tiny model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from launches import ROOT, arguments, history
from trl import ModelConfig, TrlParser

from mmedpo import MMedPOConfig
from mmedpo.training import run

RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem != "quickstart")


def header(recipe: Path) -> str:
    lines = recipe.read_text(encoding="utf-8").split("\n")
    return "\n".join(line[1:].strip() for line in lines if line.startswith("#"))


def test_the_recipes_are_those_of_the_documentation() -> None:
    assert [recipe.stem for recipe in RECIPES] == [
        *("lingshu-7b-qlora", "llava-med-zero3", "medgemma-4b-lora", "paper-llava-med")
    ]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_header_is_a_manual(recipe: Path) -> None:
    text = header(recipe)
    starts = {re.split(r"\s{2,}", line)[0] for line in text.split("\n")}
    assert starts >= {"Purpose", "Prerequisites", "Run", "Override", "Memory", "Time", "Limits"}
    assert re.search(r"Memory\s+estimated", text) and re.search(r"Time\s+(not )?estimated", text)
    assert f"--config recipes/{recipe.name} " in text
    parser = TrlParser([run.RunArguments, MMedPOConfig, ModelConfig])
    known = {option for action in parser._actions for option in action.option_strings}
    launcher = {"--config", "--config_file", "--num_processes", "--num_machines", "--machine_rank", "--mixed_precision",
                "--main_process_ip", "--main_process_port", "--weights"}  # fmt: skip
    assert set(re.findall(r"--[a-z][a-z0-9_]*", text)) <= known | launcher
    for name in re.findall(r"(?:docs|recipes)/[\w./-]+\.\w+", text):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_runs(
    recipe: Path,
    preferences: Path,
    tiny_model: Path,
    quantisable: Path,
    tmp_path: Path,
) -> None:
    output, model = tmp_path / "adapter", quantisable if "qlora" in recipe.stem else tiny_model
    given = arguments(preferences, model, output, max_steps=2, logging_steps=1, use_cpu="true")
    given[1] = str(recipe)
    if "reference_cache" in recipe.read_text(encoding="utf-8"):
        given += ["--reference_cache", str(tmp_path / "reference")]
    run.main([*given, "--dataloader_num_workers", "0"])
    assert len(history(output)) == 2 and (output / "adapter_model.safetensors").exists()
