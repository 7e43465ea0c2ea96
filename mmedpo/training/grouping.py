"""Batches of pairs of one kind and of about the same length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from mmedpo.schema import message_text
from mmedpo.training.collator import kind_number

TEXTS = ("prompt", "chosen", "rejected")
ROWS_AT_ONCE = 1000


def lengths_and_kinds(pairs: Dataset, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokens of each pair's texts, and its kind as a number (`collator.kind_number`).

    Image tokens are left out: they are the same for all images in many families, and known only once an image is
    processed in the others.
    """
    columns = [*TEXTS, *({"dispreference"} & set(pairs.column_names))]
    lengths: list[int] = []
    kinds: list[int] = []
    for table in pairs.select_columns(columns).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        rows = table.to_pydict()
        texts = zip(*(map(message_text, rows[column]) for column in TEXTS), strict=True)
        tokens = tokenizer(["\n".join(pair) for pair in texts], add_special_tokens=False)["input_ids"]
        lengths += map(len, tokens)
        kinds += map(kind_number, rows.get("dispreference", [None] * len(tokens)))
    return lengths, kinds


class GroupedSampler(Sampler[int]):
    """Indices whose consecutive `batch_size` are of one kind and about the same length, in an order anew each epoch.

    transformers' own grouping draws from the global state of chance, which a resumed run has lost: here the order
    depends on seed and epoch alone. Its batches go from long to short; here they are shuffled, but the one with the
    longest row comes first, so that what does not fit into memory fails at once.

    Args:
        lengths, kinds: of each row.
        batch_size: of all processes together, accumulated batches included.
    """

    def __init__(self, lengths: Sequence[int], kinds: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.kinds, self.batch_size, self.seed, self.epoch = lengths, kinds, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch)
        apart = max(self.lengths) + 1  # sorted by these numbers, kinds lie together
        numbers = [length + apart * kind for length, kind in zip(self.lengths, self.kinds, strict=True)]
        grouped = get_length_grouped_indices(numbers, self.batch_size, generator=chance)
        batches = [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        last = batches.pop() if len(batches[-1]) < self.batch_size else []  # one that is not full stays at the end
        order = torch.randperm(len(batches), generator=chance).tolist()
        longest = max(order, key=lambda i: max(self.lengths[row] for row in batches[i]), default=None)
        for i in sorted(order, key=lambda i: i != longest):
            yield from batches[i]
        yield from last
