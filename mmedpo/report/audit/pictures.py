"""Image files of a dataset, each decoded once: faults, digests and near-duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmedpo.data import images

SIDE = 16  # rows and columns of the hash's grid: 256 bits
NEAR = 16  # bits by which near-duplicates may differ
EXAMPLES, NAMED = 5, 6  # groups shown, and names of each


@dataclass(frozen=True)
class Seen:
    """Result of reading an image file: its fault, or digest and `difference_hash` of its pixels."""

    fault: str | None
    digest: str
    hash: bytes = b""


class Pictures:
    """Image files of a dataset, cached by their bytes; each takes a few hundred bytes."""

    def __init__(self) -> None:
        self._files: dict[str, Seen] = {}
        self._hashes: dict[str, bytes] = {}

    def look(self, image: Mapping[str, Any] | None) -> Seen:
        """Return the result of reading an undecoded image ({"bytes", "path"}), read once."""
        data = (image or {}).get("bytes")
        file = hashlib.sha256(data if isinstance(data, bytes) else str(image).encode(errors="replace"))
        if (key := file.hexdigest()) not in self._files:
            self._files[key] = seen = _seen(image, key)
            self._hashes[seen.digest] = seen.hash
        return self._files[key]

    def fault(self, image: Mapping[str, Any] | None) -> str | None:
        """Return the fault of an image, as `images.fault`."""
        return self.look(image).fault

    def near_duplicates(self, names: Mapping[str, str], splits: Mapping[str, Iterable[str]]) -> dict[str, Any] | None:
        """Return groups of distinct images that look alike; None where no image could be decoded.

        Args:
            names: digest -> name of an image.
            splits: digest -> splits of an image.

        Returns:
            {"images": number compared, "groups", "in_several_splits": number of groups, "bits", "within": most bits by
            which neighbours in a group differ, "examples": names of the first groups}.
        """
        known = [digest for digest in names if self._hashes.get(digest)]
        if not known:
            return None
        groups = [[known[place] for place in group] for group in _alike([self._hashes[digest] for digest in known])]
        apart = sum(len({split for digest in group for split in splits[digest]}) > 1 for group in groups)
        shown = [[names[digest] for digest in group[:NAMED]] for group in groups[:EXAMPLES]]
        return {
            "images": len(known), "groups": len(groups), "in_several_splits": apart, "examples": shown,
            "bits": SIDE * SIDE, "within": NEAR,
        }  # fmt: skip


def _seen(image: Mapping[str, Any] | None, key: str) -> Seen:
    try:
        pixels = images.pixels(image)
    except images.UnusableImage as error:
        return Seen(error.sentence, key)
    digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return Seen(None, digest, difference_hash(pixels))


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
