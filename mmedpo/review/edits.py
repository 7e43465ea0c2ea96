"""Edits of a row by reviewers: the row with them, and why it would be no pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedpo import schema
from mmedpo.review import shown

SIDES = ("chosen", "rejected")
PLACE = "image"  # of a box: its image among the row's, from 0
BOTH_NOISED = "boxes: both sides show the noised image, which cannot be made anew; reject the pair instead"


def edited(row: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the texts of an edit."""
    texts = {name: [*row[name][:-1], {**row[name][-1], "content": after[name]}] for name in SIDES if name in after}
    return {**row, **texts}


def fault(row: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return why a row makes no pair with an edit, or None; faults that it had before do not count."""
    before = {*schema.broken_rules(row)}
    for column, sentence in schema.broken_rules(edited(row, after)):
        if (column, sentence) not in before:
            return f"{column}: {sentence}"
    return _box_fault(row, after) if "boxes" in after else None


def _box_fault(row: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    if row["rejected_images"] is None and (row["provenance"] or {}).get("mask_coverage") is not None:
        return BOTH_NOISED
    sizes = shown.sides(row)[0].sizes
    for box in after["boxes"]:
        place = box.get(PLACE, 0)
        if place >= len(sizes):
            return f"boxes: one is on image {place + 1} of {len(sizes)}"
        (width, height), right, bottom = sizes[place], box["x"] + box["width"], box["y"] + box["height"]
        if box["x"] >= width or box["y"] >= height or right <= 0 or bottom <= 0:
            return f"boxes: one lies outside of its image of {width} x {height} pixels"
    return None
