"""Trainings that are killed or told to stop, and go on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from launches import ROOT, arguments, history, interrupt, largest_difference, launcher

from mmedpo.errors import AlreadyFinished, Stopped
from mmedpo.models.fingerprint import fingerprint
from mmedpo.runs import run_folder
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.training import callbacks, run, trainer

STEPS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "train_sampling_strategy": "group_by_length",
         "lora_dropout": 0.1, "disable_dropout": "false"}  # fmt: skip

slow = pytest.mark.slow

# Each kills the process at a moment: in a step before any checkpoint, while a checkpoint is written, in a step after it
# (a torn later one beside it), and when all steps are done but nothing is saved.
KILL = """
import os, sys
from transformers import Trainer
from mmedpo.training import run, trainer
moment = sys.argv.pop(1)
kill = lambda *_, **__: os.kill(os.getpid(), 9)
step = trainer.MMedPOTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step == {"first step": 1, "later step": 5}.get(moment): kill()
    return step(self, *args, **kwargs)
trainer.MMedPOTrainer.training_step = training_step
if moment == "checkpoint":
    Trainer._save_rng_state = kill
if moment == "end":
    trainer.MMedPOTrainer.save_state = kill
run.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(preferences: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "adapter"
    run.main(arguments(preferences, tiny_model, output, **STEPS))
    return output


@pytest.mark.parametrize(
    "moment", ["later step", *(pytest.param(moment, marks=slow) for moment in ("first step", "checkpoint", "end"))]
)
def test_a_killed_run_ends_in_the_adapter_of_an_uninterrupted_one(
    moment: str, whole: Path, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    command = arguments(preferences, tiny_model, output, **STEPS)
    killed = subprocess.run([sys.executable, "-c", KILL, moment, *command], capture_output=True, check=False, cwd=ROOT)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert not output.exists()
    whole_checkpoints = list(tmp_path.glob("adapter.partial/checkpoint-*/trainer_state.json"))
    assert len(whole_checkpoints) == {"first step": 0, "checkpoint": 0, "later step": 2, "end": 3}[moment]
    resumed = len(whole_checkpoints) > 0
    for file in whole_checkpoints:
        state = read_json(file)
        assert 0 < state["stateful_callbacks"]["seconds"] < 600
        write_json(file, {**state, "stateful_callbacks": {**state["stateful_callbacks"], "seconds": 1000.0}})
    run.main([*command, "--resume"])
    assert (read_json(output / "training.json")["seconds"] >= 1000) is resumed
    last = read_json(output / "trainer_state.json")["log_history"][-1]
    assert (last["train_runtime"] >= 1000, "train_loss" in last) == (resumed, not resumed)
    assert history(output) == pytest.approx(history(whole), abs=1e-6)
    assert largest_difference(output, whole) < 1e-6


@pytest.mark.parametrize("renamed", [False, True])
def test_a_training_killed_around_its_last_rename_is_not_trained_again(
    renamed: bool, preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "adapter", Path.replace
    command = arguments(preferences, tiny_model, output, **STEPS)

    def killed(path: Path, target: Path | None = None) -> Path:
        if target in (None, output):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*((run_folder, "_tidy") if renamed else (Path, "replace")), killed)
        run.main(command)
    assert output.exists() is renamed
    found = {entry.name for entry in (output if renamed else tmp_path / "adapter.partial").iterdir()}
    assert {"checkpoint-2", "checkpoint-4", "checkpoint-6"} <= found
    monkeypatch.setattr(trainer.MMedPOTrainer, "training_step", lambda *_: pytest.fail("trained again"))
    with pytest.raises(AlreadyFinished) if renamed else nullcontext():
        run.main([*command, "--resume"])
    left = {entry.name for entry in output.iterdir()}
    assert "adapter_model.safetensors" in left and not {"checkpoint-6", ".lock"} & left


def test_sigterm_saves_a_checkpoint_and_ends_with_130(
    whole: Path, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    changes = {**STEPS, "save_strategy": "no"}
    command = arguments(preferences, tiny_model, output, **changes)
    program = (
        "import os, signal, sys\nfrom mmedpo.training import trainer\nfrom mmedpo.cli import main\n"
        "step = trainer.MMedPOTrainer.training_step\n"
        "def training_step(self, *args, **kwargs):\n"
        "    if self.state.global_step == 2: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, *args, **kwargs)\n"
        "trainer.MMedPOTrainer.training_step = training_step\nmain(['train', *sys.argv[1:]])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, *command], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert told.returncode == 130, told.stderr[-2000:]
    assert "Stopped after step 3 of 6; a checkpoint is kept. Continue with --resume." in told.stderr
    assert [path.name for path in (tmp_path / "adapter.partial").glob("checkpoint-*")] == ["checkpoint-3"]
    assert read_json(tmp_path / "adapter.partial" / "training.json") == {
        "credentialed_source": None, "model_fingerprint": fingerprint(str(tiny_model)), "adapter_checked_by": None,
        "dataset_revision": None,
    }  # fmt: skip
    run.main([*command, "--resume"])
    assert history(output) == pytest.approx(history(whole), abs=1e-6)
    assert largest_difference(output, whole) < 1e-6


@slow
@pytest.mark.parametrize("told", ["SIGTERM to one of them", "Ctrl-C in their terminal"])
def test_two_processes_of_which_one_is_told_stop_at_one_step(
    told: str, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    command = arguments(preferences, tiny_model, output, **{**STEPS, "max_steps": 2000, "save_strategy": "no"})
    running = subprocess.Popen(
        [*launcher("ddp"), str(ROOT / "train.py"), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("{'loss'"):
                break
        workers = [child for child in psutil.Process(running.pid).children() if str(output) in child.cmdline()]
        assert len(workers) == 2
        if told == "Ctrl-C in their terminal":
            os.killpg(running.pid, signal.SIGINT)
        else:
            workers[1].terminate()
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert "Stopped after step" in said
    (checkpoint,) = (tmp_path / "adapter.partial").glob("checkpoint-*")
    assert (checkpoint / "trainer_state.json").exists() and (checkpoint / "rng_state_1.pth").exists()
    assert not output.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_finished_training_told_to_stop_at_its_last_step_is_finished(
    number: signal.Signals, preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, 2, number)
    before = [signal.getsignal(known) for known in callbacks.SIGNALS]
    run.main(arguments(preferences, tiny_model, tmp_path / "done", max_steps=3))
    assert (tmp_path / "done" / "training.json").exists()
    assert [signal.getsignal(known) for known in callbacks.SIGNALS] == before
    with pytest.raises(Stopped, match="step 3 of 5"):
        run.main(arguments(preferences, tiny_model, tmp_path / "stopped", max_steps=5, save_strategy="no"))
    assert [path.name for path in (tmp_path / "stopped.partial").glob("checkpoint-*")] == ["checkpoint-3"]


def test_a_second_ctrl_c_ends_at_once_and_a_launchers_echo_does_not(
    preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    interrupt(monkeypatch, 2, signal.SIGINT, signal.SIGINT)
    command = arguments(preferences, tiny_model, tmp_path / "out", max_steps=5, save_strategy="no")
    with pytest.raises(Stopped, match="step 3 of 5"):
        run.main(command)
    said = "A checkpoint is saved at the end of this step; Another Ctrl-C, after 2 seconds or later, ends at once.\n"
    assert capsys.readouterr().out.count(said) == 1
    shutil.rmtree(tmp_path / "out.partial")
    monkeypatch.setattr(callbacks, "ECHO", 0.0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run.main(command)
    assert signal.getsignal(signal.SIGINT) is before
    assert not list((tmp_path / "out.partial").glob("checkpoint-*"))
