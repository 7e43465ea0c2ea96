"""A resumed training logs what an uninterrupted one does, whichever of its steps are logged, saved and evaluated."""

from __future__ import annotations

import itertools
import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from launches import KILLED, Killed, arguments, interrupt, launch

from mmedpo.errors import InputError, Stopped
from mmedpo.hub.cards import write_adapter_card
from mmedpo.runs.json_files import read_json
from mmedpo.training import losses, record, run, trainer

slow = pytest.mark.slow
TIMES = ("runtime", "_per_second", "train_loss")  # of a start, not of the training
STEPS = {"save_strategy": "steps", "save_steps": 3, "max_steps": 8}
MPO = {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0], "bco_shift": "true"}
EPOCHS = {"max_steps": 5, "eval_split": "train", "logging_strategy": "epoch", "eval_strategy": "epoch"}  # of 3 steps


@pytest.fixture(scope="module")
def pairs(preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pairs: three steps an epoch."""
    folder = tmp_path_factory.mktemp("pairs") / "pairs"
    (shard,) = preferences.glob("data/train-*.parquet")
    (folder / "data").mkdir(parents=True)
    Dataset.from_parquet(str(shard)).select(range(12)).to_parquet(folder / "data" / shard.name)
    return folder


def log(output: Path) -> list[dict[str, Any]]:
    history = read_json(output / "trainer_state.json")["log_history"]
    return [{key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in history]


@pytest.mark.parametrize(
    ("settings", "done", "how", "logged"),
    [
        (
            {**STEPS, **MPO, "logging_steps": 5, "logging_first_step": "true", "gradient_accumulation_steps": 2}, 7,
            "kill", [1, 5, 8, 8],
        ),
        pytest.param({**STEPS, "logging_steps": 4, "save_strategy": "no"}, 5, "stop", [4, 8, 8], marks=slow),
        # The checkpoint is that of an epoch's last step, before what transformers does at an epoch's end.
        ({**EPOCHS, "save_strategy": "steps", "save_steps": 3}, 4, "kill", [3, 3, 5, 5, 5]),
        pytest.param({**EPOCHS, "save_strategy": "epoch"}, 3, "stop", [3, 3, 5, 5, 5], marks=slow),
    ],
    ids=["first step and accumulation", "told to stop", "end of an epoch", "told to stop in an epoch"],
)  # fmt: skip
def test_a_resumed_training_logs_what_an_uninterrupted_one_does(
    settings: dict[str, Any], done: int, how: str, logged: list[int], pairs: Path, tiny_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run.main(arguments(pairs, tiny_model, tmp_path / "whole", **settings))
    whole = log(tmp_path / "whole")
    assert [entry["step"] for entry in whole] == logged
    command = arguments(pairs, tiny_model, tmp_path / "resumed", **settings)
    interrupt(monkeypatch, done, *([signal.SIGTERM] if how == "stop" else []))
    with pytest.raises(Killed if how == "kill" else Stopped):
        run.main(command)
    monkeypatch.undo()
    run.main([*command, "--resume"])
    resumed = log(tmp_path / "resumed")
    assert [entry.keys() for entry in resumed] == [entry.keys() for entry in whole]
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6), theirs["step"]


def test_a_training_whose_loss_is_nan_stops_at_that_step(
    pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = itertools.count(1)
    monkeypatch.setattr(
        trainer, "pair_losses",
        lambda *given: losses.pair_losses(*given) * (torch.nan if next(steps) == 2 else 1.0),
    )  # fmt: skip
    output = tmp_path / "spoilt"
    with pytest.raises(InputError, match="loss is nan at step 2"):
        run.main(arguments(pairs, tiny_model, output, max_steps=3, logging_steps=1), card=write_adapter_card)
    assert not output.exists()


def test_values_that_are_no_finite_numbers_become_null_in_the_trainer_state(tmp_path: Path) -> None:
    state = {"log_history": [{"loss": 1.5, "step": 1}, {"loss": math.nan, "step": 2}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    record.tidy_state(tmp_path)
    text = (tmp_path / "trainer_state.json").read_text()
    assert [entry["loss"] for entry in json.loads(text, parse_constant=pytest.fail)["log_history"]] == [1.5, None]


@slow
def test_two_processes_log_what_one_does_and_both_refuse_another_dataset(
    pairs: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**STEPS, **MPO, "save_steps": 4, "max_steps": 6, "logging_steps": 3, "learning_rate": 2e-4}
    run.main(arguments(pairs, tiny_model, tmp_path / "one", **settings))
    command = arguments(pairs, tiny_model, tmp_path / "two", **{**settings, "per_device_train_batch_size": 2})
    monkeypatch.setenv("KILL_AT", "4")
    killed = launch("ddp", command, script=KILLED)
    assert killed.returncode != 0 and (tmp_path / "two.partial" / "checkpoint-4").is_dir(), killed.stderr[-2000:]
    (shard,) = pairs.glob("data/*.parquet")
    before = shard.read_bytes()
    Dataset.from_parquet(str(shard)).map(lambda row: {"weight": row["weight"] * 0.5}).to_parquet(shard)
    refused = launch("ddp", [*command, "--resume"])
    shard.write_bytes(before)
    assert refused.returncode != 0 and refused.stderr.count("run.dataset_name") >= 1
    done = launch("ddp", [*command, "--resume"])
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert one[-1].pop("total_flos") and two[-1].pop("total_flos")  # other batches have other padding
    assert [entry["step"] for entry in one] == [3, 6, 6] and [entry.keys() for entry in two] == [e.keys() for e in one]
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), theirs["step"]
