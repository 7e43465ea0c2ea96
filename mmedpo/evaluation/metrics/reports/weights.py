"""Published weights of the clinical scores: files of the Hub, read as data, and named by their digests."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mmedpo.data import hub
from mmedpo.data.trust import only_data
from mmedpo.errors import InputError
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    import torch

REPOSITORY = "StanfordAIMI/RRG_scorers"
ENCODER = "config.json vocab.txt tokenizer.json tokenizer_config.json"  # files of an encoder on the Hub
DIGITS = 8  # of a digest, in a definition


def fetch(name: str, file: str) -> Path:
    """Return a file of `REPOSITORY`, from the cache or the Hub.

    Raises:
        InputError: it is in neither; the message says what to fetch.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, file))
    except Exception as error:
        raise InputError(
            f"The clinical score {name!r} needs its published weights, {file} of {REPOSITORY} on the Hub: "
            f"{hub.why_unread(error, REPOSITORY)} With network: `hf download {REPOSITORY} {file}`."
        ) from error


def definition(name: str, version: int, file: Path) -> str:
    """Return a score's name, version and the digest of its weights, as results record it."""
    return f"{name}@{version} ({file.name} {sha256(file)[:DIGITS]})"


def tensors(file: Path, opened: IO[bytes] | None = None) -> Any:
    """Return the content of a `torch.save` file (or of `opened`, a member of the archive `file`), tensors only.

    Raises:
        InputError: it is damaged, or holds what could run code.
    """
    import pickle

    import torch

    try:
        return torch.load(opened or file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError) as error:
        said = hub.why_unread(error)
        raise InputError(f"{file.name} cannot be read as weights: {said} Fetch it again from {REPOSITORY}.") from error


def encoder(name: str, model: str) -> tuple[Any, Any]:
    """Return the tokenizer of `model` on the Hub and a network of its architecture, with random weights.

    Raises:
        InputError: its files are neither in the cache nor on the Hub.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **only_data())
        return tokenizer, AutoModel.from_config(AutoConfig.from_pretrained(model, **only_data()))
    except Exception as error:
        raise InputError(
            f"The clinical score {name!r} needs the tokenizer and configuration of {model}: "
            f"{hub.why_unread(error, model)} With network: `hf download {model} {ENCODER}`."
        ) from error


def load(network: torch.nn.Module, state: dict[str, torch.Tensor], file: Path) -> None:
    """Load `state` into `network`, all of it.

    Raises:
        InputError: names or shapes differ.
    """
    own = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}  # of older transformers
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        faults = " ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise InputError(f"{file.name} is not of this score's architecture: {faults}") from error
