"""A dataset's image files, each decoded once however many rows show it: faults, digests, and near-duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmedpo import images

SIDE = 16  # of the grid whose neighbours are compared: 256 bits
NEAR = 16  # bits by which near-duplicates may differ
AT_ONCE = 1024  # pictures compared with all others together
EXAMPLES, NAMED = 5, 6  # groups that are shown, and names of each


@dataclass(frozen=True)
class Seen:
    """Result of reading a file: why it cannot be used, or its picture's digest and hash (`difference_hash`)."""

    fault: str | None
    digest: str
    hash: bytes = b""


class Pictures:
    """The files of a dataset, remembered by their bytes; a few hundred bytes each are held."""

    def __init__(self) -> None:
        self._files: dict[str, Seen] = {}
        self._hashes: dict[str, bytes] = {}

    def look(self, image: Mapping[str, Any]) -> Seen:
        """Read an undecoded image ({"bytes", "path"}), the first time that it is shown."""
        data = image.get("bytes")
        file = hashlib.blake2b(data if isinstance(data, bytes) else str(image).encode(errors="replace"), digest_size=16)
        if (key := file.hexdigest()) not in self._files:
            self._files[key] = seen = _seen(image, key)
            self._hashes[seen.digest] = seen.hash
        return self._files[key]

    def fault(self, image: Mapping[str, Any]) -> str | None:
        """As `images.fault`."""
        return self.look(image).fault

    def near_duplicates(self, names: Mapping[str, str], splits: Mapping[str, Iterable[str]]) -> dict[str, Any] | None:
        """Groups of distinct pictures that look alike; nothing is merged. None where no picture could be decoded.

        Args:
            names: of pictures, by digest.
            splits: in which each of them is.

        Returns:
            {"images": compared ones, "groups", "in_several_splits": of the groups, "bits", "within": most bits by which
            neighbours in a group differ, "examples": names of the first groups}.
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


def _seen(image: Mapping[str, Any], key: str) -> Seen:
    try:
        picture = images.open_rgb(image)
    except images.UnusableImage as error:
        return Seen(error.sentence, key)
    return Seen(None, images.digest(picture), difference_hash(picture))


def difference_hash(picture: Any) -> bytes:
    """256 bits: on a grid of 16 x 17 means of brightness, whether each is brighter than its left neighbour."""
    from PIL import Image

    grid = np.asarray(picture.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX))
    return np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes()


def _alike(hashes: Sequence[bytes]) -> list[list[int]]:
    """Places of hashes that neighbours within NEAR bits link together, groups of two or more."""
    signs = np.unpackbits(np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1), axis=1).astype(np.float32)
    signs = 2 * signs - 1
    home = list(range(len(hashes)))

    def root(place: int) -> int:
        while home[place] != place:
            home[place] = place = home[home[place]]
        return place

    for start in range(0, len(hashes), AT_ONCE):
        differing = (signs.shape[1] - signs[start : start + AT_ONCE] @ signs.T) / 2
        for one, other in np.argwhere(differing <= NEAR).tolist():
            if start + one < other:
                home[root(other)] = root(start + one)
    groups: dict[int, list[int]] = {}
    for place in range(len(hashes)):
        groups.setdefault(root(place), []).append(place)
    return [group for group in groups.values() if len(group) > 1]
