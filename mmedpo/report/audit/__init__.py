"""Audit of a preference dataset: content and faults as numbers, table and page.

Rows are read once, as a stream, and added up; each image file is decoded once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sized
from pathlib import Path
from typing import Any

from rich.progress import track

from mmedpo import schema
from mmedpo.data import origin, shards
from mmedpo.errors import Fault, InputError
from mmedpo.report.audit import measure, style
from mmedpo.report.audit.burnt_text import Texts
from mmedpo.report.audit.measure import RELEVANCE_EDGES, SHARE_EDGES, distributions
from mmedpo.report.audit.preferred import Preferred
from mmedpo.report.audit.read import Split, open_splits
from mmedpo.report.audit.show import page, render, rows
from mmedpo.report.audit.side_by_side import ByChosen, others
from mmedpo.report.notices import standins
from mmedpo.runs.provenance import portable

__all__ = ["Texts", "audit", "distributions", "others", "page", "render", "rows"]


def audit(path: str, split: str = "train", name: str | None = None, texts: Texts | None = None) -> dict[str, Any]:
    """Count, measure and check the rows of a preference dataset.

    Datasets that break the schema or have another layout are audited too. Their faults are listed, and each number is
    over the rows with the columns it needs; a block without such rows is None.

    Args:
        path: a folder written by `mmedpo curate`, a Hub dataset id, or a .json or .jsonl file of rows, for example
            in LLaVA's layout. The images of a file may be absent; they are identified by their names.
        split: split to measure; images and patients are compared between all splits.
        name: name of the dataset in the audit; by default its Hub id or relative path.
        texts: looks for text burnt into the images inside the dataset, at about two seconds an image.

    Returns:
        The content of audit.json.

    Raises:
        InputError: nothing to read at `path`, no text in a file's rows, or no such split.
    """
    splits = open_splits(path)
    if split not in splits:
        raise InputError(f"{path!r} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
    counts, flaws, judges, homes = measure.Counts(), measure.Flaws(), measure.Judges(), measure.Homes()
    preferred, by_chosen = Preferred(), ByChosen()
    lengths, shortcut, ids = style.Lengths(), style.Shortcut(), shards.Hashes()
    measured, faults = splits[split], list(splits[split].faults)
    for other, rows_of in splits.items():
        searched = texts is not None and rows_of is measured
        total = len(rows_of.source) if isinstance(rows_of.source, Sized) else None
        for given, row in track(rows_of, "Looking for text in images", total, disable=not searched):
            homes.add(other, row)
            if texts is not None and searched:
                texts.add(given, row)
            if rows_of is measured:
                faults += measured.row_faults(given, row)
                ids.add(row.name)
                for tally in (counts, flaws, judges, lengths, shortcut, preferred, by_chosen):
                    tally.add(row)
        homes.end(other)
    if measured.is_ours:
        faults += _repeated_ids(measured, ids.repeated())
    manifest = _manifest(Path(path))
    return {
        "format": "mmedpo.audit/1",
        "dataset": name or portable(path),
        "split": split,
        "rows": counts.rows,
        "standins": {**dict.fromkeys(standins(manifest)), **counts.standins()},
        "counts": counts.labels(),
        "faults": [fault.record() for fault in faults],
        "shared_groups": [fault.record() for fault in homes.faults],
        "near_duplicates": measured.pictures.near_duplicates(homes.names, homes.splits),
        "rejects": manifest.get("rejects"),
        **({"preferred": found} if (found := preferred.result()) else {}),
        **flaws.result(),
        "weights": counts.spread("weight"),
        "unscored": counts.unscored if measured.is_ours else 0,
        "weight_notes": (manifest.get("weights") or {}).get("notes", []),
        "relevance": counts.spread("relevance", RELEVANCE_EDGES),
        "mask_coverage": counts.spread("mask_coverage", SHARE_EDGES),
        "style": lengths.result(),
        "style_shortcut": shortcut.result(),
        **({"style_by_chosen": sides} if (sides := by_chosen.result()) else {}),
        "judges": judges.result(),
        **({"burnt_text": texts.result()} if texts is not None else {}),
    }


def _repeated_ids(split: Split, repeated: Collection[int]) -> list[Fault]:
    """Return a fault for each id that occurs more than once; only then are the rows read again, for its name."""
    return schema.repeated_ids(Counter(row.name for _, row in split if hash(row.name) in repeated) if repeated else {})


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of `mmedpo curate` beside the data; empty without one."""
    recorded = origin.dataset_manifest(str(folder), None) if folder.is_dir() else {}
    return recorded if "rejects" in recorded else {}
