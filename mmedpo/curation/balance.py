"""Visual pairs in balance: as many for yes as for no, and noise that is no sign of an answer.

Where a lesion was noised, most gold answers are "yes": visual pairs alone then teach to say yes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from mmedpo import schema
from mmedpo.curation.localize import Region, read_regions, region_of
from mmedpo.curation.noise import generator
from mmedpo.curation.rows import TEXT_PAIR, Pair, Reject
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.data.text import polarity, unit_interval

COMMONER = "its answer prevails among visual pairs (--balance answer)"
NO_LESION = "the image has no lesion whose size noise on a healthy place could have"
NO_PLACE = "the image has no healthy place of the lesion's size"
HEALTHY = "healthy"  # label of the box of noise on a healthy place
TRIES = 100  # places drawn for it

Placed = tuple[Pair, int]  # a pair and the block of its sample


def preferred(pair: Pair) -> str | None:
    """Return "yes" or "no", as the preferred side of a visual pair about a closed question says; else None."""
    if pair.dispreference == TEXT_PAIR or pair.sample.task != "closed_vqa":
        return None
    gold = polarity(pair.sample.answer)
    return {"yes": "no", "no": "yes"}.get(str(gold)) if pair.dispreference in schema.REVERSED else gold


def thin(pairs: Sequence[Placed], seed: int) -> Iterator[tuple[Placed | None, Reject | None]]:
    """Yield the pairs, but of visual pairs about yes/no questions as many for yes as for no.

    Of the commoner answer those stay whose row ids come first in an order that the seed draws. It does not depend on
    other rows, so that a few more questions change few pairs.
    """
    sides = {side: [pair for pair, _ in pairs if preferred(pair) == side] for side in ("yes", "no")}
    count = min(map(len, sides.values()))
    kept = {
        id
        for side in sides.values()
        for id in sorted((pair.id for pair in side), key=lambda id: unit_interval(seed, "balance", id))[:count]
    }
    for pair, block in pairs:
        if preferred(pair) is None or pair.id in kept:
            yield (pair, block), None
        else:
            said = f"{preferred(pair)} is preferred"
            yield None, Reject(pair.sample.id, pair.dispreference, COMMONER, said, pair.sample.task, "locate")


def with_controls(
    pairs: Sequence[Placed], located: Mapping[str, Mapping[str, Any]], seed: int
) -> Iterator[tuple[Placed | None, Reject | None]]:
    """Yield the pairs, those about an image side by side, and after each text pair its control.

    The control has the same texts, and on both sides the image with noise on a healthy place (`healthy_place`).

    Args:
        located: records of regions by sample id, also of samples without a pair.
    """
    for _, about in groupby(pairs, key=lambda pair: pair[0].sample.image_digest):
        group = list(about)
        ids = dict.fromkeys(pair.sample.id for pair, _ in group)
        sample = group[0][0].sample
        found = [read_regions(located[id], len(sample.images)) for id in ids if id in located]
        number, place = _healthy_image(sample, found, seed)
        for pair, block in group:
            yield (pair, block), None
            if pair.dispreference != TEXT_PAIR:
                continue
            if isinstance(place, str):
                yield None, Reject(pair.sample.id, TEXT_PAIR, place, "", pair.sample.task, "locate")
            else:
                yield (replace(pair, healthy=place, healthy_image=number), block), None


def _healthy_image(sample: Sample, located: Sequence[Sequence[Region]], seed: int) -> tuple[int, Region | str]:
    """Return the first image with a healthy place, and that, or why the first image has none.

    `located` has the regions of the images for each question about them.
    """
    first: Region | str = NO_LESION
    for number, one in enumerate(sample.each()):
        place = healthy_place(one, [own[number] for own in located if not own[number].reason], seed)
        if isinstance(place, Region):
            return number, place
        first = place if number == 0 else first
    return 0, first


def healthy_place(sample: Sample, regions: Sequence[Region], seed: int) -> Region | str:
    """Return the shape of one of an image's lesions at a place that touches none of them, or why there is none.

    The lesion is drawn by seed and image. Its place is its mirror image (left for right), or else drawn among all
    shifts that keep it inside the image.
    """
    if not regions:
        return NO_LESION
    height, width = images.pixels(sample.images[0].file).shape[:2]
    masks = [region.pixels(height, width) for region in regions]
    lesions, rng = np.logical_or.reduce(masks), generator(seed, f"healthy/{sample.image_digest}")
    shape = masks[rng.integers(len(masks))]
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    cut = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    down, across = height - cut.shape[0] + 1, width - cut.shape[1] + 1
    mirrored = rows[0], width - 1 - columns[-1]
    drawn = [mirrored, *((rng.integers(down), rng.integers(across)) for _ in range(TRIES))]
    for number, (top, left) in enumerate(drawn):
        moved = np.zeros_like(shape)
        moved[top : top + cut.shape[0], left : left + cut.shape[1]] = cut if number else cut[:, ::-1]
        if not (moved & lesions).any():
            return region_of(moved, HEALTHY, 1.0)
    return NO_PLACE
