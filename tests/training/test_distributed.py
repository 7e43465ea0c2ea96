"""Several processes train what one would, and a run goes on where others left it.

DeepSpeed with two processes on two processor cores is the real thing, but for the GPUs. LoRA's B begins at zero, so
that some of A's first gradients are as small as rounding errors, which Adam scales up to the learning rate: it is kept
small enough here for adapters to be compared at `CLOSE`, and a step still moves them a hundred times as far.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launches import KILLED, adapter, arguments, history, largest_difference, launch

from mmedpo import schema
from mmedpo.data import loading, shards
from mmedpo.errors import InputError
from mmedpo.models.vision_language import load_model
from mmedpo.training import run

CLOSE = 1e-5
STEADY = {"learning_rate": 2e-4, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
START = {"learning_rate": 1e-30, "max_steps": 1}
Command = Callable[..., list[str]]

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def command(preferences: Path, tiny_model: Path) -> Command:
    def make(output: Path, **changes: object) -> list[str]:
        return arguments(preferences, tiny_model, output, **{**STEADY, **changes})

    return make


@pytest.fixture(scope="module")
def alone(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of one process that nothing interrupts."""
    output = tmp_path_factory.mktemp("alone") / "adapter"
    run.main(command(output))
    return output


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("zero2", {}),
        ("zero3", {"prefix_sharing": "false", "gradient_checkpointing": "true"}),
        pytest.param("ddp", {"prefix_sharing": "false"}, marks=slow),
        pytest.param("zero1", {}, marks=slow),
        pytest.param("zero2", {"prefix_sharing": "false"}, marks=slow),
        pytest.param("zero3", {}, marks=slow),
        pytest.param("zero3_offload", {}, marks=slow),
        pytest.param("ddp", {}, marks=slow),
        pytest.param("zero1", {"prefix_sharing": "false"}, marks=slow),
        pytest.param("zero3", {"prefix_sharing": "false"}, marks=slow),
        pytest.param("zero3", {"gradient_checkpointing": "true"}, marks=slow),
        pytest.param("zero3_offload", {"prefix_sharing": "false"}, marks=slow),
    ],
)
def test_two_processes_train_what_one_does(
    recipe: str, changes: dict[str, str], alone: Path, command: Command, tmp_path: Path
) -> None:
    output = tmp_path / "adapter"
    done = launch(recipe, command(output, per_device_train_batch_size=2, **changes))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "deepspeed_shm_comm" not in done.stdout + done.stderr  # which would be compiled first
    hardware = json.loads((output / "training.json").read_text())["hardware"]
    assert hardware.startswith("2 x") and ("ZeRO-" + recipe[4:5] in hardware) == (recipe != "ddp")
    assert history(output) == pytest.approx(history(alone), abs=CLOSE)
    assert largest_difference(output, alone) < CLOSE


@slow
@pytest.mark.parametrize("recipe", ["ddp", "zero2", "zero3"])
def test_two_processes_train_on_steps_by_image_as_one_does(
    recipe: str, preferences: Path, command: Command, tmp_path: Path
) -> None:
    """Processes have different numbers of rows and of images, with and without noised ones; killed and resumed."""
    rows = list(schema.undecoded(loading.load(str(preferences))))
    texts, lesions = ([row for row in rows if bool(row["rejected_images"]) is kind] for kind in (False, True))
    shown, kinds = list({row["images"][0]["bytes"]: row["images"] for row in texts}.values()), schema.DISPREFERENCES
    mixed = [*texts[:26], *lesions[:6]]
    for i, row in enumerate(mixed):  # one image has 13 questions, the others two
        row["images"] = shown[i // 2 % len(shown) if i > 12 else 0]
        row["dispreference"] = kinds[row["dispreference"]]
    shards.save(mixed, tmp_path / "dataset")
    changes = {"dataset_name": tmp_path / "dataset", "pairs_per_image": 8}
    run.main(command(tmp_path / "one", per_device_train_batch_size=8, **changes))
    two = command(tmp_path / "two", per_device_train_batch_size=4, **changes)
    assert launch(recipe, two, script=KILLED).returncode != 0
    assert (tmp_path / "two.partial" / "checkpoint-2").is_dir()
    done = launch(recipe, [*two, "--resume"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert history(tmp_path / "two") == pytest.approx(history(tmp_path / "one"), abs=CLOSE)
    assert largest_difference(tmp_path / "two", tmp_path / "one") < CLOSE


@slow
def test_lora_starts_under_zero3_as_it_does_in_one_process(command: Command, tmp_path: Path) -> None:
    """To the last bit, in bfloat16; in float32 the next test's checkpoint of step 1 shows it.

    PEFT draws A in float32, from one seed in every process, and rounds it to the dtype of the weights it stands beside.
    For one process it then goes back to float32, while TRL leaves it in bfloat16 under ZeRO-3: the values are equal.
    They differ where the dtype of the weights does, which DeepSpeed decides by mixed precision and not by `dtype`: the
    pre-flight refuses or reports that.
    """
    precision = {"dtype": "bfloat16", "bf16": "true", **START}
    run.main(command(tmp_path / "one", **precision))
    done = launch("zero3", command(tmp_path / "two", per_device_train_batch_size=2, **precision))
    assert done.returncode == 0, done.stderr[-2000:]
    assert {value.dtype for value in adapter(tmp_path / "one").values()} == {torch.float32}
    assert {value.dtype for value in adapter(tmp_path / "two").values()} == {torch.bfloat16}
    assert largest_difference(tmp_path / "one", tmp_path / "two") == 0


@pytest.fixture(scope="module")
def killed(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`killed(recipe)`: the folder in which two processes were killed after two of four steps."""
    folders: dict[str, Path] = {}

    def kill(recipe: str) -> Path:
        if recipe not in folders:
            output = tmp_path_factory.mktemp(recipe) / "adapter"
            done = launch(recipe, command(output, per_device_train_batch_size=2), script=KILLED)
            folders[recipe] = output.with_name("adapter.partial")
            assert done.returncode != 0 and (folders[recipe] / "checkpoint-2").is_dir(), done.stderr[-2000:]
        return folders[recipe]

    return kill


def left(folder: Path, output: Path) -> Path:
    """As if the killed run in `folder` had been one that writes `output`."""
    partial = output.with_name(output.name + ".partial")
    shutil.copytree(folder, partial)
    settings = json.loads((partial / "settings.json").read_text())
    settings["run"]["output"] = str(output)
    (partial / "settings.json").write_text(json.dumps(settings))
    return output


def test_lora_starts_from_the_same_bits_in_float32(
    command: Command, killed: Callable[[str], Path], tmp_path: Path
) -> None:
    run.main(command(tmp_path / "one", **START))
    # The schedule warms up from a rate of 0, so that the first step changes nothing.
    assert largest_difference(killed("zero3") / "checkpoint-1", tmp_path / "one") == 0


@pytest.mark.parametrize(
    ("recipe", "processes"),
    [
        ("ddp", 1),
        pytest.param("zero3", 2, marks=slow),
        *(pytest.param(name, 2, marks=slow) for name in ("ddp", "zero1", "zero2", "zero3_offload")),
    ],
)
def test_a_killed_run_goes_on_under_its_recipe(
    recipe: str, processes: int, alone: Path, command: Command, killed: Callable[[str], Path], tmp_path: Path
) -> None:
    output = left(killed(recipe), tmp_path / "adapter")
    resumed = [*command(output, per_device_train_batch_size=4 // processes), "--resume"]
    if processes == 1:
        run.main(resumed)
    else:
        done = launch(recipe, resumed)
        assert done.returncode == 0, done.stderr[-2000:]
    assert history(output) == pytest.approx(history(alone), abs=CLOSE)
    assert largest_difference(output, alone) < CLOSE


def test_a_zero_checkpoint_is_a_start_for_another_engine(
    command: Command, killed: Callable[[str], Path], tmp_path: Path
) -> None:
    output = left(killed("zero3"), tmp_path / "adapter")
    checkpoint = tmp_path / "adapter.partial" / "checkpoint-2"
    with pytest.raises(InputError, match="ZeRO-3 on 2 processes, which a training without DeepSpeed cannot resume"):
        run.main([*command(output), "--resume"])
    assert checkpoint.is_dir() and not output.exists()
    run.main(command(tmp_path / "other", **START, use_peft="false", adapter_name_or_path=checkpoint))
    assert largest_difference(tmp_path / "other", checkpoint) == 0
    assert json.loads((tmp_path / "other" / "training.json").read_text())["adapter_checked_by"] == "fingerprint"


@slow
@pytest.mark.parametrize("recipe", ["zero2", "zero3"])
def test_full_fine_tuning_goes_on_with_two_groups_of_parameters(recipe: str, command: Command, tmp_path: Path) -> None:
    """Weights decay and biases do not."""
    full = {"use_peft": "false", "weight_decay": 0.1}
    run.main(command(tmp_path / "one", **full))
    two = command(tmp_path / "two", per_device_train_batch_size=2, **full)
    assert launch(recipe, two, script=KILLED).returncode != 0
    done = launch(recipe, [*two, "--resume"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert history(tmp_path / "two") == pytest.approx(history(tmp_path / "one"), abs=CLOSE)
    first, second = (load_model(str(tmp_path / name)).state_dict() for name in ("one", "two"))
    assert max((first[name] - second[name]).abs().max().item() for name in second) < CLOSE


def test_a_resumed_step_has_as_many_pairs_and_adams_moments(
    command: Command, killed: Callable[[str], Path], tmp_path: Path
) -> None:
    output = left(killed("ddp"), tmp_path / "adapter")
    with pytest.raises(InputError, match="pairs_a_step: 4 -> 2"):
        run.main([*command(output, per_device_train_batch_size=2), "--resume"])
    for optimizer in tmp_path.rglob("optimizer.pt"):
        optimizer.unlink()
    with pytest.raises(InputError, match="has no optimizer state"):
        run.main([*command(output), "--resume"])


def test_processes_that_do_not_know_of_each_other_are_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were launched"):
        run.main(command(tmp_path / "adapter", use_cpu="false"))


@slow
@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_two_processes_go_on_in_the_middle_of_a_later_epoch(
    order: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch is four steps: killed after six, the rest of the second epoch is that one's and not the first's."""
    changes = {
        "per_device_train_batch_size": 16,
        "max_steps": 8,
        "train_sampling_strategy": order,
        "num_train_epochs": 2,
    }
    assert launch("ddp", command(tmp_path / "whole", **changes)).returncode == 0
    monkeypatch.setenv("KILL_AT", "6")
    killed = launch("ddp", command(tmp_path / "adapter", **changes), script=KILLED)
    assert killed.returncode != 0 and (tmp_path / "adapter.partial" / "checkpoint-6").is_dir()
    done = launch("ddp", [*command(tmp_path / "adapter", **changes), "--resume"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert history(tmp_path / "adapter") == pytest.approx(history(tmp_path / "whole"), abs=1e-6)
    assert largest_difference(tmp_path / "adapter", tmp_path / "whole") < 1e-6


@slow
def test_a_trained_projector_goes_on_under_zero_at_its_own_rate(command: Command, tmp_path: Path) -> None:
    changes = {"projector_learning_rate": 1e-4}
    run.main(command(tmp_path / "alone", **changes))
    output = tmp_path / "adapter"
    two = command(output, per_device_train_batch_size=2, **changes)
    assert launch("zero2", two, script=KILLED).returncode != 0
    done = launch("zero2", [*two, "--resume"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert sum("projector" in name for name in adapter(output)) == 4
    assert history(output) == pytest.approx(history(tmp_path / "alone"), abs=CLOSE)
    assert largest_difference(output, tmp_path / "alone") < CLOSE


@slow
def test_zero3_evaluates_and_goes_on_from_an_adapter_as_one_process_does(command: Command, tmp_path: Path) -> None:
    run.main(command(tmp_path / "sft", loss_type="sft", loss_weights="1.0", max_steps=2, learning_rate=2e-3))
    changes = {"use_peft": "false", "adapter_name_or_path": tmp_path / "sft", "eval_split": "train", "eval_steps": 4,
               "eval_strategy": "steps"}  # fmt: skip
    kl = ["--loss_type", "sigmoid", "tdpo_kl", "--loss_weights", "1.0", "0.5"]
    run.main([*command(tmp_path / "one", **changes), *kl])
    two = command(tmp_path / "two", per_device_train_batch_size=2, per_device_eval_batch_size=4, **changes)
    done = launch("zero3", [*two, *kl])
    assert done.returncode == 0, done.stderr[-2000:]
    assert history(tmp_path / "two") == pytest.approx(history(tmp_path / "one"), abs=CLOSE)
    assert largest_difference(tmp_path / "two", tmp_path / "one") < CLOSE
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("one", "two")]
    evaluated = [next(entry for entry in log if "eval_loss" in entry) for log in logs]
    assert evaluated[1]["eval_kl"] == pytest.approx(evaluated[0]["eval_kl"], rel=0.05)  # a filled-up batch counts twice
    assert evaluated[1]["eval_loss"] == pytest.approx(evaluated[0]["eval_loss"], rel=0.05)
