"""What a training is given under names, replaced between a kill and `--resume`: refused, before a model is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from launches import Killed, arguments, history, interrupt, largest_difference
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from mmedpo.errors import InputError
from mmedpo.models.fingerprint import dataset_contents
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.training import run
from mmedpo.training.model import language_model_linears

STEPS = {"use_peft": "false", "max_steps": 3, "save_strategy": "steps", "save_steps": 2, "learning_rate": 2e-3}


@dataclass
class Given:
    dataset: Path
    model: Path
    adapter: Path
    output: Path

    @property
    def partial(self) -> Path:
        return self.output.with_name(self.output.name + ".partial")

    @property
    def shard(self) -> Path:
        (found,) = self.dataset.glob("data/train-*.parquet")
        return found

    def command(self, output: Path | None = None) -> list[str]:
        return arguments(self.dataset, self.model, output or self.output, adapter_name_or_path=self.adapter, **STEPS)


@pytest.fixture(scope="module")
def killed(preferences: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A training of three steps, of an adapter that is gone on from, killed after two."""
    home = tmp_path_factory.mktemp("killed")
    given = Given(home / "pairs", home / "base", home / "before", home / "after")
    (source,) = preferences.glob("data/train-*.parquet")
    (given.dataset / "data").mkdir(parents=True)
    Dataset.from_parquet(str(source)).select(range(12)).to_parquet(given.dataset / "data" / source.name)
    shutil.copytree(tiny_model, given.model)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(given.model)
    get_peft_model(model, LoraConfig(r=4, target_modules=language_model_linears(model))).save_pretrained(given.adapter)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 2)
        run.main(given.command())
    return given


def other_rows(file: Path) -> None:
    rows = Dataset.from_parquet(str(file))
    rows.map(lambda row: {"weight": row["weight"] * 0.5}).to_parquet(file)


def other_weights(file: Path) -> None:
    save_file({name: value + 1e-3 for name, value in load_file(file).items()}, file, metadata={"format": "pt"})


def other_template(file: Path) -> None:
    file.write_text("{#- of another -#}" + file.read_text())


def other_training(file: Path) -> None:
    state = read_json(file)
    state["stateful_callbacks"]["training"]["digest"] = "of another"
    write_json(file, state)


def of_transformers(file: Path) -> None:
    state = read_json(file)
    write_json(file, {**state, "stateful_callbacks": {"TrainerControl": state["stateful_callbacks"]["TrainerControl"]}})


@pytest.mark.parametrize(
    ("place", "replace", "said"),
    [
        (lambda given: given.shard, other_rows, r"run\.dataset_name \S+/pairs: \w{8} -> \w{8}"),
        (lambda given: given.model / "model.safetensors", other_weights, r"model \S+/base: \w{8} -> \w{8}"),
        (lambda given: given.model / "chat_template.jinja", other_template, r"model \S+/base: \w{8} -> \w{8}"),
        (
            lambda given: given.adapter / "adapter_model.safetensors", other_weights,
            r"run\.adapter_name_or_path \S+/before: \w{8} -> \w{8}",
        ),
        (lambda given: given.partial / "checkpoint-2/trainer_state.json", other_training, "checkpoint-2: written by"),
        (lambda given: given.partial / "checkpoint-2/trainer_state.json", of_transformers, "checkpoint-2: written by"),
    ],
    ids=["dataset", "weights", "template", "adapter", "checkpoint", "checkpoint of transformers"],
)  # fmt: skip
def test_what_was_replaced_is_refused_before_a_model_is_loaded(
    place: Callable[[Given], Path], replace: Callable[[Path], None], said: str, killed: Given,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loaded = []
    monkeypatch.setattr(run, "open_model", lambda *_: loaded.append(True))
    file = place(killed)
    before = file.read_bytes()
    try:
        replace(file)
        assert file.read_bytes() != before
        with pytest.raises(InputError, match=said):
            run.main([*killed.command(), "--resume"])
    finally:
        file.write_bytes(before)
    assert not loaded and (killed.partial / "checkpoint-2").is_dir()


def test_what_is_replaced_while_the_model_is_loaded_is_refused(
    killed: Given, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = killed.model / "chat_template.jinja"
    before, open_model = template.read_bytes(), run.open_model

    def replacing(*given: object) -> object:
        other_template(template)
        return open_model(*given)

    monkeypatch.setattr(run, "open_model", replacing)
    try:
        with pytest.raises(InputError, match=r"model \S+/base: \w{8} -> \w{8}"):
            run.main(killed.command(tmp_path / "raced"))
    finally:
        template.write_bytes(before)
    assert not list(tmp_path.iterdir())


def test_the_same_bytes_written_anew_are_gone_on_with(killed: Given, tmp_path: Path) -> None:
    run.main(killed.command(tmp_path / "whole"))
    for file in (killed.shard, killed.model / "model.safetensors", killed.adapter / "adapter_model.safetensors"):
        shutil.copy(file, tmp_path / "copy")
        file.unlink()
        (tmp_path / "copy").replace(file)
    spelt = {str(path): f"{path.parent}/./{path.name}" for path in (killed.dataset, killed.model, killed.output)}
    command = [spelt.get(word, word) for word in [*killed.command(), "--resume"]]
    run.main(command)
    assert history(killed.output) == pytest.approx(history(tmp_path / "whole"), abs=1e-6)
    assert largest_difference(killed.output, tmp_path / "whole") < 1e-6
    recorded = [read_json(folder / "training.json")["contents"] for folder in (killed.output, tmp_path / "whole")]
    assert recorded[0] == recorded[1] and all(recorded[0].values())
    other_rows(killed.shard)
    with pytest.raises(InputError, match=r"after: since the start of this run.*\n.*run\.dataset_name"):
        run.main(command)


def test_contents_of_a_dataset_are_the_bytes_of_its_splits(preferences: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(preferences, folder)
    before = dataset_contents(str(folder), {"train"})
    shutil.copytree(folder, tmp_path / "b")
    assert dataset_contents(str(tmp_path / "b"), {"train"}) == before
    (shard,) = folder.glob("data/train-*.parquet")
    shutil.copy(shard, folder / "data" / "test-00000-of-00001.parquet")
    assert dataset_contents(str(folder), {"train"}) == before
    assert dataset_contents(str(folder), {"train", "test"}) != before
    other_rows(shard)
    assert dataset_contents(str(folder), {"train"}) != before


def test_contents_of_a_folder_in_another_layout_are_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    before = dataset_contents(str(tmp_path), {"train"})
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "note").write_text("hidden")
    assert dataset_contents(str(tmp_path), {"train"}) == before
    (tmp_path / "rows.jsonl").write_text('{"a": 2}\n')
    assert dataset_contents(str(tmp_path), {"train"}) != before
