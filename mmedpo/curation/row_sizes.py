"""Estimated bytes of the images of rows, by which they are cut into files before any image is noised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import groupby
from typing import Any

from mmedpo import schema
from mmedpo.curation.noise import Noise
from mmedpo.curation.rows import Noiser, Pair
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.data.text import unit_interval
from mmedpo.errors import InputError

MEASURED = 8  # images of each kind of file that are noised to know how large the others become


def row_sizes(
    pairs: Sequence[Pair], located: Mapping[str, Any], noise: Noise | None, seed: int
) -> Iterator[tuple[str, int]]:
    """Yield each row's id and the estimated bytes of the images that are stored for it, for `shards.cut`.

    An image, and its noised one, takes the bytes of its file times a ratio. It is measured for each file suffix on
    `MEASURED` images, chosen by their digests: another row changes no estimate unless it brings one of them.

    Args:
        pairs: those about an image side by side.
        located: records of regions by sample id.

    Raises:
        InputError: a file cannot be read, or is no usable image.
    """
    plain, noised = _ratios(pairs, lambda pair: images.embedded(pair.sample.images[0].file)), dict[str, float]()
    if noise is not None:
        noiser = Noiser(noise, seed)
        visual = (pair for pair in pairs if pair.is_noised)
        noised = _ratios(visual, lambda pair: noiser(pair.sample, pair.region(located))[0])
    for (_, kind), about in groupby(pairs, _image):
        stored: set[Any] = set()
        for place, pair in enumerate(about):
            if place == 0:
                bytes = _file_bytes(pair.sample)
            if place % schema.ROWS_AT_ONCE == 0:  # in another row group the image is stored again
                stored.clear()
            new = _shown(pair, located, noise) - stored
            stored |= new
            ratio = sum(plain[kind] if image is None else noised[kind] for image in new)
            yield pair.id, round(ratio * bytes)


def _image(pair: Pair) -> tuple[str, str]:
    return pair.sample.image_digest, pair.sample.images[0].file.suffix.lower()


def _shown(pair: Pair, located: Mapping[str, Any], noise: Noise | None) -> set[Any]:
    """Return a row's images: None for the source's own, for a noised one what it is made of."""
    if noise is None or not pair.is_noised:
        return {None}
    made: Any = pair.id
    if noise.per == "image":
        made = noise.whole or pair.region(located).area
    return {made} if pair.healthy or pair.dispreference in schema.REVERSED else {None, made}


def _ratios(pairs: Iterable[Pair], store: Callable[[Pair], dict[str, Any]]) -> dict[str, float]:
    """Return by file suffix the bytes that `store` gives for images over those of their files."""
    kinds: dict[str, list[Pair]] = {}
    for (_, kind), about in groupby(pairs, _image):
        kinds.setdefault(kind, []).append(next(about))
    ratios = {}
    for kind, first in kinds.items():
        chosen = nsmallest(MEASURED, first, key=lambda pair: unit_interval("size", pair.sample.image_digest))
        ratios[kind] = sum(len(store(pair)["bytes"]) for pair in chosen) / sum(
            _file_bytes(one.sample) for one in chosen
        )
    return ratios


def _file_bytes(sample: Sample) -> int:
    try:
        return sample.images[0].file.stat().st_size
    except OSError as error:
        raise InputError(
            f"{sample.images[0].file}: {error.strerror}. Restore the image, then run again with --resume."
        ) from None
