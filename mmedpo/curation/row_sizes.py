"""Estimated bytes of the images of rows, by which they are cut into files before any image is noised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import groupby
from typing import Any

from mmedpo import schema
from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise
from mmedpo.curation.noiser import Noiser
from mmedpo.curation.rows import Pair
from mmedpo.data import images
from mmedpo.data.samples import SampleImage
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
    whole = [(image, None) for pair in pairs for image in pair.sample.images]
    plain, noised = _ratios(whole, lambda image, _: images.embedded(image.file)), dict[str, float]()
    if noise is not None:
        noiser = Noiser(noise, seed)
        visual = (
            (pair.sample.images[place], (pair.sample, region, place))
            for pair in pairs if pair.is_noised for place, region in _noised(pair, located, noise)
        )  # fmt: skip
        noised = _ratios(visual, lambda _, made: noiser(*made)[0])
    for _, about in groupby(pairs, lambda pair: pair.sample.image_digest):
        stored: set[Any] = set()
        for place, pair in enumerate(about):
            if place == 0:
                bytes = {image.digest: _file_bytes(image) for image in pair.sample.images}
            if place % schema.ROWS_AT_ONCE == 0:  # in another row group the image is stored again
                stored.clear()
            new = _shown(pair, located, noise) - stored
            stored |= new
            kinds = {image.digest: _kind(image) for image in pair.sample.images}
            ratios = ((own, (plain if made is None else noised)[kinds[own]]) for own, made in new)
            yield pair.id, round(sum(ratio * bytes[own] for own, ratio in ratios))


def _kind(image: SampleImage) -> str:
    return image.file.suffix.lower()


def _noised(pair: Pair, located: Mapping[str, Any], noise: Noise) -> list[tuple[int, Region]]:
    """Return the places of a pair's images that are noised, with their regions."""
    regions = pair.regions(located)
    chosen = noise.noised([not region.reason for region in regions])
    return [(place, region) for place, region in enumerate(regions) if chosen[place]]


def _shown(pair: Pair, located: Mapping[str, Any], noise: Noise | None) -> set[tuple[str, Any]]:
    """Return a row's images by digest: with None the source's own, for a noised one what it is made of."""
    own = {(image.digest, None) for image in pair.sample.images}
    if noise is None or not pair.is_noised:
        return own
    made: set[tuple[str, Any]] = set()
    for place, region in _noised(pair, located, noise):
        area: Any = pair.id
        if noise.per == "image":
            area = noise.whole or region.area
        made.add((pair.sample.images[place].digest, area))
    replaced = {(digest, None) for digest, _ in made}
    one_image = pair.healthy or pair.dispreference in schema.REVERSED
    return made | (own - replaced if one_image else own)


def _ratios(
    found: Iterable[tuple[SampleImage, Any]], store: Callable[[SampleImage, Any], dict[str, Any]]
) -> dict[str, float]:
    """Return by file suffix the bytes that `store` gives for images over those of their files."""
    kinds: dict[str, dict[str, tuple[SampleImage, Any]]] = {}
    for image, area in found:
        kinds.setdefault(_kind(image), {}).setdefault(image.digest, (image, area))
    ratios = {}
    for kind, first in kinds.items():
        chosen = nsmallest(MEASURED, first.values(), key=lambda one: unit_interval("size", one[0].digest))
        ratios[kind] = sum(len(store(*one)["bytes"]) for one in chosen) / sum(_file_bytes(image) for image, _ in chosen)
    return ratios


def _file_bytes(image: SampleImage) -> int:
    try:
        return image.file.stat().st_size
    except OSError as error:
        raise InputError(f"{image.file}: {error.strerror}. Restore the image, then run again with --resume.") from None
