"""Batches of preference pairs whose two sides may see different images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import pad

from mmedpo.errors import InputError


@dataclass
class PreferenceCollator:
    """Turns rows of the preference dataset into model inputs: the chosen sides first, then the rejected ones.

    Args:
        processor: the model's own processor; its chat template writes prompt and answers.
        max_length: longest allowed row in tokens, or None.

    Returns (for B pairs, L tokens in the longest row):
        `input_ids`, `attention_mask`, `completion_mask` (int64, 2B x L, right-padded), `weight` (float32, B),
        `is_visual` (bool, B: the pair's images differ), and whatever the processor makes of the images
        (`pixel_values`, ...), also chosen sides first.

    Raises:
        InputError: a row has no weight, or is longer than `max_length`.
    """

    processor: ProcessorMixin
    max_length: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if "weight" not in rows[0]:
            raise InputError("The dataset has no `weight` column; MMedPO never falls back to plain DPO silently.")
        images = [row["images"] for row in rows] + [row.get("rejected_images") or row["images"] for row in rows]
        sides = [(row, "chosen") for row in rows] + [(row, "rejected") for row in rows]
        texts = [self._texts(row, side) for row, side in sides]
        prompts = self.processor(
            text=[prompt for prompt, _ in texts],
            images=images,
            padding=False,
            add_special_tokens=False,  # the chat template has written them
        )
        answers = self.processor.tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
        self._refuse_long(rows, prompts["input_ids"], answers)
        return self._pad(rows, prompts, answers)

    def _texts(self, row: dict[str, Any], side: str) -> tuple[str, str]:
        """Prompt and answer as the model's template writes them; the answer keeps its end-of-turn token."""
        conversation = prepare_multimodal_messages(row["prompt"], images=row["images"])
        answer = prepare_multimodal_messages(row[side])
        template = self.processor.apply_chat_template
        prompt = template(conversation, add_generation_prompt=True, tokenize=False)
        whole = template(conversation + answer, tokenize=False)
        if not whole.startswith(prompt):
            raise InputError(
                f"The chat template of {type(self.processor).__name__} writes the prompt differently once an answer "
                "follows, so prompt and answer cannot be told apart. Use the template that the model was trained with."
            )
        return prompt, whole[len(prompt) :]

    def _refuse_long(self, rows: list[dict[str, Any]], prompts: list[list[int]], answers: list[list[int]]) -> None:
        lengths = [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True)]
        if self.max_length is not None and max(lengths) > self.max_length:
            raise InputError(
                f"A row has {max(lengths)} tokens (image tokens included), more than max_length {self.max_length}: "
                "cutting it would cut its image or its answer. Raise max_length or leave it unset."
            )

    def _pad(self, rows: list[dict[str, Any]], prompts: Any, answers: list[list[int]]) -> dict[str, torch.Tensor]:
        prompt_ids = prompts["input_ids"]
        tokenizer = self.processor.tokenizer

        def right_padded(values: list[list[int]], value: int) -> torch.Tensor:
            return pad([torch.tensor(row) for row in values], padding_value=value, padding_side="right")

        pairs = list(zip(prompt_ids, answers, strict=True))
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batch = {
            "input_ids": right_padded([prompt + answer for prompt, answer in pairs], filler),
            "attention_mask": right_padded([[1] * (len(prompt) + len(answer)) for prompt, answer in pairs], 0),
            "completion_mask": right_padded([[0] * len(prompt) + [1] * len(answer) for prompt, answer in pairs], 0),
            "weight": torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
            "is_visual": torch.tensor([row.get("rejected_images") is not None for row in rows]),
        }
        for key in ("token_type_ids", "mm_token_type_ids"):  # Gemma and Qwen-VL mark image tokens
            if key in prompts:
                marked = [list(kinds) + [0] * len(answer) for kinds, answer in zip(prompts[key], answers, strict=True)]
                batch[key] = right_padded(marked, 0)
        for key, value in prompts.items():
            if key not in batch:
                batch[key] = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        return batch
