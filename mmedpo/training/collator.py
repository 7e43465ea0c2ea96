"""Batches of preference pairs whose two sides may see different images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.models import lacks_first_token
from mmedpo.training.reference import row_key
from mmedpo.training.sharing import pack, padded

# An answer token's `token_type_ids`, 0 in other families: PaliGemma's 0 is the prefix, seen in both directions.
ANSWER_TYPES = {"PaliGemmaProcessor": 1}
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # how Gemma and Qwen-VL mark image tokens


@dataclass
class PreferenceCollator:
    """Turns pairs of the preference dataset into model inputs.

    The chosen side of each pair has a row of its own, in the pairs' order; rows of rejected sides follow. With `share`,
    a rejected side that sees the same images gets no row: its answer follows the chosen one's (`sharing.pack`), and
    prompt and images are processed once.

    Args:
        processor: the model's own processor; its chat template writes prompt and answers.
        max_length: longest allowed prompt with one answer in tokens, or None.
        share: put both answers of a pair with equal images into one row.
        keyed: name each pair for the cache of reference log-probabilities.

    Returns (for B pairs):
        what `sharing.pack` returns for the 2B answers, chosen sides first; `weight` (float32, B); `kind` (int64, B:
        place in `schema.DISPREFERENCES`, -1 where the dataset does not say); where `keyed`, `row_key` (int64, B x 2:
        `reference.row_key`); and whatever the processor makes of the
        images (`pixel_values`, ...), in the order of the rows.

    Raises:
        InputError: a pair has no weight, or is longer than `max_length`.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    share: bool = False
    keyed: bool = False

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "weight" not in pairs[0]:
            raise InputError("The dataset has no `weight` column; MMedPO never falls back to plain DPO silently.")
        count = len(pairs)
        apart = [i for i, pair in enumerate(pairs) if not self.share or pair.get("rejected_images")]
        owners = [[i] if i in apart else [i, count + i] for i in range(count)] + [[count + i] for i in apart]
        images = [pair["images"] for pair in pairs]
        images += [pairs[i].get("rejected_images") or pairs[i]["images"] for i in apart]
        texts = [self.texts(pair, side) for side in ("chosen", "rejected") for pair in pairs]
        prompts = self.processor(
            text=[texts[sides[0]][0] for sides in owners],
            images=images,
            padding=True,  # and taken off again: PaliGemma's processor fails on rows of different length
            add_special_tokens=lacks_first_token(self.processor.tokenizer, texts[0][0]),
        )
        answers = self.processor.tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
        for key in {"input_ids", *TOKEN_TYPES} & prompts.keys():
            prompts[key] = [
                [value for value, there in zip(row, mask, strict=True) if there]
                for row, mask in zip(prompts[key], prompts["attention_mask"], strict=True)
            ]
        self._refuse_long(prompts["input_ids"], owners, answers)
        return {
            **self._inputs(prompts, owners, answers),
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
            "kind": torch.tensor([_kind(pair.get("dispreference")) for pair in pairs]),
            **({"row_key": torch.stack([row_key(pair) for pair in pairs])} if self.keyed else {}),
        }

    def texts(self, pair: dict[str, Any], side: str) -> tuple[str, str]:
        """Prompt and answer as the model's template writes them; the answer keeps its end-of-turn token."""
        conversation = prepare_multimodal_messages(pair["prompt"], images=pair["images"])
        answer = prepare_multimodal_messages(pair[side])
        template = self.processor.apply_chat_template
        prompt = template(conversation, add_generation_prompt=True, tokenize=False)
        whole = template(conversation + answer, tokenize=False)
        if not whole.startswith(prompt):
            raise InputError(
                f"The chat template of {type(self.processor).__name__} writes the prompt differently once an answer "
                "follows, so prompt and answer cannot be told apart. Use the template that the model was trained with."
            )
        return prompt, whole[len(prompt) :]

    def _refuse_long(self, prompts: list[list[int]], owners: list[list[int]], answers: list[list[int]]) -> None:
        longest = max(len(prompts[row]) + len(answers[side]) for row, sides in enumerate(owners) for side in sides)
        if self.max_length is not None and longest > self.max_length:
            raise InputError(
                f"A row has {longest} tokens (image tokens included), more than max_length {self.max_length}: "
                "cutting it would cut its image or its answer. Raise max_length or leave it unset."
            )

    def _inputs(self, prompts: Any, owners: list[list[int]], answers: list[list[int]]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batch = pack(prompts["input_ids"], owners, answers, filler)
        answer_type = ANSWER_TYPES.get(type(self.processor).__name__, 0)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for key in TOKEN_TYPES:
            if key in prompts:
                rows = zip(prompts[key], lengths, strict=True)
                batch[key] = padded([[*types, *[answer_type] * (length - len(types))] for types, length in rows])
        for key, value in prompts.items():
            if key not in batch and key != "labels":  # PaliGemma's
                batch[key] = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        return batch


def _kind(dispreference: str | int | None) -> int:
    """A dataset's kind of pair, by name or number, as a place in `schema.DISPREFERENCES`; -1 for others."""
    if isinstance(dispreference, str):
        return schema.DISPREFERENCES.index(dispreference) if dispreference in schema.DISPREFERENCES else -1
    return -1 if dispreference is None else dispreference
