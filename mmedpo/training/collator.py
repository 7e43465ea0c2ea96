"""Batches of preference pairs: sides that begin alike share a row, and each distinct image is processed once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from mmedpo import schema
from mmedpo.data.images import UnusableImage, digest, open_rgb
from mmedpo.errors import InputError
from mmedpo.models import answers
from mmedpo.models.prompts import Share, numbered, read_once, trunks
from mmedpo.training.reference import side_key

SIDES = ("images", "rejected_images")


@dataclass
class PreferenceCollator:
    """Collator that turns preference pairs into model inputs; `data.images.open_rgb` reads their images.

    Without `share` each side of a pair has a row. With `share` sides that begin alike are a row (`answers.pack`): those
    about the same images, or, in models whose prompt tokens see the whole prompt, those with the same prompt. Rows too
    long for the others are split (`answers.split`), with `once`.

    Args:
        processor: the model's own processor; its chat template renders prompt and answers.
        max_length: longest allowed prompt with one answer in tokens, or None.
        share: what the sides of a row have in common: "images", "prompt", or "" for a row a side.
        once: process each distinct list of images once, for `sharing.BatchImages`.

    Returns (for B pairs, in R rows, with U lists of images):
        the output of `answers.pack` for the 2B sides, chosen sides first; `weight` (float32, B); `kind` (int64, B:
            index in `schema.DISPREFERENCES`, -1 if unknown); `side_keys` (2B texts: `reference.side_key`); the
            processor's image inputs (`pixel_values`, ...), in the order of the rows or as `pictures` says; and the
            inputs of `sharing.BatchImages`.

    Raises:
        InputError: a pair has no usable weight or image, or is longer than `max_length`.
    """

    processor: ProcessorMixin
    max_length: int | None = None
    share: Share = ""
    once: bool = False

    def __call__(self, pairs: list[dict[str, Any]]) -> dict[str, Any]:
        _refuse_weights(pairs)
        pairs = _with_images(pairs)
        texts = [self.texts(pair) for pair in pairs]
        ids = answers.token_ids(self.processor, [text[side] for side in (1, 2) for text in texts])
        images = [pair["images"] for pair in pairs]
        images += [pair.get("rejected_images") or pair["images"] for pair in pairs]
        names = {id(image): digest(image) for one in images for image in one}
        shown = [tuple(names[id(image)] for image in one) for one in images]
        rows, prompts, pixels = self._read([text[0] for text in texts] * 2, ids, images, shown)
        self._refuse_long(pairs, prompts, ids)
        return {
            **answers.batch(self.processor, rows, prompts, ids),
            **pixels,
            "weight": torch.tensor([pair["weight"] for pair in pairs], dtype=torch.float32),
            "kind": torch.tensor([kind_number(pair.get("dispreference")) for pair in pairs]),
            "side_keys": [
                side_key(prompt["input_ids"], answer, one)
                for prompt, answer, one in zip(prompts, ids, shown, strict=True)
            ],
        }

    def texts(self, pair: dict[str, Any]) -> tuple[str, str, str]:
        """Return prompt, chosen and rejected answer as `answers.rendered`; only the number of `images` is used."""
        sides = [pair["chosen"]] if pair["rejected"] == pair["chosen"] else [pair["chosen"], pair["rejected"]]
        prompt, written = answers.rendered(self.processor, pair["prompt"], len(pair["images"]), sides)
        return prompt, written[0], written[-1]

    def _read(
        self, texts: list[str], ids: list[list[int]], images: list[list[Any]], shown: Sequence[Hashable]
    ) -> tuple[list[int], list[answers.Tokens], dict[str, torch.Tensor]]:
        """Return the row and the prompt's tokens of each side, and the model inputs of the rows' images.

        `shown` names the images of each side.
        """
        rows = numbered(trunks(self.processor, texts, shown, self.share))
        lists = numbered(shown) if self.once else rows
        tokens, pixels = read_once(self.processor, texts, images, lists)
        if self.once:  # or else each row has its own images
            rows = answers.split(rows, tokens, ids)
        pictures = [lists[rows.index(number)] for number in range(max(rows) + 1)]
        if pictures != [*range(max(lists) + 1)]:
            pixels["pictures"] = torch.tensor(pictures)
            if "image_grid_thw" in pixels:  # Qwen-VL computes positions from it, row by row
                grids = pixels["image_grid_thw"].split([len(images[lists.index(i)]) for i in range(max(lists) + 1)])
                pixels["picture_grid_thw"] = pixels["image_grid_thw"]
                pixels["image_grid_thw"] = torch.cat([grids[number] for number in pictures])
        return rows, tokens, pixels

    def _refuse_long(self, pairs: list[dict[str, Any]], prompts: list[answers.Tokens], ids: list[list[int]]) -> None:
        for side, (prompt, answer) in enumerate(zip(prompts, ids, strict=True)):
            length = len(prompt["input_ids"]) + len(answer)
            if self.max_length is not None and length > self.max_length:
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


def _with_images(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the pairs with RGB images, the same pixels as in evaluation; each file is decoded once."""
    opened: dict[Any, Any] = {}

    def rgb(image: Any) -> Any:
        key = (image["bytes"], image["path"]) if isinstance(image, Mapping) else id(image)
        if key not in opened:
            opened[key] = open_rgb(image)
        return opened[key]

    found = []
    for pair in pairs:
        try:
            found.append({**pair, **{side: [*map(rgb, pair[side])] for side in SIDES if pair.get(side)}})
        except UnusableImage as error:
            raise InputError(f"Row {pair.get('id', '(no id)')} cannot be used: {error.sentence}.") from error
    return found


def kind_number(dispreference: str | int | None) -> int:
    """Return a kind of pair (name or number) as an index in `schema.DISPREFERENCES`; -1 for others."""
    if isinstance(dispreference, str):
        return schema.DISPREFERENCES.index(dispreference) if dispreference in schema.DISPREFERENCES else -1
    return -1 if dispreference is None else dispreference
