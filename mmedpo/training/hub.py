"""Pushing a finished training to the Hub, checked before the training starts."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo.errors import InputError
from mmedpo.runs import options
from mmedpo.training.config import MMedPOConfig


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
            raise InputError("nothing was given that publishes; use `mmedpo train`.")
        if config.hub_private_repo is False:
            raise InputError("a training pushes privately only (hub_private_repo), since nobody has seen its card yet.")
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
            f"When that is mended: {_command(output, name, third_parties)}"
        ) from error


def _name(output: Path, config: MMedPOConfig) -> str:
    return config.hub_model_id or output.resolve().name


def _command(folder: Path, name: str, third_parties: bool) -> str:
    flags = [options.FLAG] if third_parties else []
    return shlex.join(["mmedpo", "publish", "--adapter", str(folder), name, *flags])
