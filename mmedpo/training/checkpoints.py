"""Resuming from checkpoints, also on other numbers of processes, with or without DeepSpeed.

A checkpoint written without DeepSpeed resumes without it on any number of processes, since Transformers stores it
whole. DeepSpeed stores a shard per process; its `ds_to_universal` joins them for another number of processes, or to
resume without DeepSpeed. The order of pairs and the schedule depend on seed and step only. Dropout is drawn anew, and
without DeepSpeed the loss scale of fp16 starts anew.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import shutil
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import DeepSpeedPlugin
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from mmedpo.errors import InputError
from mmedpo.runs.run_folder import read_object
from mmedpo.training import zero
from mmedpo.training.config import MMedPOConfig

# Harmless classes in DeepSpeed's pickles beside tensors.
OWN = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum", "deepspeed.utils.tensor_fragment.fragment_address",
}  # fmt: skip
STAMP = "training"  # key in a checkpoint's state
START_AGAIN = "Remove the folder of the run, and start again."
SPREAD = ("per_device_train_batch_size", "gradient_accumulation_steps", "deepspeed")


def repeatable(settings: dict[str, Any], config: MMedPOConfig) -> dict[str, Any]:
    """Return the settings that a resumed run must repeat.

    They include the number of pairs per step, not its distribution over processes. Revisions are left out, since
    contents are compared.
    """
    kept = {name: value for name, value in settings["config"].items() if name not in SPREAD}
    pairs = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    run, lora = {**settings["run"], "dataset_revision": None}, {**settings["lora"], "model_revision": None}
    return {**settings, "run": run, "lora": lora, "config": kept, "pairs_a_step": pairs}


class Stamp(TrainerCallback):
    """Callback that marks each checkpoint as this training's, by settings and contents, without names of folders."""

    def __init__(self, settings: dict[str, Any], contents: dict[str, str | None]) -> None:
        run = {**settings["run"], **dict.fromkeys(("output", "dataset_name", "adapter_name_or_path"))}
        own = {**settings, "model": None, "run": run, "contents": contents}
        self._value = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks[STAMP] = self._value  # what `TrainerState` keeps of callbacks, in each checkpoint

    def refuse_others(self, checkpoint: str | None) -> None:
        """Raise InputError where another training wrote the checkpoint."""
        if checkpoint is None:
            return
        state = read_object(Path(checkpoint) / TRAINER_STATE_NAME)
        if (state.get("stateful_callbacks") or {}).get(STAMP) != self._value:
            raise InputError(
                f"{checkpoint}: another training wrote it, with other settings or on other contents (or an earlier "
                "version of mmedpo did). Remove it, so that --resume goes on from the checkpoint before."
            )


def prepare(checkpoint: str | None, trainer: Trainer) -> str | None:
    """Return the folder to resume from: `checkpoint`, or one inside it. All processes must call this.

    Raises:
        InputError: the optimizer's state is missing, or does not fit this launch.
    """
    if checkpoint is None:
        return None
    folder, plugin = Path(checkpoint), trainer.accelerator.state.deepspeed_plugin
    main, joined, whole = trainer.accelerator.is_main_process, folder / "universal", folder / "whole"
    shards = sorted(folder.glob("global_step*/*_optim_states.pt"))
    if not shards and not (folder / OPTIMIZER_NAME).exists():
        raise InputError(f"{folder} holds no optimizer's state (save_only_model): remove {folder.parent}, start again.")
    _refuse_code(folder)
    trainer.accelerator.wait_for_everyone()  # before anything is joined in the folder
    if plugin is not None:
        if _foreign(folder, shards, plugin, trainer.args.world_size):
            if main and not (folder / "latest_universal").exists():  # written last
                _join(shards[0].parent, joined)
            plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
            trainer.add_callback(_RepairJoined(joined))
    elif shards:
        zero.require()  # needed to read its shards
        if main and not whole.exists():
            _make_whole(folder, shards[0].parent, whole, trainer)
        checkpoint = str(whole)
    trainer.accelerator.wait_for_everyone()
    return checkpoint


def _refuse_code(folder: Path) -> None:
    """Raise InputError if DeepSpeed would unpickle more than tensors and `OWN`; nothing is unpickled here.

    The Trainer itself reads tensors and numbers only.
    """
    read = [*folder.glob("global_step*")]
    for pointer in ("latest", "latest_universal"):
        if (folder / pointer).exists():
            target = folder / (folder / pointer).read_text("utf-8").strip()
            read.append(target)
            if target.parent != folder or target.name == "..":
                raise InputError(f"{folder / pointer}: it leads out of its checkpoint. {START_AGAIN}")
    for file in sorted({file for place in read for file in (place, *place.rglob("*"))}):
        if file.is_symlink():
            raise InputError(f"{file}: it is a link, and a checkpoint holds its own files. {START_AGAIN}")
        if file.suffix != ".pt":
            continue
        try:
            foreign = sorted({*get_unsafe_globals_in_checkpoint(str(file))} - OWN)
        except Exception as error:  # not a pickle of torch
            raise InputError(f"{file}: it is torn, or no checkpoint of torch ({error}). {START_AGAIN}") from None
        if foreign:
            raise InputError(f"{file}: it is pickled with {', '.join(foreign)}, which could run code. {START_AGAIN}")


def _foreign(folder: Path, shards: list[Path], plugin: DeepSpeedPlugin, processes: int) -> bool:
    """Return True where another number of processes wrote the shards. Raises InputError for unreadable ones."""
    from deepspeed.checkpoint import BASE_OPTIMIZER_STATE, OPTIMIZER_STATE_DICT, ZERO_STAGE

    if not shards:
        raise InputError(
            f"{folder} was written without DeepSpeed, which cannot read it. Resume without DeepSpeed, on any number of "
            "processes (recipes/accelerate/ddp.yaml) or on one."
        )
    saved = torch.load(shards[0], weights_only=False, mmap=True)[OPTIMIZER_STATE_DICT]
    adam = saved.get(BASE_OPTIMIZER_STATE) or saved[OPTIMIZER_STATE_DICT]
    written, offloaded = int(saved[ZERO_STAGE]), isinstance(adam["state"][0]["step"], int)  # DeepSpeed's own Adam's is
    offload = plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
    if (written == 3) != (plugin.zero_stage == 3) or (offload and not offloaded):
        raise InputError(
            f"{folder} was written by ZeRO-{written}{' with offload' * offloaded}, which ZeRO-{plugin.zero_stage}"
            f"{' with offload' * offload} cannot read. Resume with the recipe that wrote it, or without DeepSpeed."
        )
    return len(shards) != processes


def _join(sharded: Path, joined: Path) -> None:
    """Write the shards in `sharded` as whole tensors, `zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt`."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(joined, ignore_errors=True)  # of an interrupted attempt
    arguments = Namespace(
        input_folder=str(sharded), output_folder=str(joined), num_extract_workers=1, num_merge_workers=1,
        keep_temp_folder=False, strict=True, inject_missing_state=True,
    )  # fmt: skip
    with contextlib.redirect_stdout(None):
        ds_to_universal.main(arguments)


class _RepairJoined(TrainerCallback):
    """Callback that corrects a joined checkpoint of ZeRO-3.

    DeepSpeed gives all groups the first one's weight decay, and one shared step tensor that each parameter increments.
    """

    def __init__(self, joined: Path) -> None:
        self.joined = joined

    def on_train_begin(self, *_: Any, **loaded: Any) -> None:
        written = torch.load(self.joined / "zero" / "optimizer_state.pt", weights_only=False, mmap=True)["param_groups"]
        for group, before in zip(loaded["optimizer"].param_groups, written, strict=True):
            group["weight_decay"] = before["weight_decay"]
        for state in loaded["optimizer"].state.values():
            state["step"] = copy.deepcopy(state["step"])


def _make_whole(folder: Path, sharded: Path, whole: Path, trainer: Trainer) -> None:
    """Write `whole`, the checkpoint that the Trainer would have written without DeepSpeed."""
    with TemporaryDirectory(dir=folder) as scratch:
        joined, partial = Path(scratch) / "joined", Path(scratch) / "whole"
        _join(sharded, joined)
        schedule = torch.load(folder / SCHEDULER_NAME, weights_only=True)
        optimizer = trainer.create_optimizer()
        # DeepSpeed drops groups without parameters; the schedule's factor is the same for all.
        factor, rates = schedule["_last_lr"][0] / schedule["base_lrs"][0], [g["lr"] for g in optimizer.param_groups]
        schedule |= {
            "base_lrs": rates,
            "_last_lr": [rate * factor for rate in rates],
            "lr_lambdas": [None] * len(rates),
        }
        state = _joined_state(joined / "zero", trainer.model, optimizer)
        for group, rate in zip(state["param_groups"], schedule["_last_lr"], strict=True):
            group["lr"] = rate
        trainer.save_model(str(partial))
        torch.save(state, partial / OPTIMIZER_NAME)
        torch.save(schedule, partial / SCHEDULER_NAME)
        shutil.copy(folder / TRAINER_STATE_NAME, partial)
        partial.replace(whole)


def _joined_state(joined: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load joined float32 weights into `model`; return the state of its `optimizer` with joined moments."""
    from deepspeed.checkpoint import OPTIMIZER_STATE_DICT, PARAM

    def load(file: Path) -> Any:
        value = torch.load(file, weights_only=False)
        return value[PARAM] if isinstance(value, dict) and PARAM in value else value  # ZeRO-3's are bare tensors

    common = load(joined / "optimizer_state.pt").get(OPTIMIZER_STATE_DICT)  # ZeRO-3 has one number of steps
    state, names = optimizer.state_dict(), {parameter: name for name, parameter in model.named_parameters()}
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        pieces = joined / names[parameter]
        moments = {name: load(pieces / f"{name}.pt").view_as(parameter) for name in ("exp_avg", "exp_avg_sq")}
        step = copy.deepcopy(common["state"][0]["step"]) if common else load(pieces / "step.pt")
        state["state"][number] = {**moments, "step": step}
        parameter.data.copy_(load(pieces / "fp32.pt").view_as(parameter))
    return state
