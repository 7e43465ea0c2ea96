"""Encode images once: each distinct image of a batch passes through the vision tower once, for all rows and passes.

The collator passes each distinct list of images once, and the list that each row shows. Inside the model's forward pass
the features are distributed to the rows; nothing else changes. Features of a frozen vision tower are reused in the
reference's pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from mmedpo.training.sharing import base_model, text_model

BATCH_IMAGES = ("pictures", "picture_grid_thw")  # the collator's keys on images beside the inputs


class BatchImages:
    """Images of one batch.

    Args:
        inputs: the batch. `pictures` (int64, R: list of images that each row shows) is present where lists are fewer
            than rows or reordered; `picture_grid_thw` is then the lists' `image_grid_thw`.
        frozen: the vision tower is not trained (`is_frozen`), so that one pass without gradient serves all.
    """

    def __init__(self, inputs: dict[str, torch.Tensor], frozen: bool) -> None:
        self._inputs, self._frozen = inputs, frozen
        self._kept: SimpleNamespace | None = None  # features of the rows

    @contextlib.contextmanager
    def encoded_once(self, model: Any) -> Iterator[None]:
        """Give the model's rows the features of their images, computed once per list of images."""
        base = base_model(model)
        inner, own = base.model, base.model.get_image_features
        tokens = (self._inputs["input_ids"] == base.config.image_token_id).sum(dim=1)

        def for_rows(*args: Any, **kwargs: Any) -> SimpleNamespace:
            if self._kept is not None:
                return self._kept
            if "picture_grid_thw" in self._inputs:  # `image_grid_thw` is per row, for the model's positions
                args, kwargs = args[:1], {**kwargs, "image_grid_thw": self._inputs["picture_grid_thw"]}
            with torch.no_grad() if self._frozen else contextlib.nullcontext():
                features = self._by_row(own(*args, **kwargs), tokens.tolist())
            self._kept = features if self._frozen else None
            return features

        inner.get_image_features = for_rows
        try:
            yield
        finally:
            del inner.get_image_features

    def _by_row(self, output: Any, tokens: list[int]) -> SimpleNamespace:
        """Return the model's features in the order of the rows, which have so many image tokens.

        The first level replaces image tokens; others are inputs of deeper layers in some models (Qwen3-VL). Some models
        keep a list with one tensor per image instead of one tensor for all.
        """
        levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or [])]
        listed = isinstance(levels[0], (list, tuple))
        flat = [torch.cat(list(level)) if isinstance(level, (list, tuple)) else level for level in levels]
        flat = [level.reshape(-1, level.shape[-1]) for level in flat]
        if "pictures" in self._inputs:
            shown = self._inputs["pictures"].tolist()
            lengths = dict(sorted(zip(shown, tokens, strict=True)))
            parts = [level.split(list(lengths.values())) for level in flat]
            flat = [torch.cat([level[i] for i in shown]) for level in parts]
        return SimpleNamespace(
            pooler_output=flat[:1] if listed else flat[0], deepstack_features=[[level] for level in flat[1:]]
        )


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
