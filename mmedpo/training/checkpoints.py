"""Checkpoints that a training may resume from: its own, of the same engine, and without code in them.

Without DeepSpeed any number of processes resumes, since Transformers stores a checkpoint whole. DeepSpeed stores a
shard per process, for the same ZeRO stage and number of processes. The order of pairs and the schedule depend on seed
and step only. Dropout is drawn anew, and without DeepSpeed the loss scale of fp16 starts anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, TRAINER_STATE_NAME

from mmedpo.errors import InputError
from mmedpo.runs.json_files import read_object
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
    """Callback that marks each checkpoint as this training's, by settings and contents, and with its engine.

    Args:
        settings: as of `repeatable`; names of folders do not count.
        contents: digests of model, adapter and dataset.
    """

    def __init__(self, settings: dict[str, Any], contents: dict[str, str | None], config: MMedPOConfig) -> None:
        run = {**settings["run"], **dict.fromkeys(("output", "dataset_name", "adapter_name_or_path"))}
        own = {**settings, "model": None, "run": run, "contents": contents}
        digest = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()
        self._own = {"digest": digest, "engine": _engine(config)}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks[STAMP] = self._own  # what `TrainerState` keeps of callbacks, in each checkpoint

    def check(self, folder: Path) -> None:
        """Raise InputError where the checkpoint in `folder` cannot be resumed from, or could run code."""
        state = read_object(folder / TRAINER_STATE_NAME)
        found = (state.get("stateful_callbacks") or {}).get(STAMP)
        if not isinstance(found, dict) or found["digest"] != self._own["digest"]:
            raise InputError(
                f"{folder}: written by a training with other settings, other contents or an earlier version of mmedpo. "
                "Remove it, so that --resume continues from the checkpoint before it."
            )
        if found["engine"] != self._own["engine"]:
            raise InputError(
                f"{folder}: written by {found['engine']}, which {self._own['engine']} cannot resume. Resume it that "
                "way, or start another training from its weights (--adapter_name_or_path; without LoRA "
                f"--model_name_or_path {folder})."
            )
        if not [*folder.glob(OPTIMIZER_NAME), *folder.glob("global_step*/*_optim_states.pt")]:
            raise InputError(
                f"{folder} has no optimizer state (save_only_model). Remove {folder.parent}, and start again."
            )
        _refuse_code(folder)


def _engine(config: MMedPOConfig) -> str:
    """Return the name of what writes and reads this run's checkpoints."""
    plugin = config.deepspeed_plugin
    if plugin is None:
        return "a training without DeepSpeed"
    offload = plugin.deepspeed_config["zero_optimization"].get("offload_optimizer", {}).get("device") == "cpu"
    return f"ZeRO-{plugin.zero_stage}{' with offload' * offload} on {config.world_size} processes"


def _refuse_code(folder: Path) -> None:
    """Raise InputError if DeepSpeed would unpickle more than tensors and `OWN`; nothing is unpickled here."""
    pointer = folder / "latest"
    if pointer.exists() and pointer.read_text("utf-8").strip() not in {place.name for place in folder.iterdir()}:
        raise InputError(f"{pointer} points outside its checkpoint. {START_AGAIN}")
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            raise InputError(f"{file} is a link; links in checkpoints are not read. {START_AGAIN}")
        if file.suffix != ".pt":
            continue
        try:
            foreign = sorted({*get_unsafe_globals_in_checkpoint(str(file))} - OWN)
        except Exception as error:  # not a pickle of torch
            raise InputError(f"{file} is damaged, or not a checkpoint of torch ({error}). {START_AGAIN}") from None
        if foreign:
            raise InputError(f"{file} contains pickled {', '.join(foreign)}, which could run code. {START_AGAIN}")
