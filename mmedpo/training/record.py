"""What is recorded of a training run, for cards and for whoever repeats it; nothing of one machine is."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset

from mmedpo import schema
from mmedpo.workdir import read_json, versions

if TYPE_CHECKING:
    from mmedpo.training.trainer import MMedPOTrainer

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
    "image_feature_cache",
}
ALWAYS_RECORDED = {
    *("weighted", "beta", "loss_type", "loss_weights", "learning_rate", "lr_scheduler_type", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed"),
    *("dtype", "use_peft", "lora_r", "lora_alpha", "lora_dropout"),
}


def plain(settings: Any) -> dict[str, Any]:
    """What a reader needs to repeat the run: the fields of `ALWAYS_RECORDED`, and those that differ from their
    defaults, as JSON-able values, without what belongs to one machine."""
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if f.name in ALWAYS_RECORDED or (f.name not in MACHINE_SETTINGS and value is not None and value != default):
            value = value.value if isinstance(value, Enum) else value
            found[f.name] = value if isinstance(value, (bool, int, float, list, dict)) else str(value)
    return found


def facts_of(dataset: Any, manifest: dict[str, Any], trainer: MMedPOTrainer) -> dict[str, Any]:
    """What training.json says of the data, their weights, and what was trained on them.

    Args:
        manifest: the dataset's own, empty where it has none.
    """
    streamed = isinstance(dataset, IterableDataset)
    kinds = [] if streamed else [schema.DISPREFERENCES[kind] for kind in dataset["dispreference"]]
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return {
        "format": "mmedpo.training/1",
        "versions": versions(),
        "model_revision": getattr(trainer.accelerator.unwrap_model(trainer.model).config, "_commit_hash", None),
        "rows": dict(Counter(kinds)),
        "streamed": streamed,
        "weights": {**_weights(dataset), "method": manifest.get("weights", {}).get("method")},
        "trained_parameters": sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained),
        "prefix_sharing": bool(getattr(trainer.data_collator, "share", False)),
        "encode_images_once": bool(getattr(trainer.data_collator, "once", False)),
    }


def _weights(dataset: Any) -> dict[str, float]:
    if isinstance(dataset, IterableDataset):
        return {}
    weights = torch.tensor(dataset["weight"][:])
    return {"mean": weights.mean().item(), "sd": weights.std(unbiased=False).item()}


def dataset_commit(name: str, revision: str | None) -> str | None:
    """The commit that a Hub dataset's revision is now; None for a folder, or where the Hub is out of reach."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if Path(name).exists():
        return None
    with suppress(HfHubHTTPError, OSError, ValueError):
        return HfApi().dataset_info(name, revision=revision).sha
    return revision


def dataset_manifest(name: str, revision: str | None) -> dict[str, Any]:
    """The manifest.json of a dataset folder or Hub dataset, empty where it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = Path(name)
    if folder.exists():
        return read_json(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    with suppress(HfHubHTTPError, OSError, ValueError):
        return read_json(Path(hf_hub_download(name, "manifest.json", repo_type="dataset", revision=revision)))
    return {}
