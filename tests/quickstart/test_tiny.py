"""Supervised training of the stand-in models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmedpo.errors import InputError
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.quickstart import tiny


@pytest.mark.parametrize("part", ["language_model", "vision_tower", "multi_modal_projector"])
def test_backbone_is_trained_in_all_its_parts_and_saved_whole(backbone: Path, part: str, tiny_model: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, backbone))
    assert before.keys() == after.keys()
    changed = [name for name in before if part in name and not torch.equal(before[name], after[name])]
    assert changed


def test_backbone_is_marked_and_answers(backbone: Path) -> None:
    assert json.loads((backbone / "config.json").read_text())["standin"] == "standin:backbone"
    assert VisionLanguageModel(str(backbone)).called == str(backbone)


def test_backbone_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be loaded"):
        tiny.open_backbone(tmp_path)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, corpus: Path, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "start"
    tiny.make(corpus, "supervised", steps=2, output=folder, backbone=tiny_model)
    return folder
