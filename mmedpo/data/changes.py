"""Rows of a source that changed between the start of a run and its resumption, found by digests of their parts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from mmedpo.data.samples import Sample
from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.runs.json_files import sha256
from mmedpo.runs.ledger import Ledger

BLOCK = 1000  # rows recorded at once
SIZE = 8  # bytes of a part's digest; short, since a part is compared with its own earlier value only

Parts = Mapping[str, str]  # digest by name of a part; parts without a value are left out


@dataclass
class Changes:
    """Ids of rows that differ from their record; changed rows with the names of their changed parts.

    `digest` covers all current rows, whatever their order.
    """

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    changed: dict[str, list[str]] = field(default_factory=dict)
    digest: str = ""
    kept: int = 0  # unchanged rows

    def refuse(self, source: str, remedy: str) -> None:
        """Raise InputError if rows of `source` changed; `remedy` is a further sentence for the message."""
        if self.changed:
            faults = [Fault(id, ", ".join(names), "changed since the start") for id, names in self.changed.items()]
            raise InputError(
                f"{source}: {number_of(len(faults), 'rows')} changed since the start of this run, whose finished work "
                f"is about the old rows. Restore them, or start a new --output. {remedy}",
                faults,
            )


def parts(**values: Any) -> Parts:
    """Return the digests of a row's parts; their values are JSON-able."""
    return {name: digest(value) for name, value in values.items() if value not in (None, "", (), [], {})}


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=SIZE).hexdigest()


def of_samples(samples: Iterable[Sample]) -> Iterator[tuple[str, Parts]]:
    """Yield id and parts of samples: everything that an answer or a lesion's region depends on.

    An image is compared by pixels, masks and heat map by the bytes of their files. Split, patient and licence are left
    out: they are read anew, and no answer depends on them.
    """
    contents = lru_cache(BLOCK)(sha256)  # questions share masks
    for one in samples:
        shown: list[dict[str, Any]] = [
            {
                "image": image.digest,
                "boxes": [asdict(box) for box in image.boxes],
                "masks": [contents(file) for file in image.masks],
                "heatmap": image.heatmap and contents(image.heatmap),
                "confidence": image.confidence,
            }
            for image in one.images
        ]
        images = shown[0] if len(shown) == 1 else {name: [image[name] for image in shown] for name in shown[0]}
        yield one.id, parts(
            question=one.question, answer=one.answer, task=one.task, modality=one.modality, organ=one.organ,
            options=one.options, **images,
        )  # fmt: skip


def compare(rows: Iterable[tuple[str, Parts]], recorded: Ledger) -> Changes:
    """Compare rows with their records, and record new rows. Records of changed and removed rows wait for `accept`."""
    first = not recorded.path.exists()
    found, ids, digests = Changes(), set(), []
    new: dict[str, Parts] = {}
    for id, now in rows:
        ids.add(id)
        digests.append(_row_digest(id, now))
        before = None if first else recorded.get(id)
        if before is None:
            found.added.append(id)
            new[id] = now
        elif before != now:
            found.changed[id] = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if len(new) == BLOCK:
            recorded.update(new)
            new = {}
    recorded.update(new)
    found.removed = [id for id in recorded if id not in ids]
    found.kept = len(ids) - len(found.added) - len(found.changed)
    found.digest = _joint_digest(digests)
    return found


def accept(changes: Changes, rows: Iterable[tuple[str, Parts]], recorded: Ledger) -> None:
    """Record changed rows and forget removed ones. Call it after their work was dropped."""
    if changes.changed:
        recorded.update({id: now for id, now in rows if id in changes.changed})
    recorded.drop(changes.removed)


def digest_of(rows: Iterable[tuple[str, Parts]]) -> str:
    """Return the `Changes.digest` of rows without comparing them."""
    return _joint_digest(_row_digest(*row) for row in rows)


def _row_digest(id: str, parts: Parts) -> bytes:
    return hashlib.blake2b(json.dumps([id, parts], sort_keys=True).encode(), digest_size=2 * SIZE).digest()


def _joint_digest(digests: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
