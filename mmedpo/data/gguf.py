"""Models that are published as GGUF files alone: what to do with them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def refusal(name: str, of_hub: bool = False) -> str | None:
    """Return why a model is not read, and the remedy, where `name` is a GGUF file or holds no other weights.

    Args:
        name: file, folder or Hub id.
        of_hub: list the files of a Hub id; else None is returned for one.
    """
    place = Path(name)
    if place.suffix.lower() == ".gguf":
        what, files, serving = "it is a GGUF file, which is", [name], f"-m {name}"
    elif place.is_dir():
        files = sorted(str(file) for file in place.iterdir() if file.is_file())
        what = "its weights are GGUF files, which are"
        serving = next((f"-m {file}" for file in files if file.lower().endswith(".gguf")), "")
    elif of_hub:
        files, what, serving = _listed(name), "its weights are GGUF files, which are", f"-hf {name}"
    else:
        return None
    held = [file for file in files if file.lower().endswith(".gguf")]
    if not held or any(file.endswith((".safetensors", ".bin")) for file in files):
        return None
    return (
        f"{what} not read here. Serve it by llama.cpp, `llama-server {serving}`, and name it as a chat model: "
        f"http://localhost:8080/v1#{Path(held[0]).stem}. Or name its safetensors, or convert it (docs/curation.md)."
    )


def _listed(name: str) -> list[str]:
    from huggingface_hub import HfApi

    with suppress(Exception):  # the error that led here is reported then
        return HfApi().list_repo_files(name)
    return []
