"""Work that the sides of a batch share: an image with all that is asked about it in one row, an image in several rows.

Prefix sharing: a row is a tree of token prefixes (`answers.pack`), such as [system and image][question][chosen]
[rejected][next question]... A token attends to those before it on its own sides, at its position on them. The model's
own mask function (causal, sliding window, image blocks) is called with these positions instead of places in the row.

Images encoded once: the collator passes each distinct list of images once, and the list that each row shows. Inside the
model's forward pass the features are distributed to the rows. Features of a frozen vision tower are reused in the
reference's pass. Nothing else changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_peft_model
from transformers import AttentionMaskInterface

from mmedpo.models import answers

MASKABLE = ("sdpa", "eager", "flex_attention")  # attention implementations that take a mask of any shape
BATCH_IMAGES = ("pictures", "picture_grid_thw")  # the collator's keys on images beside the inputs


class NotApartError(RuntimeError):
    """Raised where a language model ignored the mask or positions that keep the branches of a row apart."""


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


def read_answers(model: Any, inputs: dict[str, torch.Tensor], images: BatchImages | None = None) -> answers.Answers:
    """Return `answers.read_answers` of a batch whose rows may be trees, or share images.

    Raises:
        NotApartError: rows are trees and the model ignored the mask that keeps their branches apart.
    """
    places = inputs["attention_mask"].cumsum(dim=1) - 1
    with contextlib.ExitStack() as stack:
        if bool(((inputs["positions"] < places) & (inputs["attention_mask"] > 0)).any()):
            stack.enter_context(shared_prefixes(model, inputs["ends"], inputs["positions"]))
        if images is not None:
            stack.enter_context(images.encoded_once(model))
        return answers.read_answers(model, inputs)


def prefix_refusal(model: Any) -> str | None:
    """Return the reason why a model cannot take rows that are trees, or None."""
    attention = text_model(model).config._attn_implementation
    if attention not in MASKABLE:
        return f"attention {attention!r} takes no mask of its own shape (use {' or '.join(MASKABLE)})"
    return None


def image_refusal(model: Any) -> str | None:
    """Return the reason why a model cannot take features in place of images, or None."""
    base = base_model(model)
    if hasattr(base.config, "image_token_id") and hasattr(getattr(base, "model", None), "get_image_features"):
        return None
    return f"{type(base).__name__} has no get_image_features, which would take the encoded images"


def text_model(model: Any) -> Any:
    """Return the language model, without its head, inside a vision-language model and its wrappers."""
    return base_model(model).get_decoder()


def base_model(model: Any) -> Any:
    """Return the transformers model inside its wrappers: PEFT, DeepSpeed, DDP."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if is_peft_model(model) else model


@contextlib.contextmanager
def shared_prefixes(model: Any, ends: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Keep the branches of each row apart in the language model, with `ends` and `positions` of `answers.pack`.

    Masks are built before the decoder layers, once per forward pass, so that gradient checkpointing reuses them.

    Raises:
        NotApartError: on exit, where the model asked for no mask or took no positions.
    """
    decoder = text_model(model)
    attention = decoder.config._attn_implementation
    inner = AttentionMaskInterface()[attention]
    asked: set[str] = set()

    def interface(*, config: Any, **kwargs: Any) -> Any:
        if config is decoder.config:  # a vision tower asks for masks too
            asked.add("mask")
            kwargs["mask_function"] = _related(kwargs["mask_function"], ends, positions)
            kwargs["allow_is_causal_skip"] = False
        return inner(config=config, **kwargs)

    def reposition(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        asked.add("positions")
        own = kwargs.get("position_ids")  # (..., R or 1, L): the family's axes and first position
        if own is None:
            return args, {**kwargs, "position_ids": positions}
        own = own.expand(*own.shape[:-2], *positions.shape)
        return args, {**kwargs, "position_ids": own.take_along_dim(positions.expand_as(own), dim=-1)}

    AttentionMaskInterface.register(attention, interface)
    hook = decoder.register_forward_pre_hook(reposition, with_kwargs=True)
    try:
        yield
    finally:
        AttentionMaskInterface.register(attention, inner)
        hook.remove()
    if asked != {"mask", "positions"}:
        raise NotApartError(
            f"{type(decoder).__name__} did not use both mask and positions of shared rows (used: {sorted(asked)}): "
            "its results would be wrong"
        )


def _related(own: Callable[..., Any], ends: torch.Tensor, positions: torch.Tensor) -> Callable[..., Any]:
    """Return the model's own mask function at these positions, where one token follows the other on some side."""
    ends = ends.clone()
    ends[:, 0] = ends.shape[1]  # padding sees the first token, since no softmax may be over nothing

    def visible(row: Any, head: Any, query: Any, key: Any) -> Any:
        behind = (key <= query) & (query < ends[row, key])
        ahead = (query <= key) & (key < ends[row, query])  # image blocks see what comes later in them
        return (behind | ahead) & own(row, head, positions[row, query], positions[row, key])

    return visible
