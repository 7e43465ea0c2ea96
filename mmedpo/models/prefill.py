"""Prefill shared by prompts: what all prompts about an image begin with is computed once, and its cache is repeated.

Three passes of `generate`: over the trunk of each image (image tokens included); over what follows it in each prompt;
and, from caches in the layout of left-padded prompts, over the last token of each prompt and its answer. The model's
own code makes positions and masks in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from mmedpo.errors import InputError
from mmedpo.models.generation import NumbersOnly, Sampling
from mmedpo.models.prompts import Prompts, difference, left_padded, length, rows

if TYPE_CHECKING:
    from mmedpo.models.thoughts import Answer
    from mmedpo.models.vision_language import VisionLanguageModel

ROOM = 64  # tokens by which a cache grows


class Layer(DynamicLayer):
    """Cache layer that grows by `ROOM` tokens at once; transformers' is copied whole for every token."""

    def hold(self, keys: torch.Tensor, values: torch.Tensor, used: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hold and return the first `used` places of these tensors; the others are room for later tokens."""
        self._keys, self._values = keys, values
        self.keys, self.values = held = keys[..., :used, :], values[..., :used, :]
        return held

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        added = key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            return self.hold(key_states, value_states, added)
        start = self.get_seq_length()
        end, room = start + added, self._keys.shape[-2]
        if end > room:
            more = (0, 0, 0, end + ROOM - room)
            self._keys, self._values = F.pad(self._keys, more), F.pad(self._values, more)
        self._keys[..., start:end, :], self._values[..., start:end, :] = key_states, value_states
        return self.hold(self._keys, self._values, end)


def answers(
    model: VisionLanguageModel, prompts: Prompts, parts: Sequence[tuple[int, Sampling]]
) -> Iterator[list[list[Answer]]]:
    """Yield the answers to each part of a batch, `samples` to each prompt; trunks are computed once for all parts.

    What prompts share is verified first, on a few of them; they are read again where less is shared.

    Args:
        parts: number of prompts of each part, in order, and their sampling, with equal `samples`.
    """
    asked, sampling = prompts.questions, parts[0][1]
    ends = [*accumulate(count for count, _ in parts)]
    places = [slice(end - count, end) for end, (count, _) in zip(ends, parts, strict=True)]

    def some() -> Prompts:
        return model.prompts([asked[place] for place in prompts.few], sampling)

    def differs(shared: Prompts) -> str | None:
        few = [shared.questions[place] for place in shared.few]
        return _disagreement(model.model, model.encode(few), model.prompts(few, sampling), model.called)

    model.generating.verified(prompts, some, differs)
    if asked and prompts.share != model.generating.share:
        for own, (count, sampling) in zip(places, parts, strict=True):
            yield from answers(model, model.prompts(asked[own], sampling), [(count, sampling)])
        return
    begun = begin(model.model, prompts) if len(parts) > 1 else None
    for own, (_, sampling) in zip(places, parts, strict=True):
        part = prompts.part(own)
        choice: dict[str, Any] = {"do_sample": False}
        if sampling.temperature:
            choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        choice |= {"max_new_tokens": sampling.max_new_tokens, "logits_processor": [NumbersOnly(model.called)]}
        torch.manual_seed(sampling.seed)
        tokens = iter(generate(model.model, part, begun, **choice)[:, part.longest :].tolist())
        read, most, times = model.reader.read, sampling.max_new_tokens, range(sampling.samples)
        with model.tokenizing:
            said = [[read(prompt["input_ids"], next(tokens), most) for _ in times] for prompt in part.tokens]
        yield said


@torch.inference_mode()
def begin(model: Any, prompts: Prompts) -> tuple[Any, dict[Any, torch.Tensor]]:
    """Return the cache of all trunks, and Qwen-VL's offsets of positions behind their images by module."""
    cache = Cache(layer_class_to_replicate=Layer)  # of all tokens, also where attention has a window: rows are shifted
    _prefill(model, {**left_padded(prompts.trunks, prompts.filler), **prompts.pixels}, cache)
    found = {module: getattr(module, "rope_deltas", None) for module in model.modules()}
    return cache, {module: deltas for module, deltas in found.items() if deltas is not None}


@torch.inference_mode()
def generate(
    model: Any, prompts: Prompts, begun: tuple[Any, dict[Any, torch.Tensor]] | None = None, **choice: Any
) -> Any:
    """Return the output of `model.generate` for left-padded prompts, each `prompts.samples` times, prefill shared.

    Args:
        begun: result of `begin` for a batch of which these are a part; it serves all parts.
        choice: further arguments of `generate`.
    """
    tokens, owners, samples, device = prompts.tokens, prompts.owners, prompts.samples, model.device
    longest, inputs = prompts.longest, left_padded(tokens, prompts.filler)
    if begun is None and not prompts.repeated:
        return _generate(model, {**inputs, **prompts.pixels}, num_return_sequences=samples, **choice)
    kept, offsets = begun or begin(model, prompts)
    del begun
    cache = copy(kept)
    cache.layers = [copy(layer) for layer in kept.layers]  # tensors are replaced by `_select`, not written
    del kept
    for module, deltas in offsets.items():
        module.rope_deltas = deltas
    wide = max(map(length, prompts.trunks))
    chosen = torch.tensor(owners, device=device)
    left = [wide - length(prompts.trunks[owner]) for owner in owners]
    if most := max(prompts.tails):
        _select(model, cache, chosen, torch.arange(wide, device=device).expand(len(tokens), -1))
        # Behind shorter prompts the last token is repeated: nothing sees it, and `_select` drops it.
        _prefill(model, rows(tokens, left, [most - tail for tail in prompts.tails], prompts.filler), cache)
        chosen = torch.arange(len(tokens), device=device)
    shift = torch.tensor([before + length(own) - longest for before, own in zip(left, tokens, strict=True)])
    places = (torch.arange(longest - 1) + shift[:, None]).clamp(min=0).to(device)  # masked where it is clamped
    _select(model, cache, chosen.repeat_interleave(samples), places.repeat_interleave(samples, dim=0))
    inputs = {name: value.repeat_interleave(samples, dim=0) for name, value in inputs.items()}
    return _generate(model, inputs, past_key_values=cache, **choice)


def _prefill(model: Any, inputs: dict[str, torch.Tensor], cache: Any) -> None:
    _generate(model, inputs, past_key_values=cache, max_new_tokens=1, do_sample=False)


def _generate(model: Any, inputs: dict[str, torch.Tensor], **choice: Any) -> Any:
    return model.generate(**{name: value.to(model.device) for name, value in inputs.items()}, **choice)


def _select(model: Any, cache: Any, rows: torch.Tensor, places: torch.Tensor) -> None:
    """Make the rows of a cache these rows (R), each of these places (R x L)."""
    for layer in cache.layers:
        if layer.is_initialized:
            heads = torch.arange(layer.keys.shape[1], device=rows.device)
            chosen = rows[:, None, None], heads[:, None], F.pad(places, (0, ROOM))[:, None]
            layer.hold(layer.keys[chosen], layer.values[chosen], places.shape[1])
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:  # Qwen-VL's offset of positions after the images
            module.rope_deltas = module.rope_deltas[rows]


@torch.inference_mode()
def _disagreement(model: Any, plain: Any, prompts: Prompts, called: str) -> str | None:
    """Return why prefill cannot be shared, None where the logits of two greedy tokens agree with the plain way.

    Args:
        plain: model inputs of the prompts, each with its own images.
    """
    probe: dict[str, Any] = {
        "max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True,
        "logits_processor": [NumbersOnly(called)],
    }  # fmt: skip
    expected = _generate(model, plain, **probe)
    try:
        found = generate(model, prompts, **probe)
    except InputError:
        raise
    except Exception as error:  # by a cache or positions that cannot be repeated
        return f"{type(error).__name__}: {error}"
    said = expected.sequences[:, prompts.longest].repeat_interleave(prompts.samples)
    alike = torch.ones_like(said, dtype=torch.bool)  # rows whose tokens are equal so far
    for own, other in zip(expected.logits, found.logits, strict=False):
        own = own.repeat_interleave(prompts.samples, dim=0)
        if reason := difference(own[alike].float(), other[alike].float(), model.dtype):
            return reason
        alike = said == found.sequences[:, prompts.longest]
        if not alike.any():
            break
    return None
