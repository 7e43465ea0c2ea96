"""Curation recipes: their headers are manuals whose commands work, and their settings are valid; no model is asked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from trl import TrlParser

from mmedpo.curation.localize import FORMS, Query
from mmedpo.curation.noise import check_rule
from mmedpo.curation.settings import Preview, Run, Settings
from mmedpo.curation.standins import STANDINS
from mmedpo.runs import recipes

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(file for folder in ("cluster", "curate") for file in (ROOT / "recipes" / folder).glob("*.yaml"))
CHAT = re.compile(r"(local:[\w.-]+/[\w.-]+|hub:[\w.-]+/[\w.-]+(@[\w-]+)?|https?://[\w.-]+(:\d+)?/v1#[\w./-]+)")
COMMAND = re.compile(r"mmedpo (curate|preview) (--config \S+.*?)(?:  |$)", re.MULTILINE)


def header(recipe: Path) -> str:
    """The comment that opens a recipe, without its marks."""
    lines = recipe.read_text(encoding="utf-8").split("\n")
    return "\n".join(line[1:].strip() for line in lines[: next(i for i, line in enumerate(lines) if line[:1] != "#")])


def settings(recipe: Path) -> Settings:
    words = ["--config", str(recipe), "--source", "data", "--output", "out"]
    parsed, _ = recipes.parse(words, [Settings, Run], "mmedpo curate")
    return parsed


def test_there_is_a_recipe_for_each_use() -> None:
    assert [recipe.stem for recipe in RECIPES] == ["ray", "slurm", "air_gapped", "reports", "vqa_rad"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_is_valid_with_nothing_but_a_source_and_an_output(recipe: Path) -> None:
    found = settings(recipe)
    assert (found.source, found.split, found.skip_faulty) == (Path("data"), "train", False)
    assert all(CHAT.fullmatch(name) or name in STANDINS for name in (found.chat, *found.judges))
    assert len({name.rpartition("#")[2] for name in found.judges}) == len(found.judges) > 1
    assert found.localizer.partition(":")[0] in FORMS and Query(found.query).texts() and check_rule(found.mask_rule)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_recipe_leaves_to_the_user_what_only_the_user_knows(recipe: Path) -> None:
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    assert not keys.keys() & {"source", "output", "resume", "cache", "env"}
    assert keys["seed"] == 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_header_names_purpose_prerequisites_command_and_limits(recipe: Path) -> None:
    starts = {line.split("  ")[0] for line in header(recipe).split("\n")}
    assert starts >= {"Purpose", "Prerequisites", "Run", "Limits"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_commands_of_the_header_are_understood(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = COMMAND.findall(header(recipe))
    assert "curate" in dict(commands)
    for command, words in commands:
        assert f"--config {recipe.relative_to(ROOT)} " in words
        kinds = [Settings, Preview if command == "preview" else Run]
        parsed, run = recipes.parse(shlex.split(words), kinds, f"mmedpo {command}")
        assert parsed == Settings(**{**vars(settings(recipe)), "source": parsed.source})
        assert (run.output.suffix == ".png") is (command == "preview")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_options_that_the_header_names_exist(recipe: Path) -> None:
    known = {option for action in TrlParser([Settings, Run])._actions for option in action.option_strings}
    ours = re.sub(r"(sbatch|vllm serve|hf download|ray start|pip install) .*|--tensor-.*", "", header(recipe))
    assert set(re.findall(r"--[a-z][a-z_-]*", ours)) - {"--config"} <= known


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_files_of_the_project_that_the_header_names_exist(recipe: Path) -> None:
    for name in re.findall(r"(?:docs|recipes)/[\w/]+\.\w+", header(recipe)):
        assert (ROOT / name).is_file()


def test_vqa_rad_samples_medgemma_and_asks_three_models_of_the_hub() -> None:
    found = settings(ROOT / "recipes" / "curate" / "vqa_rad.yaml")
    assert found.model == "google/medgemma-4b-it" and len(found.judges) == 3
    assert all(judge.startswith(("hub:", "local:")) for judge in found.judges)


def test_reports_are_noised_where_medklip_looks() -> None:
    found = settings(ROOT / "recipes" / "curate" / "reports.yaml")
    assert found.localizer.startswith("medklip:") and found.makes_visual_pairs


def test_air_gapped_node_asks_two_endpoints_of_its_own_and_nobody_else() -> None:
    found = settings(ROOT / "recipes" / "curate" / "air_gapped.yaml")
    places = {name.partition("#")[0] for name in (found.chat, *found.judges)}
    assert len(places) == 2 and all(place.startswith("http://localhost:") for place in places)
    assert not (found.model or "").count(":") and found.localizer == "boxes"
