"""A pair as the page gets it: JSON without names of files or patients."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from mmedpo import schema
from mmedpo.data import images
from mmedpo.report.audit.measure import flaws_of
from mmedpo.report.audit.read import Row
from mmedpo.report.audit.show import FLAWS


@dataclass(frozen=True)
class Side:
    """One side of a pair: its text, and its undecoded images."""

    text: str
    images: list[dict[str, Any]]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of the images in pixels; 1 for one that cannot be read."""
        return [images.size(image) or (1, 1) for image in self.images]


def question(row: Mapping[str, Any]) -> str:
    return schema.message_text(row["prompt"])


def texts(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: schema.message_text(row[name]) for name in ("chosen", "rejected")}


def boxes(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the boxes of a row's lesion, to a tenth of a pixel; "image" is the number of their image, if not 0."""
    made = row["provenance"] or {}
    found = made.get("boxes") or []
    places = made.get("box_images") or [0] * len(found)
    return [
        {name: value if isinstance(value, str) else round(value, 1) for name, value in box.items()}
        | ({"image": place} if place else {})
        for box, place in zip(found, places, strict=True)
    ]


def sides(row: Mapping[str, Any], swapped: bool = False) -> list[Side]:
    """Return the chosen and the rejected side, in the other order if `swapped`."""
    said = texts(row)
    both = [Side(said["chosen"], row["images"]), Side(said["rejected"], row["rejected_images"] or row["images"])]
    return both[::-1] if swapped else both


def pair(row: Mapping[str, Any], swapped: bool) -> dict[str, Any]:
    """Return what every review shows of a row; which side is chosen is not told."""
    both = sides(row, swapped)
    words = [_words(side.text) for side in both]
    first, second = ([word.strip() for word in own] for own in words)
    matched = SequenceMatcher(None, first, second, autojunk=False).get_opcodes()
    spans = [[(a, b) for _, a, b, _, _ in matched], [(a, b) for _, _, _, a, b in matched]]
    differs = [code != "equal" for code, *_ in matched]
    return {
        "question": question(row), "task": row["task"], "options": row.get("options") or [],
        "same_images": not row["rejected_images"],
        "sides": [
            {
                "text": side.text,
                "parts": [
                    ["".join(own[start:end]), different]
                    for (start, end), different in zip(spans[number], differs, strict=True)
                ],
                "sizes": side.sizes,
            }
            for number, (side, own) in enumerate(zip(both, words, strict=True))
        ],
    }  # fmt: skip


def about(row: Mapping[str, Any], facts: Row) -> dict[str, Any]:
    """Return what a blind review hides: kind, weight, boxes, makers, judges and the audit's flaws."""
    made = row["provenance"] or {}
    return {
        "kind": row["dispreference"], "weight": row["weight"], "relevance": row["clinical_relevance"],
        "boxes": boxes(row), "made_by": made.get("rejected_by"), "localizer": made.get("localizer"),
        "judgements": made.get("judgements") or [], "agreed": made.get("agreed"),
        "flaws": [FLAWS[name][0] for name in flaws_of(facts)],
    }  # fmt: skip


def _words(text: str) -> list[str]:
    """Return the words of a text with the spaces before them, so that they join to the text."""
    return re.findall(r"\s*\S+|\s+$", text)
