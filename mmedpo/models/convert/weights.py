"""Tensors of the original layout: names, checks, and saving under transformers' names."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import track

from mmedpo.errors import Fault, InputError
from mmedpo.models.convert.read import Place, read_tensors
from mmedpo.runs.json_files import write_json

if TYPE_CHECKING:
    from torch import Tensor

TOWER = "model.vision_tower.vision_tower.vision_model."
# Prefixes of names: transformers' model, original layout, converted checkpoints on the Hub.
PREFIXES = (
    ("model.vision_tower.", TOWER, "vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.language_model.", "model.", "language_model.model."),
    ("lm_head.", "lm_head.", "language_model.lm_head."),
)
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")  # a row for each token
UNUSED = {
    r"rotary_emb\.inv_freq$": "computed from the configuration, not trained",
    r"embeddings\.position_ids$": "0, 1, 2, ..., not trained",
    r"^(text_model\.|text_projection\.|visual_projection\.|logit_scale$)": "the part of CLIP that LLaVA leaves out",
}
Expected = dict[str, tuple[str, tuple[int, ...]]]  # original name: (new name, shape)


def expected_tensors(config: Any) -> Expected:
    """Return the tensors of a `LlavaConfig`'s model, by their original names."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    expected = {}
    for name, tensor in model.state_dict().items():
        start, original, published = next(prefixes for prefixes in PREFIXES if name.startswith(prefixes[0]))
        rest = name.removeprefix(start)
        expected[original + rest] = (published + rest, tuple(tensor.shape))
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    return expected


class Shard:
    """One weights file; `shapes` uses the original layout's names, for a separate tower file too."""

    def __init__(self, path: Path, of_tower: bool = False) -> None:
        self.path, self.of_tower = path, of_tower
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.read().items()}

    def read(self) -> dict[str, Tensor]:
        return {self._name(name): tensor for name, tensor in read_tensors(self.path).items()}

    def _name(self, name: str) -> str:
        return TOWER + name.removeprefix("vision_model.") if self.of_tower and not _unused(name) else name


def _unused(name: str) -> str | None:
    """Return the reason why no model has a parameter for this tensor; None if it may have one."""
    return next((reason for pattern, reason in UNUSED.items() if re.search(pattern, name)), None)


def find_shards(source: Place, original: dict[str, Any], tower: Place, chosen: bool) -> list[Shard]:
    """Return the checkpoint's shards, and the vision tower's own if the checkpoint holds none of its tensors."""
    shards = [Shard(path) for path in source.weights()]
    if any(name.startswith(TOWER) for shard in shards for name in shard.shapes):
        return shards
    if original.get("unfreeze_mm_vision_tower") and not chosen:
        raise InputError(
            f"{source} was trained with its vision tower (unfreeze_mm_vision_tower) but does not contain it, and "
            "{tower} is the tower before training. Give the trained one as --vision-tower."
        )
    return [*shards, *(Shard(path, of_tower=True) for path in tower.weights())]


def check(source: Place, shards: list[Shard], expected: Expected, tied: bool) -> dict[str, str]:
    """Return the tensors to leave out, with reasons. Raises InputError that names all tensors that do not fit."""
    ignored: dict[str, str] = {}
    found: dict[str, str] = {}
    faults: list[Fault] = []
    for file, name, shape in ((shard.path.name, *tensor) for shard in shards for tensor in shard.shapes.items()):
        reason = "tied to the embedding" if tied and name == "lm_head.weight" else _unused(name)
        if reason:
            ignored[name] = reason
        elif name not in expected:
            faults.append(Fault(name, "surplus", f"{shape} in {file}; the model has no such tensor."))
        elif name in found:
            faults.append(Fault(name, "doubled", f"is in {found[name]} and in {file}."))
        elif shape != expected[name][1]:
            faults.append(Fault(name, "misshaped", f"{shape} in {file}; by config.json {expected[name][1]}."))
        found.setdefault(name, file)
    faults += [Fault(name, "missing", "is in no file of weights.") for name in expected if name not in found]
    if faults:
        raise InputError(f"The weights of {source} do not fit its config.json; download both again:", faults)
    return ignored


def save_weights(folder: Path, shards: list[Shard], expected: Expected, rows: int) -> None:
    """Write one safetensors file per shard, and their index; the vocabulary grows by `rows`.

    Raises:
        InputError: the disk has too little space.
    """
    from safetensors.torch import save_file

    needed, free = sum(shard.path.stat().st_size for shard in shards), shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{folder.parent} has {free / 1e9:.1f} GB free, and the weights take {needed / 1e9:.1f} GB.")
    files: dict[str, str] = {}
    size = 0
    for number, shard in enumerate(track(shards, description="Writing weights"), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {
            expected[name][0]: (_grown(tensor, rows) if name in VOCABULARY else tensor).contiguous()
            for name, tensor in shard.read().items()
            if name in expected
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def _grown(tensor: Tensor, rows: int) -> Tensor:
    import torch

    mean = tensor.mean(0, keepdim=True, dtype=torch.float32).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(rows, -1)]) if rows else tensor
