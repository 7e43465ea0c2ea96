"""Batches of pairs of one kind and of about the same length, so that little of them is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from mmedpo.schema import message_text

TEXTS = ("prompt", "chosen", "rejected")
ROWS_AT_ONCE = 1000


def lengths_by_kind(pairs: Dataset, tokenizer: Any) -> list[int]:
    """A number for each pair, such that those of one kind lie together, by the tokens of their texts.

    Image tokens are left out: they are the same for all images in many families, and known only once an image is
    processed in the others.
    """
    columns = [*TEXTS, *({"dispreference"} & set(pairs.column_names))]
    lengths: list[int] = []
    kinds: list[int] = []
    for rows in pairs.select_columns(columns).iter(batch_size=ROWS_AT_ONCE):
        texts = zip(*(map(message_text, rows[column]) for column in TEXTS), strict=True)
        tokens = tokenizer(["\n".join(pair) for pair in texts], add_special_tokens=False)["input_ids"]
        lengths += map(len, tokens)
        kinds += rows.get("dispreference", [0] * len(tokens))
    step = max(lengths, default=0) + 1
    return [length + step * (kind or 0) for length, kind in zip(lengths, kinds, strict=True)]


class GroupedSampler(Sampler[int]):
    """Indices whose consecutive `batch_size` have about the same length, in an order drawn anew for each epoch.

    transformers' own grouping draws from the global state of chance, which a resumed run has lost: here the order
    depends on seed and epoch alone. Its batches go from long to short; here they are shuffled, the first one excepted,
    which holds the longest row, so that what does not fit into memory fails at once.

    Args:
        lengths: of each row.
        batch_size: of all processes together, accumulated batches included.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = list(lengths), batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self.seed + self.epoch)
        grouped = get_length_grouped_indices(self.lengths, self.batch_size, generator=chance)
        batches = [grouped[i : i + self.batch_size] for i in range(0, len(grouped), self.batch_size)]
        first, *others = batches
        # A batch that is not full stays at the end.
        last = [others.pop()] if others and len(others[-1]) < self.batch_size else []
        order = torch.randperm(len(others), generator=chance).tolist()
        for batch in [first, *(others[i] for i in order), *last]:
            yield from batch
