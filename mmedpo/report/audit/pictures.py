"""Image files of a dataset, each decoded once: faults, digests and near-duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmedpo.data import images

SIDE = 16  # rows and columns of the hash's grid: 256 bits
DIGEST, HASH = 16, SIDE * SIDE // 8  # bytes
NEAR = 16  # bits by which near-duplicates may differ
EXAMPLES, NAMED = 5, 6  # groups shown, and names of each


@dataclass(frozen=True, slots=True)
class Seen:
    """Result of reading an image file: its fault, or digest and `difference_hash` of its pixels."""

    fault: str | None
    digest: bytes
    hash: bytes = b""


class Pictures:
    """Image files of a dataset, known by the digests of their bytes; each takes a fifth of a kilobyte."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}  # digest of a file -> its place below
        self._seen = bytearray()  # digest and hash of each file
        self._faults: dict[int, str] = {}  # place -> fault

    def look(self, image: Mapping[str, Any] | None) -> Seen:
        """Return the result of reading an undecoded image ({"bytes", "path"}), read once."""
        data = (image or {}).get("bytes")
        key = _digest(data if isinstance(data, bytes) else str(image).encode(errors="replace"))
        if (place := self._places.get(key)) is None:
            seen = _seen(image, key)
            place = self._places[key] = len(self._places)
            self._seen += seen.digest + seen.hash.ljust(HASH, b"\0")
            if seen.fault:
                self._faults[place] = seen.fault
            return seen
        return Seen(self._faults.get(place), *self._at(place))

    def _at(self, place: int) -> tuple[bytes, bytes]:
        start = place * (DIGEST + HASH)
        middle, end = start + DIGEST, start + DIGEST + HASH
        return bytes(self._seen[start:middle]), bytes(self._seen[middle:end])

    def fault(self, image: Mapping[str, Any] | None) -> str | None:
        """Return the fault of an image, as `images.fault`."""
        return self.look(image).fault

    def near_duplicates(
        self, names: Mapping[bytes, str], splits: Mapping[bytes, Iterable[str]]
    ) -> dict[str, Any] | None:
        """Return groups of distinct images that look alike; None where no image could be decoded.

        Args:
            names: digest -> name of an image.
            splits: digest -> splits of an image.

        Returns:
            {"images": number compared, "groups", "in_several_splits": number of groups, "bits", "within": most bits by
            which neighbours in a group differ, "examples": names of the first groups}.
        """
        hashes = {
            digest: difference
            for place in range(len(self._places))
            for digest, difference in [self._at(place)]
            if place not in self._faults and digest in names
        }
        known = [digest for digest in names if digest in hashes]
        if not known:
            return None
        groups = [[known[place] for place in group] for group in _alike([hashes[digest] for digest in known])]
        apart = sum(len({split for digest in group for split in splits[digest]}) > 1 for group in groups)
        shown = [[names[digest] for digest in group[:NAMED]] for group in groups[:EXAMPLES]]
        return {
            "images": len(known), "groups": len(groups), "in_several_splits": apart, "examples": shown,
            "bits": SIDE * SIDE, "within": NEAR,
        }  # fmt: skip


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()[:DIGEST]


def _seen(image: Mapping[str, Any] | None, key: bytes) -> Seen:
    try:
        pixels = images.pixels(image)
    except images.UnusableImage as error:
        return Seen(error.sentence, key)
    return Seen(None, _digest(str(pixels.shape).encode(), pixels.tobytes()), difference_hash(pixels))


def difference_hash(pixels: np.ndarray) -> bytes:
    """Return 256 bits: on a grid of 16 x 17 mean brightnesses, 1 where a cell is brighter than its left neighbour."""
    from PIL import Image

    grid = np.asarray(Image.fromarray(pixels).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes()


def _alike(hashes: Sequence[bytes]) -> list[list[int]]:
    """Return groups (two or more indices) of hashes linked by neighbours within NEAR bits."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    distinct, of = np.unique(np.array(hashes, dtype=f"V{len(hashes[0])}"), return_inverse=True)
    bits = np.unpackbits(distinct.view(np.uint8).reshape(len(distinct), -1), axis=1)
    numbers = distinct.view(np.uint64).reshape(len(distinct), -1)
    home = np.arange(len(distinct))  # group of each hash so far
    # Hashes within NEAR bits agree in one of NEAR + 1 bands: only such hashes are compared.
    for band in range(NEAR + 1):
        keys = np.packbits(bits[:, band :: NEAR + 1], axis=1)
        _, key = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(key, kind="stable")
        left, step = np.arange(len(order)), 0
        while len(left):
            step += 1
            left = left[left + step < len(order)]
            left = left[key[order[left]] == key[order[left + step]]]
            one, other = order[left], order[left + step]
            apart = home[one] != home[other]
            near = _near(numbers, one[apart], other[apart])
            if near.any():
                links = home[one[apart][near]], home[other[apart][near]]
                graph = coo_array((np.ones(len(links[0]), bool), links), shape=(len(home), len(home)))
                home = connected_components(graph, directed=False)[1][home]
    groups: dict[int, list[int]] = {}
    for place, group in enumerate(home[of].tolist()):
        groups.setdefault(group, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _near(numbers: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return True where the hashes at these indices differ by at most NEAR bits."""
    return np.bitwise_count(numbers[one] ^ numbers[other]).sum(axis=1) <= NEAR
