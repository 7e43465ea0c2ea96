"""A whole training run: from the command line to an adapter that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launches import arguments, history
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from mmedpo.errors import InputError
from mmedpo.training import run


@pytest.fixture(scope="module")
def trained(preferences: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "adapter"
    run.main(arguments(preferences, tiny_model, output))
    return output


def test_the_adapter_loads_through_peft_and_changes_the_language_model_only(trained: Path, tiny_model: Path) -> None:
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_model), trained)
    moved = {name for name, value in model.named_parameters() if "lora_B" in name and value.abs().sum() > 0}
    assert moved and all("language_model" in name for name in moved)


def test_what_was_done_is_recorded(trained: Path) -> None:
    record = json.loads((trained / "training.json").read_text())
    assert record["model_is_local"] and record["dataset_is_local"]
    assert record["format"] == "mmedpo.training/1"
    assert set(record["rows"]) == {"hallucinated_response", "lesion_noise"}
    assert record["config"]["learning_rate"] and record["lora"]["lora_r"] == 16
    assert len(history(trained)) == 3
    assert not (trained / "training_args.bin").exists()  # a pickle with folders of this machine
    assert json.loads((trained / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert not list(trained.glob("checkpoint-*")) and not trained.with_name("adapter.partial").exists()


def test_one_kind_of_pair_can_be_trained_alone(preferences: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "visual"
    run.main(arguments(preferences, tiny_model, output, dispreference="lesion_noise", max_steps=1))
    assert set(json.loads((output / "training.json").read_text())["rows"]) == {"lesion_noise"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": "nowhere"}, "'nowhere' cannot be loaded as a dataset"),
        ({"model_name_or_path": "nowhere"}, "The model 'nowhere' cannot be loaded"),
        ({"dispreference": "all-of-them"}, "dispreference 'all-of-them' is unknown"),
        ({"loss_type": "sigmoid"}, "Got 2 weights for 1 loss types"),
        ({"reference_cache": __file__}, "test_run.py is not a folder; choose another --reference_cache."),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(
    changes: dict, message: str, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    with pytest.raises(InputError, match=message):
        run.main(arguments(preferences, tiny_model, output, **changes))
    assert not list(tmp_path.iterdir())
