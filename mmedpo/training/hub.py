"""Pushing what a training made to the Hub, privately unless asked otherwise."""

from __future__ import annotations

from pathlib import Path

from mmedpo.errors import InputError
from mmedpo.training.config import MMedPOConfig


def check(config: MMedPOConfig) -> None:
    """Raise InputError, before hours of training, where `push_to_hub` is asked for by nobody whom the Hub knows."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not config.push_to_hub:
        return
    try:
        HfApi(token=config.hub_token).whoami()
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise InputError(
            f"push_to_hub: the Hub does not know who asks ({_first_line(error)}). Run `hf auth login` with a token "
            "that may write, or leave push_to_hub out and upload the folder later."
        ) from error


def push(folder: Path, config: MMedPOConfig) -> None:
    """Upload a finished folder to `hub_model_id`, or to a repository of its name. Raises InputError if that fails."""
    from httpx2 import HTTPError
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, name = HfApi(token=config.hub_token), config.hub_model_id or folder.name
    private = True if config.hub_private_repo is None else config.hub_private_repo
    try:
        repo = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo.repo_id, folder_path=folder, commit_message="Adapter trained with mmedpo")
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise InputError(
            f"The training is finished and whole in {folder}, but was not pushed to {name} ({_first_line(error)}). "
            f"When that is mended: hf upload {name} {folder} --private"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
