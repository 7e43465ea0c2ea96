"""One training run: parse, check, build, train, save, push. `train.py` and `mmedpo train` are this module."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftConfig
from transformers import PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config

from mmedpo import schema
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.models import load_model, load_processor
from mmedpo.training import checkpoints, preflight
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.trainer import MMedPOTrainer
from mmedpo.workdir import output_folder, portable, read_json, versions, write_json

MACHINE_SETTINGS = {
    "model_name_or_path",
    "output_dir",
    "logging_dir",
    "hub_token",
    "push_to_hub_token",
    "resume_from_checkpoint",
    "local_rank",
    "accelerator_config",
    "reference_cache",
}
ALWAYS_RECORDED = {
    *("weighted", "beta", "loss_type", "loss_weights", "learning_rate", "lr_scheduler_type", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("dtype", "use_peft", "lora_r", "lora_alpha", "lora_dropout"),
}
NOT_YET = ("load_in_4bit", "load_in_8bit", "trust_remote_code", "model_init_kwargs")

Card = Callable[[Path], str]

logger = get_logger(__name__)


@dataclass
class RunArguments:
    """What a run trains on and where it goes; the rest is in `MMedPOConfig` and TRL's `ModelConfig`."""

    dataset_name: str = field(metadata={"help": "Preference dataset: a folder of `mmedpo curate` or a Hub id."})
    output: str = field(metadata={"help": "Folder for the adapter; it must not exist."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the dataset to train on."})
    dispreference: str = field(
        default="all",
        metadata={"help": "Train on one kind of pair alone: hallucinated_response or lesion_noise; default all."},
    )
    resume: bool = field(default=False, metadata={"help": "Continue an interrupted run from its last checkpoint."})

    def __post_init__(self) -> None:
        if self.dispreference not in ("all", *schema.DISPREFERENCES):
            raise InputError(
                f"dispreference {self.dispreference!r} is unknown; use all or {' or '.join(schema.DISPREFERENCES)}."
            )


def main(argv: Sequence[str], command: str = "", card: Card | None = None) -> None:
    """Run the training that `argv` (and the YAML file it names with --config) describes; the rest as in `train`."""
    kinds: Any = [RunArguments, MMedPOConfig, ModelConfig]  # TRL's type asks for instances
    parser = TrlParser(kinds, prog="mmedpo train", description=main.__doc__)
    try:
        run_args, config, model_args = parser.parse_args_and_config(list(argv))
    except InputError:
        raise
    except (ValueError, TypeError, OSError, yaml.YAMLError) as error:  # TRL's and Transformers' own checks
        raise InputError(f"The training's settings cannot work: {error}") from error
    train(run_args, config, model_args, command, card)


def train(
    run: RunArguments, config: MMedPOConfig, model_args: ModelConfig, command: str = "", card: Card | None = None
) -> None:
    """Train an adapter (or, without LoRA, the whole model) and write it to `run.output`.

    Args:
        command: recorded as it is.
        card: writes the text of README.md from the recorded files of the folder it is given.

    Raises:
        InputError: dataset, model or output folder cannot work; checkpoints that exist by then are kept.
    """
    if not model_args.model_name_or_path:
        raise InputError("No model: give --model_name_or_path with a Hub id or a folder.")
    ignored = [name for name in NOT_YET if getattr(model_args, name, None) or getattr(config, name, None)]
    if ignored:
        raise InputError(f"{', '.join(ignored)}: not supported yet; leave them out.")
    _refuse_strangers()
    dataset = _rows(run)
    processor = load_processor(model_args.model_name_or_path, model_args.model_revision)
    _check(dataset, processor, config, model_args, Path(run.output))
    settings = {
        "run": {**vars(run), "resume": None}, "model": model_args.model_name_or_path, "lora": _plain(model_args),
        "config": _plain(config),
    }  # fmt: skip
    with _working_folder(Path(run.output), checkpoints.repeatable(settings, config), run.resume) as folder:
        config.output_dir = str(folder)
        push, config.push_to_hub = config.push_to_hub, False  # once, at the end, and privately unless asked
        trainer = _trainer(dataset, processor, config, model_args)
        checkpoint = checkpoints.prepare(get_last_checkpoint(str(folder)) if run.resume else None, trainer)
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.monotonic() - began
        trainer.save_model()
        trainer.save_state()
        if trainer.accelerator.is_main_process:
            processor.save_pretrained(folder)
            write_json(folder / "training.json", {
                "format": "mmedpo.training/1", "command": command, "versions": versions(),
                "config": settings["config"], "lora": settings["lora"],
                "model": portable(model_args.model_name_or_path), "dataset": portable(run.dataset_name),
                "rows": dict(Counter(schema.DISPREFERENCES[kind] for kind in dataset["dispreference"])),
                "weights": _weight_statistics(dataset), "seconds": round(seconds, 1), "hardware": _hardware(config),
            })  # fmt: skip
            if card is not None:
                (folder / "README.md").write_text(card(folder), encoding="utf-8")
    if push and PartialState().is_main_process:
        _push(Path(run.output), config)


def _refuse_strangers() -> None:
    """On machines without an accelerator, launched processes find each other only if told to use the CPU."""
    launched, known = int(os.environ.get("WORLD_SIZE", "1")), PartialState().num_processes
    if launched != known:
        raise InputError(
            f"{launched} processes were launched, but each counts {known}: without an accelerator give --use_cpu true."
        )


def _rows(run: RunArguments) -> Dataset:
    dataset = schema.load(run.dataset_name, run.dataset_split)
    if run.dispreference != "all":
        kind = schema.DISPREFERENCES.index(run.dispreference)
        dataset = dataset.filter(lambda row: row == kind, input_columns="dispreference")
    if len(dataset) == 0:
        raise InputError(f"{run.dataset_name} has no row of kind {run.dispreference!r}; nothing to train on.")
    return dataset


def _check(dataset: Dataset, processor: Any, config: MMedPOConfig, model_args: Any, output: Path) -> None:
    """Everything that can be known before weights are loaded; what the main process refuses, all refuse."""
    refusal: list[InputError | None] = [None]
    if PartialState().is_main_process:
        try:
            for warning in preflight.check(
                dataset, processor, config, model_args, output, lambda model: _lora(model, model_args)
            ):
                logger.warning(warning)
        except InputError as error:
            refusal = [error]
    broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise refusal[0]


def _trainer(dataset: Dataset, processor: Any, config: MMedPOConfig, model_args: Any) -> MMedPOTrainer:
    model = load_model(
        model_args.model_name_or_path, model_args.model_revision, model_args.dtype, model_args.attn_implementation
    )
    return MMedPOTrainer(
        model,
        args=config,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=_lora(model, model_args),
    )


def _lora(model: PreTrainedModel, model_args: ModelConfig) -> PeftConfig | None:
    """TRL's LoRA settings, on the linear layers of the language model (the paper's choice) unless others are named."""
    model_args.lora_target_modules = model_args.lora_target_modules or language_model_linears(model)
    return get_peft_config(model_args)


def language_model_linears(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the language model of a vision-language model, the LM head left out."""
    inside = set(model.get_decoder().modules())
    return [name for name, module in model.named_modules() if module in inside and isinstance(module, torch.nn.Linear)]


@contextlib.contextmanager
def _working_folder(output: Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """`output_folder` for several processes: the main one makes the folder and, when all are done, names it.

    What the main process refuses, all refuse: a process left alone would wait for the others for ever.
    """
    state = PartialState()
    with contextlib.ExitStack() as stack:
        refusal: list[Exception | None] = [None]
        folder = output.resolve().with_name(output.resolve().name + ".partial")
        if state.is_main_process:
            try:
                stack.enter_context(output_folder(output, settings, resume))
                _drop_torn_checkpoints(folder)
            except (InputError, AlreadyFinished) as error:
                refusal = [error]
        broadcast_object_list(refusal)
        if refusal[0] is not None:
            raise refusal[0]
        yield folder
        state.wait_for_everyone()
        if state.is_main_process:
            _tidy(folder)


def _drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints that a kill left half-written: the Trainer writes `trainer_state.json` last."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():
            shutil.rmtree(checkpoint)


def _tidy(folder: Path) -> None:
    """Leave what others need: no checkpoints, no pickled arguments, no folder of this machine."""
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (folder / "training_args.bin").unlink(missing_ok=True)
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        config = read_json(adapter)
        write_json(adapter, {**config, "base_model_name_or_path": portable(config["base_model_name_or_path"] or "")})


def _plain(settings: Any) -> dict[str, Any]:
    """What a reader needs to repeat the run: the fields of `ALWAYS_RECORDED`, and those that differ from their
    defaults, as JSON-able values, without what belongs to one machine."""
    plain = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if f.name in ALWAYS_RECORDED or (f.name not in MACHINE_SETTINGS and value is not None and value != default):
            value = value.value if isinstance(value, Enum) else value
            plain[f.name] = value if isinstance(value, (bool, int, float, list, dict)) else str(value)
    return plain


def _weight_statistics(dataset: Dataset) -> dict[str, float]:
    weights = torch.tensor(dataset["weight"][:])
    return {"mean": weights.mean().item(), "sd": weights.std(unbiased=False).item()}


def _hardware(config: MMedPOConfig) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    sharded = f", DeepSpeed ZeRO-{config.deepspeed_plugin.zero_stage}" if config.deepspeed_plugin else ""
    return f"{PartialState().num_processes} x {device}{sharded}"


def _push(folder: Path, config: MMedPOConfig) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=config.hub_token)
    private = True if config.hub_private_repo is None else config.hub_private_repo
    repo = api.create_repo(config.hub_model_id or folder.name, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Adapter trained with mmedpo")
