"""Prefix sharing: both answers of a pair behind one copy of their prompt and images, with unchanged results.

A row is [prompt with image tokens][first answer][second answer]. Tokens of the second answer attend to the prompt and
to themselves, at the positions right behind the prompt. The model's own mask function (causal, sliding window, image
blocks) is called with these positions instead of places in the row. The last token of an answer predicts nothing and is
left out; the prompt's last token predicts the first token of both answers. A row with one answer is the plain
computation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, is_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionMaskInterface

PACKING = ("segments", "positions", "answer_ids", "completion_mask", "predictors")  # keys of `pack` beside the inputs
MASKABLE = ("sdpa", "eager")  # attention implementations that take a mask of any shape


class NotApartError(RuntimeError):
    """Raised where a language model ignored the mask or positions that keep two answers of a row apart."""


def pack(
    prompts: Sequence[Sequence[int]], owners: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], filler: int = 0
) -> dict[str, torch.Tensor]:
    """Rows of prompts with one or two answers each, right-padded.

    Args:
        prompts: token ids of the prompt of each row (R of them).
        owners: which answers follow each prompt, as indices into `answers`; every answer belongs to one row.
        answers: token ids of the answers (S of them).
        filler: token id of the padding.

    Returns (int64; L tokens in the longest row, T in the longest answer):
        `input_ids`, `attention_mask` (R x L); `segments` (R x L: 0 prompt and padding, 1 first answer, 2 second);
        `positions` (R x L: place of each token in its own prompt and answer);
        `answer_ids`, `completion_mask` (S x T: whether there is such a token);
        `predictors` (S x T: the place, in the flattened R x L, whose logits predict the token).
    """
    ids, segments, positions = [], [], []
    places: list[list[tuple[int, int]]] = [[] for _ in answers]
    for row, (prompt, sides) in enumerate(zip(prompts, owners, strict=True)):
        ids.append(list(prompt))
        segments.append([0] * len(prompt))
        positions.append(list(range(len(prompt))))
        for number, side in enumerate(sides, start=1):
            seen, start = answers[side][:-1], len(ids[row])
            ids[row] += seen
            segments[row] += [number] * len(seen)
            positions[row] += range(len(prompt), len(prompt) + len(seen))
            before = [len(prompt) - 1, *range(start, start + len(seen))]
            places[side] = [(row, place) for place in before[: len(answers[side])]]
    width = max(len(row) for row in ids)
    return {
        "input_ids": padded(ids, filler),
        "attention_mask": padded([[1] * len(row) for row in ids]),
        "segments": padded(segments),
        "positions": padded(positions),
        "answer_ids": padded(answers, filler),
        "completion_mask": padded([[1] * len(answer) for answer in answers]),
        "predictors": padded([[row * width + place for row, place in side] for side in places]),
    }


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Return rows of different length as one int64 tensor, padded on the right."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


def refusal(model: Any) -> str | None:
    """Return the reason why a model cannot take rows with two answers, or None."""
    attention = text_model(model).config._attn_implementation
    if attention not in MASKABLE:
        return f"attention {attention!r} takes no mask of its own shape (use {' or '.join(MASKABLE)})"
    return None


def text_model(model: Any) -> Any:
    """Return the language model, without its head, inside a vision-language model and its wrappers."""
    return base_model(model).get_decoder()


def base_model(model: Any) -> Any:
    """Return the transformers model inside its wrappers: PEFT, DeepSpeed, DDP."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if is_peft_model(model) else model


@contextlib.contextmanager
def shared_prefixes(model: Any, segments: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Keep the segments of each row apart in the language model, at positions as `pack` gives them.

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
            kwargs["mask_function"] = _apart(kwargs["mask_function"], segments, positions)
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
            f"{type(decoder).__name__} did not use both mask and positions of shared rows (used: {sorted(asked)}), so "
            "that its results would be wrong"
        )


def _apart(own: Callable[..., Any], segments: torch.Tensor, positions: torch.Tensor) -> Callable[..., Any]:
    """Return a mask function that hides each answer from all but itself, else the model's own at these positions."""

    def visible(row: Any, head: Any, query: Any, key: Any) -> Any:
        to, by = segments[row, key], segments[row, query]
        return ((to == 0) | (to == by)) & own(row, head, positions[row, query], positions[row, key])

    return visible
