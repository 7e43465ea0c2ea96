"""Trackers of a training (`report_to`): which package each needs, and which one writes to this disk alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from mmedpo.errors import InputError

LOCAL = ("tensorboard",)
PACKAGES = {  # of transformers' integrations: the modules of which one has to be there, and what to install
    "azure_ml": (("azureml",), "azureml-sdk"),
    "clearml": (("clearml",), "clearml"),
    "codecarbon": (("codecarbon",), "codecarbon"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "dagshub": (("dagshub",), "dagshub mlflow"),
    "dvclive": (("dvclive",), "dvclive"),
    "flyte": (("flytekit",), "flytekit"),
    "mlflow": (("mlflow",), "mlflow"),
    "neptune": (("neptune",), "neptune"),
    "swanlab": (("swanlab",), "swanlab"),
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "trackio": (("trackio",), "trackio"),
    "wandb": (("wandb",), "wandb"),
}

# Parts of DeepSpeed's own configuration that send numbers elsewhere, or write files where they say.
OF_DEEPSPEED = ("tensorboard", "wandb", "comet", "csv_monitor", "flops_profiler")


def refuse_deepspeeds(settings: Mapping[str, Any]) -> None:
    """Raise InputError where a DeepSpeed configuration asks for monitors of its own."""
    if asked := [name for name in OF_DEEPSPEED if settings.get(name)]:
        raise InputError(
            f"deepspeed {', '.join(asked)}: DeepSpeed's own monitors send numbers elsewhere or write where they say, "
            "untold. Leave them out, and use --report_to."
        )


def refuse_absent(report_to: Sequence[str]) -> None:
    """Raise InputError where a tracker is unknown to transformers, or its package is not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to {name!r}: no such tracker. Use none or {', '.join(INTEGRATION_TO_CALLBACK)}.")
        modules, package = PACKAGES.get(name, ((), ""))
        # Not `find_spec`, for which a folder `wandb`, as wandb leaves one, is a package.
        if modules and importlib.metadata.packages_distributions().keys().isdisjoint(modules):
            raise InputError(f"report_to {name!r}: {modules[0]} is not installed. Install it: pip install {package}")
