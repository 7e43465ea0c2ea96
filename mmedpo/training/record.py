"""Records of a training run, for cards and for repeating it, without anything specific to one machine."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from transformers.trainer import TRAINER_STATE_NAME

from mmedpo import schema
from mmedpo.data import credentialed, origin
from mmedpo.models import adapters, restricted
from mmedpo.models.adapters import FINGERPRINT, RECORD, check_base
from mmedpo.models.fingerprint import dataset_contents, fingerprint, model_contents
from mmedpo.runs.device import hardware
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.provenance import portable, portable_values, versions
from mmedpo.training import mixture
from mmedpo.training.config import RunArguments
from mmedpo.training.mixture import Commits
from mmedpo.training.parts import trained_parts
from mmedpo.training.trainer import MMedPOTrainer

MACHINE_SETTINGS = {
    "model_name_or_path",
    "output_dir",
    "logging_dir",
    "resume_from_checkpoint",
    "local_rank",
    "accelerator_config",
    "reference_cache",
}
PUSHING = ("push_", "hub_")  # prefixes of settings left out, or a repeated run would write to the same repository
MAKERS = ("source", "target_model", "chat_model", "judges", "localizer", "standins")  # recorded keys of a manifest
DATASET = "run.dataset_name"  # in `contents`; several are numbered
OF_THE_RUN = ("output", "resume", "third_parties")  # left out of recipes
ALWAYS_RECORDED = {
    *("weighted", "beta", "loss_type", "loss_weights", "learning_rate", "lr_scheduler_type", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("dtype", "use_peft", "lora_r", "lora_alpha", "lora_dropout"),
}

logger = get_logger(__name__)


def plain(settings: Any) -> dict[str, Any]:
    """Return the settings that repeat a run, as JSON-able values.

    These are `ALWAYS_RECORDED` and all that differ from their defaults, without settings of one machine.
    """
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        left_out = f.name in MACHINE_SETTINGS or f.name.startswith(PUSHING)
        if f.name in ALWAYS_RECORDED or (not left_out and value is not None and value != default):
            value = value.value if isinstance(value, Enum) else value
            found[f.name] = portable_values(value if isinstance(value, (bool, int, float, list, dict)) else str(value))
    if getattr(settings, "use_peft", True) is False:
        found = {name: value for name, value in found.items() if not name.startswith("lora_")}
    return found


def write(
    folder: Path, run: RunArguments, settings: dict[str, Any], trainer: MMedPOTrainer, dataset: Any,
    source: str | None, sent: dict[str, Any], commits: Commits, command: str, seconds: float,
) -> None:  # fmt: skip
    """Write training.json, the facts of a finished run, and recipe.yaml, which repeats it.

    Args:
        settings: `plain` settings of the trainer ("config") and the model ("lora"), the name of the "model",
            `base_facts` ("base"), `contents`.
        source: as of `credentialed_source`.
        sent: record of where it was sent (`consent.record`).
        commits: of the datasets.
    """
    streamed = isinstance(dataset, IterableDataset)
    trained = trained_parts(trainer.accelerator.unwrap_model(trainer.model))
    named = about(run, str(settings["model"]), commits)
    manifest = named.pop("dataset_manifest", {})
    single = {
        "dataset_revision": commits[run.dataset_name[0]], "dataset_is_local": origin.is_local(run.dataset_name[0]),
        "dataset_manifest": {key: manifest[key] for key in MAKERS if key in manifest},
    }  # fmt: skip
    write_json(folder / RECORD, {
        "format": "mmedpo.training/1", "command": command, "versions": versions(), "config": settings["config"],
        "lora": {**settings["lora"], **_adapter_settings(trainer.model)}, **named,
        "model_revision": getattr(trainer.accelerator.unwrap_model(trainer.model).config, "_commit_hash", None),
        **settings["base"], "adapter": portable(run.adapter_name_or_path) if run.adapter_name_or_path else None,
        "model_is_local": Path(str(settings["model"])).exists(),
        "contents": settings["contents"], credentialed.KEY: source,
        **(_mixture(run, dataset, commits, settings["contents"]) if len(commits) > 1 else single),
        **sent, "rows": _kinds(dataset),
        "streamed": streamed,
        "weights": {**_weights(dataset), "method": _method(run, commits)},
        "trained": trained, "trained_parameters": sum(part["parameters"] for part in trained.values()),
        "prefix_sharing": bool(getattr(trainer.data_collator, "share", False)),
        "encode_images_once": bool(getattr(trainer.data_collator, "once", False)),
        "seconds": round(seconds, 1), "hardware": _hardware(trainer.args),
    })  # fmt: skip
    _write_recipe(folder / "recipe.yaml", run, settings)


def tidy_state(folder: Path) -> None:
    """Leave in trainer_state.json what others need, as JSON: a logged value that is no finite number becomes null."""
    state = read_object(folder / TRAINER_STATE_NAME)
    history = [
        {key: value if not isinstance(value, float) or math.isfinite(value) else None for key, value in entry.items()}
        for entry in state["log_history"]
    ]
    if lost := Counter(key for entry in history for key in entry if entry[key] is None):
        said = ", ".join(f"{name} ({count})" for name, count in lost.most_common())
        logger.warning(
            f"NaN or infinite values in the training log: {said}. If the loss is among them, the model may be "
            "unusable. Train again with a lower learning rate, or in bf16 or float32."
        )
    kept: dict[str, Any] = {"log_history": history, "best_model_checkpoint": None, "stateful_callbacks": {}}
    write_json(folder / TRAINER_STATE_NAME, {**state, **kept})


def about(run: RunArguments, model: str, commits: Commits) -> dict[str, Any]:
    """Return training.json's entries on model and dataset, with the dataset's whole manifest."""
    manifests = [origin.dataset_manifest(name, commit) for name, commit in commits.items()]
    names = [portable(name) for name in commits]
    if len(names) == 1:
        return {"model": portable(model), "dataset": names[0], "dataset_manifest": manifests[0]}
    datasets = [{"name": name, "manifest": manifest} for name, manifest in zip(names, manifests, strict=True)]
    return {"model": portable(model), "dataset": names, "datasets": datasets}


def _mixture(run: RunArguments, dataset: Any, commits: Commits, contents: dict[str, str | None]) -> dict[str, Any]:
    """Return training.json's entries on the datasets of a mixture, each with its part of an epoch."""
    numbers = torch.tensor(dataset[mixture.NUMBER][:])
    found = about(run, "", commits)["datasets"]
    for number, ((name, commit), own) in enumerate(zip(commits.items(), found, strict=True)):
        part = dataset.remove_columns(mixture.NUMBER).select((numbers == number).nonzero()[:, 0].tolist())
        own |= {
            "revision": commit, "is_local": origin.is_local(name), "contents": contents[f"{DATASET}.{number}"],
            "share": round(len(part) / len(dataset), 6), "rows": _kinds(part),
            "weights": {**_weights(part), "method": own["manifest"].get("weights", {}).get("method")},
            "manifest": {key: own["manifest"][key] for key in MAKERS if key in own["manifest"]},
        }  # fmt: skip
    return {"datasets": found}


def _method(run: RunArguments, commits: Commits) -> str | None:
    """Return the method of the weights, of several datasets all of them."""
    made = [origin.dataset_manifest(*one).get("weights", {}).get("method") for one in commits.items()]
    named = ", ".join(dict.fromkeys(method or "not recorded" for method in made)) if any(made) else None
    return f"{named}, over the mixture" if run.mixture_weights == "anew" else named


def by_place(run: RunArguments) -> Any:
    """Return the name of the run's dataset, or the names of several by number, which are compared apart."""
    names = run.dataset_name
    return names[0] if len(names) == 1 else {str(number): name for number, name in enumerate(names)}


def _kinds(dataset: Any) -> dict[str, int]:
    if isinstance(dataset, IterableDataset):
        return {}
    if "dispreference" not in dataset.column_names:  # gold answers of a source
        return {"gold_answer": len(dataset)}
    return dict(Counter(schema.DISPREFERENCES[kind] for kind in dataset["dispreference"]))


def _write_recipe(path: Path, run: RunArguments, settings: dict[str, Any]) -> None:
    """Write all settings, for `mmedpo train --config FOLDER/recipe.yaml --output OTHER`."""
    own = {name: value for name, value in run.plain().items() if name not in OF_THE_RUN and value is not None}
    names = {key: portable_values(own[key]) for key in ("dataset_name", "adapter_name_or_path") if key in own}
    model = {"model_name_or_path": portable(str(settings["model"]))}
    recipe = {**own, **names, **model, **settings["lora"], **settings["config"]}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _adapter_settings(model: Any) -> dict[str, Any]:
    """Return the trained adapter's LoRA settings, which a continued adapter brings with it."""
    if not is_peft_model(model):
        return {}
    config = model.peft_config["default"]
    return {"lora_r": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}


def _hardware(config: Any) -> str:
    sharded = f", DeepSpeed ZeRO-{config.deepspeed_plugin.zero_stage}" if config.deepspeed_plugin else ""
    return f"{PartialState().num_processes} x {hardware()}{sharded}"


def _weights(dataset: Any) -> dict[str, float]:
    if isinstance(dataset, IterableDataset):
        return {}
    weights = torch.tensor(dataset["weight"][:])
    return {"mean": weights.mean().item(), "sd": weights.std(unbiased=False).item()}


def credentialed_source(run: RunArguments, model: str, revision: str | None, commits: Commits) -> str | None:
    """Return the restricted source of a training's datasets, model or adapter; None if there is none."""
    found = (origin.credentialed_source(name, commit, run.streaming) for name, commit in commits.items())
    return next(filter(None, found), None) or restricted.trained_on(model, run.adapter_name_or_path, revision)


def base_facts(run: RunArguments, model_args: Any, download: bool = True) -> dict[str, str | None]:
    """Return the base model's fingerprint, and how `check_base` compared it with a continued adapter's base."""
    name, revision, adapter = str(model_args.model_name_or_path), model_args.model_revision, run.adapter_name_or_path
    compared = None
    if adapter:
        option = "--adapter_name_or_path"
        compared = check_base(adapter, name, base_revision=revision, download=download, option=option)
    return {FINGERPRINT: fingerprint(name, revision, download), "adapter_checked_by": compared}


def contents(run: RunArguments, model_args: Any, commits: Commits) -> dict[str, str | None]:
    """Return digests of model, adapter and datasets, by setting; the reference is that model with that adapter."""
    splits = {run.dataset_split, *([run.eval_split] if run.eval_split else [])}
    adapter = run.adapter_name_or_path
    return {
        "model": model_contents(str(model_args.model_name_or_path), model_args.model_revision),
        **{
            f"{DATASET}.{number}" if len(commits) > 1 else DATASET: dataset_contents(
                name, splits, commit, run.streaming
            )
            for number, (name, commit) in enumerate(commits.items())
        },
        "run.adapter_name_or_path": adapters.adapter_contents(adapter) if adapter else None,
    }


def written(folder: Path) -> str:
    """Return a line for each file of a finished folder that a user may look for."""
    whole = not (folder / "adapter_config.json").exists()
    known = {
        "config.json" if whole else "adapter_config.json": f"{'Model' if whole else 'Adapter'}: {folder}",
        "README.md": f"Card: {folder / 'README.md'}",
        "curves.png": f"Curves: {folder / 'curves.png'}; their numbers: {folder / 'trainer_state.json'}",
        RECORD: f"Facts of the run: {folder / RECORD}; to repeat it: {folder / 'recipe.yaml'}",
        "runs": f"TensorBoard: tensorboard --logdir {folder / 'runs'}",
    }
    return "\n".join(line for name, line in known.items() if (folder / name).exists())


def begin(folder: Path, source: str | None, base: dict[str, str | None], commits: Commits) -> None:
    """Write the facts of a run's checkpoints into its working folder; `write` replaces them."""
    found = [*commits.values()]
    write_json(
        folder / RECORD, {credentialed.KEY: source, **base, "dataset_revision": found if len(found) > 1 else found[0]}
    )
