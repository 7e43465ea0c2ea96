"""Audit of a preference dataset: content and faults as numbers, table and page.

Rows are read once, as a stream; each image file is decoded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.errors import Fault, InputError
from mmedpo.report.audit import measure, style
from mmedpo.report.audit.measure import RELEVANCE_EDGES, SHARE_EDGES, distributions
from mmedpo.report.audit.read import Row, Split, open_splits
from mmedpo.report.audit.show import page, render, rows
from mmedpo.report.notices import standins
from mmedpo.runs.provenance import portable

__all__ = ["audit", "distributions", "page", "render", "rows"]


def audit(path: str, split: str = "train", name: str | None = None) -> dict[str, Any]:
    """Count, measure and check the rows of a preference dataset.

    Datasets that break the schema or have another layout are audited too. Their faults are listed, and each number is
    over the rows with the columns it needs; a block without such rows is None.

    Args:
        path: a folder written by `mmedpo curate`, a Hub dataset id, or a .json or .jsonl file of rows, for example
            in LLaVA's layout. The images of a file may be absent; they are identified by their names.
        split: split to measure; images and patients are compared between all splits.
        name: name of the dataset in the audit; by default its Hub id or relative path.

    Returns:
        The content of audit.json.

    Raises:
        InputError: nothing to read at `path`, no text in a file's rows, or no such split.
    """
    splits = open_splits(path)
    if split not in splits:
        raise InputError(f"{path!r} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    found, faults = _measure(splits[split])
    homes = _homes(splits, split, found)
    manifest = _manifest(Path(path))
    counts = {
        "dispreference": measure.counts([row.kind for row in found], schema.DISPREFERENCES),
        "task": measure.counts([row.task for row in found], schema.TASKS),
    }

    def spread(field: str, edges: list[float] | None = None) -> dict[str, Any] | None:
        kinds = counts["dispreference"]
        return distributions(
            {kind: [getattr(row, field) for row in found if row.kind == kind] for kind in kinds}, edges
        )

    return {
        "format": "mmedpo.audit/1",
        "dataset": name or portable(path),
        "split": split,
        "rows": len(found),
        "standins": {**dict.fromkeys(standins(manifest)), **measure.standins(found)},
        "counts": counts,
        "faults": [asdict(fault) for fault in faults],
        "shared_groups": [asdict(fault) for fault in homes.faults],
        "near_duplicates": splits[split].pictures.near_duplicates(homes.names, homes.splits),
        "rejects": manifest.get("rejects"),
        **measure.flaws(found),
        "weights": spread("weight"),
        "unscored": sum(row.relevance is None for row in found) if splits[split].is_ours else 0,
        "weight_notes": (manifest.get("weights") or {}).get("notes", []),
        "relevance": spread("relevance", RELEVANCE_EDGES),
        "mask_coverage": spread("mask_coverage", SHARE_EDGES),
        "style": style.lengths(found),
        "style_shortcut": style.shortcut(found),
        "judges": measure.judges(found),
    }


def _measure(split: Split) -> tuple[list[Row], list[Fault]]:
    """Return rows and faults of a split, in one pass."""
    found: list[Row] = []
    faults = list(split.faults)
    for given, row in split:
        found.append(row)
        faults += split.row_faults(given, row)
    if split.is_ours:
        faults += schema.repeated_ids(Counter(row.name for row in found))
    return found, faults


def _homes(splits: Mapping[str, Split], measured: str, found: list[Row]) -> measure.Homes:
    def stream(split: Split) -> Iterator[Row]:
        return (row for _, row in split)

    return measure.homes({name: found if name == measured else stream(split) for name, split in splits.items()})


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `mmedpo curate` beside the data; empty without one."""
    recorded = loading.dataset_manifest(str(folder), None) if folder.is_dir() else {}
    return recorded if "rejects" in recorded else {}
