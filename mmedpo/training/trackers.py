"""Trackers of a training (`report_to`): the package each needs, and the one that writes to this disk only."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from mmedpo.errors import InputError

LOCAL = ("tensorboard",)
PACKAGES = {  # by integration of transformers: modules, one of which is needed, and the package to install
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

# Sections of a DeepSpeed configuration that send numbers elsewhere or write files.
OF_DEEPSPEED = ("tensorboard", "wandb", "comet", "csv_monitor", "flops_profiler")


def refuse_deepspeeds(settings: Mapping[str, Any]) -> None:
    """Raise InputError where a DeepSpeed configuration has monitors of its own."""
    if asked := [name for name in OF_DEEPSPEED if settings.get(name)]:
        raise InputError(
            f"deepspeed {', '.join(asked)}: DeepSpeed's own monitors send numbers elsewhere or write where they say, "
            "untold. Leave them out, and use --report_to."
        )


def refuse_absent(report_to: Sequence[str]) -> None:
    """Raise InputError where transformers does not know a tracker, or its package is not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to {name!r}: no such tracker. Use none or {', '.join(INTEGRATION_TO_CALLBACK)}.")
        modules, package = PACKAGES.get(name, ((), ""))
        # `find_spec` would take a folder `wandb`, which wandb writes, for the package.
        if modules and importlib.metadata.packages_distributions().keys().isdisjoint(modules):
            raise InputError(f"report_to {name!r}: {modules[0]} is not installed. Install it: pip install {package}")
