"""Attention weights of an answer to the image tokens, read while the answer is generated.

The answer is generated or forced token by token, so that masks, positions and caches equal those of normal generation.
Each predicted token's weights are averaged over heads, layers and tokens. Memory holds one layer's matrix at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import Floats
from mmedpo.models.generation import NumbersOnly, end_tokens, suppressed_tokens
from mmedpo.models.thoughts import Answer
from mmedpo.models.vision_language import VisionLanguageModel


@dataclass(frozen=True)
class Reading:
    """Attention of one answer: its text and the mean weight of each image token (float64, sum at most 1).

    Without an answer the text is "", all weights are 0, and `unanswered` holds the reason.
    """

    answer: str
    mass: Floats
    unanswered: str | None = None


def attending(model: VisionLanguageModel, layers: str = "all") -> list[Any]:
    """Set the language model to eager attention and return the attention modules of the chosen layers.

    Raises:
        InputError: the model has no eager attention, or lacks one of the layers.
    """
    base = model.model.get_base_model() if model.adapter is not None else model.model
    decoder = base.get_decoder()
    try:  # weights of the vision tower are large and not needed
        base.set_attn_implementation({"": "eager", "text_config": "eager"})
    except (ValueError, ImportError) as error:
        raise InputError(f"{model.name!r} has no eager attention: {str(error).splitlines()[0]}") from error
    there = [module for name, module in decoder.named_modules() if name.endswith(".self_attn")]
    if decoder.config._attn_implementation != "eager" or not there:
        raise InputError(f"{model.name!r}: {type(decoder).__name__} has no eager attention, which returns weights.")
    chosen = layer_numbers(layers)
    if chosen and max(chosen) >= len(there):
        raise InputError(f"layers is {layers!r}; {model.name!r} has layers 0 to {len(there) - 1}.")
    return [there[number] for number in chosen] if chosen else there


def layer_numbers(given: str) -> list[int]:
    """Return the numbers of the chosen layers in order; empty for "all".

    Raises:
        InputError: `given` is neither "all" nor numbers and ranges.
    """
    if given == "all":
        return []
    parts = [re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part) for part in given.split(",")]
    ranges = [range(int(part[1]), int(part[2] or part[1]) + 1) for part in parts if part]
    if len(ranges) < len(parts) or not all(ranges):
        raise InputError(f"layers is {given!r}; give 'all', or numbers and ranges, counted from 0, as in '0,16-31'.")
    return sorted({number for part in ranges for number in part})


def read(
    model: VisionLanguageModel, inputs: Mapping[str, Any], forced: Sequence[int] | None, layers: Sequence[Any],
    longest: int = 64,
) -> Reading:  # fmt: skip
    """Return the attention of an answer, without its thoughts, to the image tokens.

    Args:
        inputs: the prompt, one row of `model.encode`.
        forced: token ids of the answer; where None, the model's own greedy answer is read.
        layers: modules from `attending`.
        longest: longest answer of the model in tokens.

    Raises:
        InputError: a layer returns no attention weights, or the model cannot be forced to give the answer.
    """
    tokenizer, start = model.processor.tokenizer, inputs["input_ids"].shape[1]
    ends = end_tokens(model.model, tokenizer)
    choice: dict[str, Any] = {"suppress_tokens": suppressed_tokens(tokenizer, ends)}
    if forced is not None:
        choice = {"prefix_allowed_tokens_fn": lambda _, tokens: [forced[len(tokens) - start]]}
    columns = (inputs["input_ids"][0] == model.model.config.image_token_id).nonzero()[:, 0]
    with torch.inference_mode(), _recorded(layers, columns, start) as steps:
        output = model.model.generate(
            **inputs, **choice, do_sample=False, num_beams=1, repetition_penalty=1.0, cache_implementation="dynamic",
            max_new_tokens=longest if forced is None else len(forced), pad_token_id=tokenizer.pad_token_id,
            logits_processor=[NumbersOnly(model.called)],
        )  # fmt: skip
    said = output[0, start:].tolist()
    if forced is not None and said != list(forced):
        wanted = tokenizer.decode(forced)
        raise InputError(
            f"{model.name!r} cannot generate {wanted!r}: it contains a token that ends answers. Use --answer own."
        )
    if forced is not None:
        answer, places = Answer(tokenizer.decode(said, skip_special_tokens=True).strip()), range(len(said))
    else:
        prompt = inputs["input_ids"][0].tolist()
        answer = model.reader.read(prompt, said, longest)
        places = model.reader.places(prompt, said, answer)
    if not places:
        return Reading("", np.zeros(len(columns)), answer.failure)
    weights = torch.stack([torch.stack([layer[place] for place in places]) for layer in steps])
    return Reading(str(answer.said), weights.mean(dim=(0, 1)).double().cpu().numpy())


def answer_tokens(processor: Any, question: str, answer: str, images: int = 1) -> list[int]:
    """Return the token ids of `answer` after `question` about so many images in the chat template, without the end of
    the turn.

    Raises:
        InputError: the template changes the prompt or the answer.
    """
    asked = [{"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": question}]}]
    told = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template(asked + told, tokenize=False)
    before, there, _ = whole[len(prompt) :].partition(answer)
    if not whole.startswith(prompt) or not there:
        raise InputError(
            f"The chat template of {type(processor).__name__} writes the prompt differently once an answer follows, or "
            "changes the answer. Use the template that the model was trained with, or --answer own."
        )
    return list(processor.tokenizer(before + answer, add_special_tokens=False)["input_ids"])


@contextmanager
def _recorded(layers: Sequence[Any], columns: torch.Tensor, start: int) -> Iterator[list[list[torch.Tensor]]]:
    """Record, per layer and forward pass, the last token's weights of `columns`, averaged over heads."""
    steps: list[list[torch.Tensor]] = [[] for _ in layers]

    def keep(number: int) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if weights is None:
                raise InputError(f"{type(module).__name__} returns no attention weights. Use another model.")
            there = columns - (start + len(steps[number]) - weights.shape[-1])  # sliding windows drop the first keys
            row = weights[0, :, -1].float().mean(dim=0)
            steps[number].append(torch.where(there >= 0, row[there.clamp(min=0)], 0.0))

        return hook

    handles = [layer.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        yield steps
    finally:
        for handle in handles:
            handle.remove()
