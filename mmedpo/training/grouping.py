"""Batches of pairs of one kind and about one length, so that little of them is padding."""

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
    """Return the tokens of each pair's texts, and its kind as a number (`collator.kind_number`).

    Image tokens are left out: many families have the same number for all images, others know it only after processing.
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
