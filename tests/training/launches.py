"""Whole training runs from the command line: in this process, in another, and in several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmedpo.training import run

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).with_name("killed.py")


def arguments(preferences: Path, model: Path, output: Path, **changes: object) -> list[str]:
    settings = {
        "dataset_name": preferences, "model_name_or_path": model, "output": output, "max_steps": 3,
        "logging_steps": 1, "per_device_train_batch_size": 4, "disable_tqdm": "true", **changes,
    }  # fmt: skip
    recipe = ["--config", str(ROOT / "recipes" / "quickstart.yaml")]
    lists = {name: value if isinstance(value, list) else [value] for name, value in settings.items()}
    return recipe + [word for name, values in lists.items() for word in (f"--{name}", *map(str, values))]


class Killed(BaseException):
    """Ends a training like a kill: nothing more is written."""


def interrupt(patch: pytest.MonkeyPatch, done: int, *signals: int) -> None:
    """Once, in the step after `done` steps, send this process signals, or end the training as a kill would."""
    step = run.MMedPOTrainer.training_step

    def training_step(self: run.MMedPOTrainer, *args: object, **kwargs: object) -> torch.Tensor:
        if self.state.global_step == done:
            if not signals:
                patch.setattr(run.MMedPOTrainer, "training_step", step)
                raise Killed
            for number in signals:
                os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    patch.setattr(run.MMedPOTrainer, "training_step", training_step)


def launcher(recipe: str) -> list[str]:
    """`accelerate launch` with a recipe of `recipes/accelerate`, on a free port: tests launch at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", str(port), "--config_file",
            str(ROOT / "recipes" / "accelerate" / f"{recipe}.yaml")]  # fmt: skip


def launch(
    recipe: str, command: list[str], *options: str, script: Path = ROOT / "train.py"
) -> subprocess.CompletedProcess[str]:
    """A `launcher` with its `options` and the `command` of the training, run to its end."""
    words = [*launcher(recipe), *options, str(script), *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def history(folder: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"]
            if "loss" in entry]  # fmt: skip


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def largest_difference(ours: Path, theirs: Path) -> float:
    """Of any number in two adapters."""
    first, second = adapter(ours), adapter(theirs)
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)
