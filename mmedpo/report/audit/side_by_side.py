"""Style-shortcut scores side by side: by the chosen side of a dataset's pairs, and of other datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedpo import schema
from mmedpo.errors import InputError
from mmedpo.report.audit.read import CHOSEN_SIDES, Row
from mmedpo.report.audit.style import Shortcut
from mmedpo.runs.json_files import read_object

FORMAT = "mmedpo.audit/1"
IN_PLACE = "the gold answer in place of {}"


class ByChosen:
    """Style-shortcut scores of the pairs with each chosen side, and of the same pairs with the gold answer there."""

    def __init__(self) -> None:
        self._scores: dict[str, Shortcut] = {}

    def add(self, row: Row) -> None:
        if not row.chosen_side or row.kind in schema.REVERSED:
            return
        self._of(row.chosen_side).add(row)
        if row.chosen_side != CHOSEN_SIDES[0] and row.answer:
            self._of(IN_PLACE.format(row.chosen_side)).add(replace(row, chosen=row.answer))

    def _of(self, side: str) -> Shortcut:
        return self._scores.setdefault(side, Shortcut())

    def result(self) -> dict[str, dict[str, Any]]:
        """Return `Shortcut.result` by chosen side; empty where the dataset does not say who made it."""
        names = [name for side in CHOSEN_SIDES for name in (side, IN_PLACE.format(side))]
        return {name: self._scores[name].result() for name in names if name in self._scores}


def others(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return name and style-shortcut scores of other datasets, from the `audit.json` in their folders.

    Raises:
        InputError: a folder has no audit.
    """
    found = []
    for path in paths:
        file = path / "audit.json"
        audit = read_object(file) if file.is_file() else {}
        if audit.get("format") != FORMAT or "style_shortcut" not in audit:
            raise InputError(
                f"--beside {path}: it has no audit.json of mmedpo. Name a folder that `mmedpo curate` or `mmedpo audit "
                "--output` wrote."
            )
        kept = {"style_shortcut": audit["style_shortcut"], "style_by_chosen": audit.get("style_by_chosen") or {}}
        found.append({"dataset": audit["dataset"], **kept})
    return found


def scores(audit: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return label and score: of this dataset by chosen side, then of the others and by theirs."""
    own = [(f"chosen: {side}", said(score)) for side, score in (audit.get("style_by_chosen") or {}).items()]
    for other in audit.get("beside") or ():
        name = f"dataset {other['dataset']}"
        own.append((name, said(other["style_shortcut"])))
        own += [(f"{name}, chosen: {side}", said(score)) for side, score in other["style_by_chosen"].items()]
    return own


def said(score: Mapping[str, Any]) -> str:
    """Return a style-shortcut score in words."""
    if score["auc"] is None:
        return f"not measured: {score['reason']}"
    return f"AUC {score['auc']:.3f} ± {score['sd']:.3f}, {score['pairs']:,} pairs"
