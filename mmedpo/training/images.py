"""Encode images once: each distinct image of a batch passes through the vision tower once, for all rows and passes.

The collator passes each distinct list of images once, and the list that each row shows. Inside the model's forward pass
the features are distributed to the rows; nothing else changes. Features of a frozen vision tower are reused in the
reference's pass, and optionally stored on disk.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import reduce
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmedpo.errors import InputError
from mmedpo.training.sharing import base_model, text_model

BATCH_IMAGES = ("pictures", "picture_grid_thw", "picture_key")  # the collator's keys on images beside the inputs


@dataclass
class Features:
    """Features of one list of images.

    Attributes:
        levels: float, tokens x width each: the replacement of the image tokens, then inputs of deeper layers in some
            models (Qwen3-VL).
        listed: True where the model keeps one tensor per image in a list, not one tensor for all.
    """

    levels: list[torch.Tensor]
    listed: bool


class BatchImages:
    """Images of one batch.

    Args:
        inputs: the batch. `pictures` (int64, R: list of images that each row shows) is present where lists are fewer
            than rows or reordered; `picture_grid_thw` is then the lists' `image_grid_thw`. `picture_key` (int64, U x 2)
            names the lists for `cache`.
        frozen: the vision tower is not trained (`is_frozen`), so that one pass without gradient serves all.
        cache: features of earlier steps and runs.
    """

    def __init__(self, inputs: dict[str, torch.Tensor], frozen: bool, cache: FeatureCache | None = None) -> None:
        self._inputs, self._frozen, self._cache = inputs, frozen, cache if frozen else None
        self._kept: list[Features] | None = None

    @contextlib.contextmanager
    def encoded_once(self, model: Any) -> Iterator[None]:
        """Give the model's rows the features of their images, computed once per list of images."""
        base = base_model(model)
        inner, own = base.model, base.model.get_image_features
        placeholders = self._inputs["input_ids"] == base.config.image_token_id

        def for_rows(*args: Any, **kwargs: Any) -> SimpleNamespace:
            if "picture_grid_thw" in self._inputs:  # `image_grid_thw` is per row, for the model's positions
                args, kwargs = args[:1], {**kwargs, "image_grid_thw": self._inputs["picture_grid_thw"]}
            features = self._kept or self._encode(lambda: own(*args, **kwargs), placeholders)
            self._kept = features if self._frozen else None
            return self._handed_out(features)

        inner.get_image_features = for_rows
        try:
            yield
        finally:
            del inner.get_image_features

    def _encode(self, compute: Callable[[], Any], placeholders: torch.Tensor) -> list[Features]:
        def encode() -> list[Features]:
            with torch.no_grad() if self._frozen else contextlib.nullcontext():
                output = compute()
            pooled = output.pooler_output
            listed = isinstance(pooled, (list, tuple))
            levels = [pooled, *(getattr(output, "deepstack_features", None) or [])]
            flat = [torch.cat(list(level)) if isinstance(level, (list, tuple)) else level for level in levels]
            flat = [level.reshape(-1, level.shape[-1]) for level in flat]
            if not {"pictures", "picture_key"} & self._inputs.keys():  # in the order of the rows
                return [Features(flat, listed)]
            split = [level.split(self._lengths(placeholders)) for level in flat]
            return [Features(list(parts), listed) for parts in zip(*split, strict=True)]

        if self._cache is None or "picture_key" not in self._inputs:
            return encode()
        return self._cache.get(self._inputs["picture_key"], encode)

    def _lengths(self, placeholders: torch.Tensor) -> list[int]:
        """Return the tokens of each list of images, counted by its rows' placeholders."""
        counts = placeholders.sum(dim=1).tolist()
        shown = self._inputs["pictures"].tolist() if "pictures" in self._inputs else range(len(counts))
        lengths = dict(zip(shown, counts, strict=True))
        return [lengths[i] for i in sorted(lengths)]

    def _handed_out(self, features: list[Features]) -> SimpleNamespace:
        shown = self._inputs["pictures"].tolist() if "pictures" in self._inputs else range(len(features))
        levels = [torch.cat([features[i].levels[n] for i in shown]) for n in range(len(features[0].levels))]
        pooled, deeper = levels[0], [[level] for level in levels[1:]]
        return SimpleNamespace(pooler_output=[pooled] if features[0].listed else pooled, deepstack_features=deeper)


class FeatureCache:
    """Image features on disk: one file per list of images, in a folder named after `reference.fingerprint`.

    Args:
        folder: parent of the folders of all fingerprints.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder / fingerprint
        self._folder.mkdir(parents=True, exist_ok=True)

    def get(self, keys: torch.Tensor, compute: Callable[[], list[Features]]) -> list[Features]:
        """Return features of the lists of images named by `keys` (int64, U x 2), computed if any is unknown.

        All processes call this together. If one misses features, all call `compute`, since all must run ZeRO-3's model.
        """
        files = [self._folder / f"{first:x}_{second:x}.safetensors" for first, second in keys.tolist()]
        known = [features for file in files if (features := _read(file, keys.device)) is not None]
        missing = torch.tensor(float(len(known) < len(files)), device=keys.device)
        if not reduce(missing, "max"):
            return known
        computed = compute()
        for file, features in zip(files, computed, strict=True):
            if not file.exists():
                _write(file, features)
        return computed


def _read(file: Path, device: torch.device) -> Features | None:
    if not file.exists():
        return None
    try:
        tensors = load_file(file, device=str(device))
    except SafetensorError as error:
        raise InputError(f"{file} cannot be read ({error}). Remove it, and it will be computed again.") from error
    listed = "listed" in tensors
    deeper = [tensors[f"deeper{n}"] for n in range(len(tensors) - 1)]
    return Features([tensors["listed" if listed else "tensor"], *deeper], listed)


def _write(file: Path, features: Features) -> None:
    first = "listed" if features.listed else "tensor"
    names = [first, *(f"deeper{n}" for n in range(len(features.levels) - 1))]
    partial = file.with_suffix(f".{uuid.uuid4().hex}")  # processes may write at once
    save_file({name: level.contiguous() for name, level in zip(names, features.levels, strict=True)}, partial)
    partial.replace(file)


def refusal(model: Any) -> str | None:
    """Return the reason why a model cannot take features in place of images, or None."""
    base = base_model(model)
    if hasattr(base.config, "image_token_id") and hasattr(getattr(base, "model", None), "get_image_features"):
        return None
    return f"{type(base).__name__} has no get_image_features that its forward pass would ask"


def is_frozen(model: Any) -> bool:
    """Return True where only the language model and its head are trained, without vision tower and projector."""
    return not any(parameter.requires_grad for parameter in vision_parameters(model).values())


def same_encoder(model: Any, other: Any) -> bool:
    """Return True where two models make the same image features; False if ZeRO-3 has split one, which hides it."""
    ours, theirs = (vision_parameters(base_model(each)) for each in (model, other))
    split = any(hasattr(parameter, "ds_id") for parameter in (*ours.values(), *theirs.values()))
    return (
        not split
        and ours.keys() == theirs.keys()
        and all(
            own.dtype == theirs[name].dtype and torch.equal(own.cpu(), theirs[name].cpu()) for name, own in ours.items()
        )
    )


def vision_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return the parameters, by name, of all that makes image features: vision tower, projector and the rest."""
    parts = [text_model(model), base_model(model).get_output_embeddings()]
    language = {id(parameter) for part in parts for parameter in part.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) not in language}
