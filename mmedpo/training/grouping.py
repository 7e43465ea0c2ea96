"""Order of the pairs: by kind and length, so that little is padding, or by image, so that much is shared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from mmedpo.data.images import file_digest
from mmedpo.schema import message_text
from mmedpo.training.collator import kind_number

TEXTS = ("prompt", "chosen", "rejected")
ROWS_AT_ONCE = 1000
AHEAD = 32  # groups of pairs searched for one that fits


def lengths_and_kinds(pairs: Dataset, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of each pair's texts, and its kind as a number (`collator.kind_number`).

    Image tokens are left out: many families have the same number for all images, others know it only after processing.
    """
    columns = [*TEXTS, *({"dispreference"} & set(pairs.column_names))]
    lengths: list[int] = []
    kinds: list[int] = []
    for rows in pairs.select_columns(columns).iter(batch_size=ROWS_AT_ONCE):
        texts = zip(*(map(message_text, rows[column]) for column in TEXTS), strict=True)
        tokens = tokenizer(["\n".join(pair) for pair in texts], add_special_tokens=False)["input_ids"]
        lengths += map(len, tokens)
        kinds += map(kind_number, rows.get("dispreference", [None] * len(tokens)))
    return lengths, kinds


class GroupedSampler(Sampler[int]):
    """Sampler of batches of one kind and about one length, in a new order each epoch.

    The order depends on seed and epoch only; transformers' grouping uses the global random state, which a resumed run
    has lost. Batches are shuffled, but the one with the longest row comes first, so that a lack of memory shows at
    once.

    Args:
        lengths, kinds: of each row.
        batch_size: of all processes together, accumulated batches included.
    """

    def __init__(self, lengths: Sequence[int], kinds: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.kinds, self.batch_size, self.seed, self.epoch = lengths, kinds, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by accelerate's data loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        apart = max(self.lengths) + 1  # keeps kinds together in the order of lengths
        numbers = [length + apart * kind for length, kind in zip(self.lengths, self.kinds, strict=True)]
        grouped = get_length_grouped_indices(numbers, self.batch_size, generator=generator)
        batches = [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        last = batches.pop() if len(batches[-1]) < self.batch_size else []  # a partial batch stays at the end
        order = torch.randperm(len(batches), generator=generator).tolist()
        longest = max(order, key=lambda i: max(self.lengths[row] for row in batches[i]), default=None)
        for i in sorted(order, key=lambda i: i != longest):
            yield from batches[i]
        yield from last


def images_and_questions(pairs: Dataset) -> tuple[list[Hashable], list[Hashable]]:
    """Return what names the images of each pair, and what names its question about them.

    Where a share of a mixture repeats pairs, their images count as others, so that a step is not filled with copies.
    """
    images: list[Hashable] = []
    questions: list[Hashable] = []
    copies: Counter[str] = Counter()
    for pair in pairs.select_columns(["images", "prompt", *({"id"} & set(pairs.column_names))]):
        name = pair.get("id") or str(len(images))
        images.append((*map(file_digest, pair["images"]), copies[name]))
        copies[name] += 1
        questions.append(message_text(pair["prompt"]))
    return images, questions


class ImageSampler(Sampler[int]):
    """Sampler of steps about few images, at most `most` pairs an image, in a new order each epoch.

    The pairs of a step depend on `step`, seed and epoch only; their order in it, on `batch` too, so that each batch is
    about few images. Pairs of one question stay together where they can.

    Args:
        images, questions: of each pair (`images_and_questions`).
        batch: pairs of one forward pass of one process.
        step: pairs of a step of all processes together, accumulated batches included.
        most: pairs an image in a step.
    """

    def __init__(
        self, images: Sequence[Hashable], questions: Sequence[Hashable], batch: int, step: int, most: int, seed: int
    ) -> None:
        self.batch, self.step, self.most, self.seed, self.epoch = batch, step, most, seed, 0
        self.count = len(images)
        self.groups: dict[Hashable, dict[Hashable, list[int]]] = {}  # pairs by image and question
        for pair, (image, question) in enumerate(zip(images, questions, strict=True)):
            self.groups.setdefault(image, {}).setdefault(question, []).append(pair)

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by accelerate's data loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)

        def shuffled(items: Sequence[Any]) -> list[Any]:
            return [items[i] for i in torch.randperm(len(items), generator=generator).tolist()]

        chunks = []
        for questions in self.groups.values():
            pairs = [pair for question in shuffled([*questions.values()]) for pair in question]
            parts = math.ceil(len(pairs) / self.most)
            chunks += [pairs[len(pairs) * i // parts : len(pairs) * (i + 1) // parts] for i in range(parts)]
        steps = filled(shuffled(chunks), self.step)
        last = steps.pop() if steps and sum(map(len, steps[-1])) < self.step else []  # a partial step stays at the end
        for own in [*shuffled(steps), last]:
            for held in filled(sorted(own, key=len, reverse=True), self.batch):
                yield from (pair for chunk in held for pair in chunk)


def filled(chunks: Iterable[list[int]], size: int) -> list[list[list[int]]]:
    """Return groups of chunks with `size` pairs each, but the last; a chunk is cut only where none of the next fits."""
    waiting = list(chunks)[::-1]
    groups: list[list[list[int]]] = []
    while waiting:
        held: list[list[int]] = []
        room = size
        while room and waiting:
            next_ones = range(len(waiting) - 1, max(len(waiting) - 1 - AHEAD, -1), -1)
            fitting = next((i for i in next_ones if len(waiting[i]) <= room), None)
            if fitting is None:
                waiting[-1], chunk = waiting[-1][room:], waiting[-1][:room]
            else:
                chunk = waiting.pop(fitting)
            held.append(chunk)
            room -= len(chunk)
        groups.append(held)
    return groups
