"""Batches of preference pairs whose two sides may see different images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from mmedpo import schema
from mmedpo.data.images import UnusableImage, open_rgb
from mmedpo.errors import InputError
from mmedpo.models.vision_language import lacks_first_token
from mmedpo.training.reference import image_digest, row_key
from mmedpo.training.sharing import pack, padded

# `token_type_ids` of answer tokens, 0 in other families: PaliGemma's 0 is the prefix with bidirectional attention.
ANSWER_TYPES = {"PaliGemmaProcessor": 1}
TOKENS = ("input_ids", "token_type_ids", "mm_token_type_ids")  # types mark image tokens for Gemma and Qwen-VL

SIDES = ("images", "rejected_images")

Tokens = dict[str, list[int]]  # the model's keys of `TOKENS`, with a number per token of a prompt


@dataclass
class PreferenceCollator:
    """Collator that turns preference pairs into model inputs; `images.open_rgb` reads their images.

    The chosen side of each pair has a row, in the pairs' order; rows of rejected sides follow. With `share`, a rejected
    side with the same images has no row: its answer follows the chosen one (`sharing.pack`), and prompt and images are
    processed once.

    Args:
        processor: the model's own processor; its chat template renders prompt and answers.
        max_length: longest allowed prompt with one answer in tokens, or None.
        share: put both answers of a pair with equal images into one row.
        once: process each distinct list of images once, for `images.BatchImages`.
        keyed: name each pair for the cache of reference log-probabilities.

    Returns (for B pairs, in R rows, with U lists of images):
        the output of `sharing.pack` for the 2B answers, chosen sides first; `weight` (float32, B); `kind` (int64, B:
            index in `schema.DISPREFERENCES`, -1 if unknown); if `keyed`, `row_key` (int64, B x 2: `reference.row_key`);
            the processor's image inputs (`pixel_values`, ...), in the order of the rows or as `pictures` says; and the
            inputs of `images.BatchImages`.

    Raises:
        InputError: a pair has no usable weight or image, or is longer than `max_length`.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    share: bool = False
    once: bool = False
    keyed: bool = False

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        _refuse_weights(pairs)
        pairs = [_with_images(pair) for pair in pairs]
        count = len(pairs)
        apart = [i for i, pair in enumerate(pairs) if not self.share or pair.get("rejected_images")]
        owners = [[i] if i in apart else [i, count + i] for i in range(count)] + [[count + i] for i in apart]
        images = [pair["images"] for pair in pairs]
        images += [pairs[i].get("rejected_images") or pairs[i]["images"] for i in apart]
        texts = [self.texts(pair) for pair in pairs]
        said = [answers[side] for side in (0, 1) for _, *answers in texts]
        answers = self.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        prompts, pixels = self._read([texts[sides[0] % count][0] for sides in owners], images)
        self._refuse_long(pairs, prompts, owners, answers)
        return {
            **self._packed(prompts, owners, answers),
            **pixels,
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
            "kind": torch.tensor([kind_number(pair.get("dispreference")) for pair in pairs]),
            **({"row_key": torch.stack([row_key(pair) for pair in pairs])} if self.keyed else {}),
        }

    def texts(self, pair: dict[str, Any]) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected answer as the chat template renders them, answers with end-of-turn token.

        Only the number of `images` is used.
        """
        conversation = prepare_multimodal_messages(pair["prompt"], images=pair["images"])
        template = self.processor.apply_chat_template
        prompt = template(conversation, add_generation_prompt=True, tokenize=False)
        chosen = template(conversation + prepare_multimodal_messages(pair["chosen"]), tokenize=False)
        rejected = chosen
        if pair["rejected"] != pair["chosen"]:
            rejected = template(conversation + prepare_multimodal_messages(pair["rejected"]), tokenize=False)
        if not (chosen.startswith(prompt) and rejected.startswith(prompt)):
            raise InputError(
                f"The chat template of {type(self.processor).__name__} writes the prompt differently once an answer "
                "follows, so prompt and answer cannot be told apart. Use the template that the model was trained with."
            )
        return prompt, chosen[len(prompt) :], rejected[len(prompt) :]

    def _read(self, texts: list[str], images: list[list[Any]]) -> tuple[list[Tokens], dict[str, torch.Tensor]]:
        """Return token ids and types of each row's prompt, and the model inputs of its images."""
        digests = [tuple(map(image_digest, shown)) for shown in images] if self.once else list(range(len(images)))
        numbers: dict[Any, int] = {}
        pictures = [numbers.setdefault(digest, len(numbers)) for digest in digests]
        first = [pictures.index(number) for number in range(len(numbers))]
        tokens, pixels = self._processed([texts[row] for row in first], [images[row] for row in first])
        known = {(texts[row], pictures[row]): read for row, read in zip(first, tokens, strict=True)}
        others = {(texts[row], pictures[row]): row for row in range(len(texts))}
        others = {view: row for view, row in others.items() if view not in known}
        if others:  # other questions about an image of the batch
            more, _ = self._processed([texts[row] for row in others.values()], [images[row] for row in others.values()])
            known.update(zip(others, more, strict=True))
        if len(numbers) < len(texts):
            pixels["pictures"] = torch.tensor(pictures)
            if "image_grid_thw" in pixels:  # Qwen-VL computes positions from it, row by row
                grids = pixels["image_grid_thw"].split([len(images[row]) for row in first])
                pixels["picture_grid_thw"] = pixels["image_grid_thw"]
                pixels["image_grid_thw"] = torch.cat([grids[number] for number in pictures])
        return [known[view] for view in zip(texts, pictures, strict=True)], pixels

    def _processed(self, texts: list[str], images: list[list[Any]]) -> tuple[list[Tokens], dict[str, torch.Tensor]]:
        made = self.processor(
            text=texts,
            images=images,
            padding=True,  # removed below; PaliGemma's processor fails on rows of different length
            add_special_tokens=lacks_first_token(self.processor.tokenizer, texts[0]),
        )
        masks = made["attention_mask"]
        tokens = [
            {key: [v for v, there in zip(made[key][row], mask, strict=True) if there] for key in TOKENS if key in made}
            for row, mask in enumerate(masks)
        ]
        pixels = {
            key: value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
            for key, value in made.items()
            if key not in (*TOKENS, "attention_mask", "labels")  # PaliGemma adds labels
        }
        return tokens, pixels

    def _refuse_long(
        self, pairs: list[dict[str, Any]], prompts: list[Tokens], owners: list[list[int]], answers: list[list[int]]
    ) -> None:
        if self.max_length is None:
            return
        for prompt, sides in zip(prompts, owners, strict=True):
            for side in sides:
                length = len(prompt["input_ids"]) + len(answers[side])
                if length > self.max_length:
                    name = pairs[side % len(pairs)].get("id", "(no id)")
                    side_name = "chosen" if side < len(pairs) else "rejected"
                    raise InputError(
                        f"The {side_name} side of row {name} has {length} tokens (image tokens included), more than "
                        f"max_length {self.max_length}: cutting it would cut its image or its answer. Raise max_length "
                        "or leave it unset."
                    )

    def _packed(
        self, prompts: list[Tokens], owners: list[list[int]], answers: list[list[int]]
    ) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        batch = pack([prompt["input_ids"] for prompt in prompts], owners, answers, filler)
        answer_type = ANSWER_TYPES.get(type(self.processor).__name__, 0)
        lengths = batch["attention_mask"].sum(dim=1).tolist()
        for key in TOKENS[1:]:
            if key in prompts[0]:
                rows = [(prompt[key], length) for prompt, length in zip(prompts, lengths, strict=True)]
                batch[key] = padded([[*types, *[answer_type] * (length - len(types))] for types, length in rows])
        return batch


def _refuse_weights(pairs: list[dict[str, Any]]) -> None:
    if "weight" not in pairs[0]:
        raise InputError("The dataset has no `weight` column; MMedPO never falls back to plain DPO silently.")
    for pair in pairs:
        weight = pair["weight"]
        if weight is None or not 0 <= weight < math.inf:
            raise InputError(
                f"Row {pair.get('id', '(no id)')} has the weight {weight}; every row needs a finite one of 0 or more. "
                "Curate the dataset again, or drop the row."
            )


def _with_images(pair: dict[str, Any]) -> dict[str, Any]:
    """Return the pair with RGB images, the same pixels as in evaluation."""
    try:
        shown = {side: [open_rgb(image) for image in pair[side]] for side in SIDES if pair.get(side)}
    except UnusableImage as error:
        raise InputError(f"Row {pair.get('id', '(no id)')} cannot be used: {error.sentence}.") from error
    return {**pair, **shown}


def kind_number(dispreference: str | int | None) -> int:
    """Return a kind of pair (name or number) as an index in `schema.DISPREFERENCES`; -1 for others."""
    if isinstance(dispreference, str):
        return schema.DISPREFERENCES.index(dispreference) if dispreference in schema.DISPREFERENCES else -1
    return -1 if dispreference is None else dispreference
