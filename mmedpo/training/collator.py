"""Batches of preference pairs whose two sides may see different images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from mmedpo import schema
from mmedpo.data.images import UnusableImage, open_rgb
from mmedpo.errors import InputError
from mmedpo.models import answers
from mmedpo.training.reference import image_digest, row_key

SIDES = ("images", "rejected_images")


@dataclass
class PreferenceCollator:
    """Collator that turns preference pairs into model inputs; `data.images.open_rgb` reads their images.

    The chosen side of each pair has a row, in the pairs' order; rows of rejected sides follow. With `share`, a rejected
    side with the same images has no row: its answer follows the chosen one (`answers.pack`), and prompt and images are
    processed once.

    Args:
        processor: the model's own processor; its chat template renders prompt and answers.
        max_length: longest allowed prompt with one answer in tokens, or None.
        share: put both answers of a pair with equal images into one row.
        once: process each distinct list of images once, for `sharing.BatchImages`.
        keyed: name each pair for the cache of reference log-probabilities.

    Returns (for B pairs, in R rows, with U lists of images):
        the output of `answers.pack` for the 2B answers, chosen sides first; `weight` (float32, B); `kind` (int64, B:
            index in `schema.DISPREFERENCES`, -1 if unknown); if `keyed`, `row_key` (int64, B x 2: `reference.row_key`);
            the processor's image inputs (`pixel_values`, ...), in the order of the rows or as `pictures` says; and the
            inputs of `sharing.BatchImages`.

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
        ids = answers.token_ids(self.processor, [text[side] for side in (1, 2) for text in texts])
        prompts, pixels = self._read([texts[sides[0] % count][0] for sides in owners], images)
        self._refuse_long(pairs, prompts, owners, ids)
        return {
            **answers.batch(self.processor, prompts, owners, ids),
            **pixels,
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
            "kind": torch.tensor([kind_number(pair.get("dispreference")) for pair in pairs]),
            **({"row_key": torch.stack([row_key(pair) for pair in pairs])} if self.keyed else {}),
        }

    def texts(self, pair: dict[str, Any]) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected answer as `answers.rendered`; only the number of `images` is used."""
        sides = [pair["chosen"]] if pair["rejected"] == pair["chosen"] else [pair["chosen"], pair["rejected"]]
        prompt, written = answers.rendered(self.processor, pair["prompt"], len(pair["images"]), sides)
        return prompt, written[0], written[-1]

    def _read(self, texts: list[str], images: list[list[Any]]) -> tuple[list[answers.Tokens], dict[str, torch.Tensor]]:
        """Return token ids and types of each row's prompt, and the model inputs of its images."""
        digests = [tuple(map(image_digest, shown)) for shown in images] if self.once else list(range(len(images)))
        numbers: dict[Any, int] = {}
        pictures = [numbers.setdefault(digest, len(numbers)) for digest in digests]
        first = [pictures.index(number) for number in range(len(numbers))]
        tokens, pixels = answers.read_prompts(
            self.processor, [texts[row] for row in first], [images[row] for row in first]
        )
        known = {(texts[row], pictures[row]): read for row, read in zip(first, tokens, strict=True)}
        others = {(texts[row], pictures[row]): row for row in range(len(texts))}
        others = {view: row for view, row in others.items() if view not in known}
        if others:  # other questions about an image of the batch
            more, _ = answers.read_prompts(
                self.processor, [texts[row] for row in others.values()], [images[row] for row in others.values()]
            )
            known.update(zip(others, more, strict=True))
        if len(numbers) < len(texts):
            pixels["pictures"] = torch.tensor(pictures)
            if "image_grid_thw" in pixels:  # Qwen-VL computes positions from it, row by row
                grids = pixels["image_grid_thw"].split([len(images[row]) for row in first])
                pixels["picture_grid_thw"] = pixels["image_grid_thw"]
                pixels["image_grid_thw"] = torch.cat([grids[number] for number in pictures])
        return [known[view] for view in zip(texts, pictures, strict=True)], pixels

    def _refuse_long(
        self, pairs: list[dict[str, Any]], prompts: list[answers.Tokens], owners: list[list[int]], ids: list[list[int]]
    ) -> None:
        if self.max_length is None:
            return
        for prompt, sides in zip(prompts, owners, strict=True):
            for side in sides:
                length = len(prompt["input_ids"]) + len(ids[side])
                if length > self.max_length:
                    name = pairs[side % len(pairs)].get("id", "(no id)")
                    side_name = "chosen" if side < len(pairs) else "rejected"
                    raise InputError(
                        f"The {side_name} side of row {name} has {length} tokens (image tokens included), more than "
                        f"max_length {self.max_length}: cutting it would cut its image or its answer. Raise max_length "
                        "or leave it unset."
                    )


def _refuse_weights(pairs: list[dict[str, Any]]) -> None:
    if "weight" not in pairs[0]:
        raise InputError(
            "The dataset has no `weight` column. Curate it with `mmedpo curate`, or set weighted to false for plain "
            "DPO."
        )
    for pair in pairs:
        weight = pair["weight"]
        if weight is None or not 0 <= weight < math.inf:
            raise InputError(
                f"Row {pair.get('id', '(no id)')} has the weight {weight}; it must be a finite number of at least 0. "
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
