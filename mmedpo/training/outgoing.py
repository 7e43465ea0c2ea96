"""What a training sends elsewhere: trackers (`report_to`) and the push to the Hub, checked before it starts."""

from __future__ import annotations

import importlib.metadata
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo.data import consent, credentialed
from mmedpo.errors import InputError
from mmedpo.runs import hosts, options
from mmedpo.training.config import MMedPOConfig, RunArguments

LOCAL = ("tensorboard",)  # trackers that write to this disk only
# Of a tracker that is not called as its module and its package on PyPI.
MODULES = {
    "azure_ml": ["azureml"],
    "flyte": ["flytekit"],
    "kubeflow": [],
    "tensorboard": ["tensorboard", "tensorboardX"],
}
PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "dagshub": "dagshub mlflow", "flyte": "flytekit"}

# Sections of a DeepSpeed configuration that send numbers elsewhere or write files.
OF_DEEPSPEED = ("tensorboard", "wandb", "comet", "csv_monitor", "flops_profiler")


def refuse_deepspeeds(settings: Mapping[str, Any]) -> None:
    """Raise InputError where a DeepSpeed configuration has monitors of its own."""
    if asked := [name for name in OF_DEEPSPEED if settings.get(name)]:
        raise InputError(
            f"deepspeed {', '.join(asked)}: DeepSpeed's own monitors send or write numbers unchecked. "
            "Leave them out, and use --report_to."
        )


def refuse_absent(report_to: Sequence[str]) -> None:
    """Raise InputError where transformers does not know a tracker, or its package is not installed."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"report_to {name!r}: no such tracker. Use none or {', '.join(INTEGRATION_TO_CALLBACK)}.")
        modules = MODULES.get(name, [name])  # one of them is needed
        # `find_spec` would take a folder `wandb`, which wandb writes, for the package.
        if modules and importlib.metadata.packages_distributions().keys().isdisjoint(modules):
            package = PACKAGES.get(name, name)
            raise InputError(f"report_to {name!r}: {modules[0]} is not installed. Install it: pip install {package}")


def consented(run: RunArguments, config: MMedPOConfig, name: str) -> dict[str, Any]:
    """Return the record of consent for trackers and the Hub, which get what is trained on the restricted source `name`.

    Raises:
        InputError: there is no consent to push, or to use a tracker elsewhere.
    """
    away = sorted({*(config.report_to or ())} - {*LOCAL})
    if run.third_parties:
        places = [*away, *([hosts.HUB] if config.push_to_hub else [])]
        return consent.record(places, weights=config.push_to_hub) if places else {}
    if away:
        raise InputError(
            f"report_to {', '.join(away)}: {name} is restricted data, and trackers may upload what is trained on it "
            "(ClearML does by default). Use --report_to tensorboard, which writes to this disk, or none. "
            f"{credentialed.UNLESS}"
        )
    if config.push_to_hub:
        if run.streaming and name in run.dataset_name:
            raise InputError(
                f"{run.output} cannot be pushed: {name} is streamed from the Hub without a manifest.json that names "
                "its source, so it may be restricted data. Leave out --streaming, so that its rows are "
                f"checked, or leave out --push_to_hub. {credentialed.UNLESS}"
            )
        credentialed.refuse_publishing([{credentialed.KEY: name}], run.output)
    return {}


@dataclass(frozen=True)
class Push:
    """Functions that publish a finished folder.

    Attributes:
        prepare: takes repository, training.json's entries on model and dataset, and token; raises InputError where
            publishing would fail or need a person. It creates nothing.
        send: takes folder, repository, token, and consent to send what was trained on restricted data.
    """

    prepare: Callable[[str, dict[str, Any], str | None], None]
    send: Callable[[Path, str, str | None, bool], None]


def prepare(output: Path, config: MMedPOConfig, push: Push | None, training: dict[str, Any]) -> None:
    """Raise InputError where `push_to_hub` cannot work, or would publish what no person has seen.

    Args:
        training: training.json's entries on model and dataset.
    """
    try:
        if push is None:
            raise InputError("the trainer was given no function that publishes; use `mmedpo train`.")
        if config.hub_private_repo is False:
            raise InputError("a training pushes privately only (hub_private_repo), since its card was not read yet.")
        push.prepare(_name(output, config), training, config.hub_token)
    except InputError as error:
        way = _command(Path("FOLDER"), config.hub_model_id or "REPO", False)
        raise InputError(f"push_to_hub: {error} Or leave push_to_hub out, and later: {way} [--public]") from error


def push(output: Path, config: MMedPOConfig, push: Push, third_parties: bool = False) -> None:
    """Publish a finished folder as `hub_model_id`, or under its own name. Raises InputError if that fails."""
    name = _name(output, config)
    try:
        push.send(output, name, config.hub_token, third_parties)
    except InputError as error:
        raise InputError(
            f"The training is finished and whole in {output}, but was not pushed to {name}. {error} "
            f"Then push it with: {_command(output, name, third_parties)}"
        ) from error


def _name(output: Path, config: MMedPOConfig) -> str:
    return config.hub_model_id or output.resolve().name


def _command(folder: Path, name: str, third_parties: bool) -> str:
    flags = [options.FLAG] if third_parties else []
    return shlex.join(["mmedpo", "publish", "--adapter", str(folder), name, *flags])
