"""Whether what a training makes can be pushed to the Hub, asked before hours of work; pushing is publishing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmedpo import hub
from mmedpo.errors import InputError
from mmedpo.training.config import MMedPOConfig

# folder, repository, whether a new one is public, token, whether what was trained on credentialed data may be sent
Push = Callable[[Path, str, bool, str | None, bool], None]


def check(config: MMedPOConfig) -> None:
    """Raise InputError where `push_to_hub` is asked for by nobody whom the Hub knows, or who may not write."""
    from huggingface_hub import HfApi

    if config.push_to_hub:
        try:
            hub.writer(HfApi(token=config.hub_token))
        except InputError as error:
            raise InputError(f"push_to_hub: {error} Or leave push_to_hub out and publish the folder later.") from error


def push(folder: Path, config: MMedPOConfig, publish: Push, third_parties: bool = False) -> None:
    """Publish a finished folder as `hub_model_id`, or by its own name. Raises InputError if that fails."""
    name = config.hub_model_id or folder.name
    try:
        publish(folder, name, config.hub_private_repo is False, config.hub_token, third_parties)
    except InputError as error:
        raise InputError(
            f"The training is finished and whole in {folder}, but was not pushed to {name}. {error} "
            f"When that is mended: mmedpo publish --adapter {folder} {name}"
        ) from error
