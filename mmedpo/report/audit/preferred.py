"""Which answer the preferred sides of visual pairs give to closed questions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mmedpo import schema
from mmedpo.data.text import polarity
from mmedpo.report.audit.read import Row

PREVAILS = 0.6  # share of one answer above which the audit warns
LEAST = 20  # pairs below which it does not


class Preferred:
    """Counts of yes and no."""

    def __init__(self) -> None:
        self._said: Counter[str] = Counter()

    def add(self, row: Row) -> None:
        if row.kind in schema.DISPREFERENCES[1:] and row.task == "closed_vqa":
            self._said.update(filter(None, [polarity(row.chosen)]))

    def result(self) -> dict[str, Any] | None:
        """Return the counts, and a warning where one answer is more than `PREVAILS` of at least `LEAST` pairs."""
        total = self._said.total()
        if not total:
            return None
        [(side, most)], warning = self._said.most_common(1), None
        if total >= LEAST and most > PREVAILS * total:
            warning = (
                f"{side} is preferred in {100 * most / total:.1f} % of the {total:,} visual pairs about closed "
                f"questions. Training on them teaches to say {side}: curate with --balance answer or --symmetric."
            )
        return {"yes": self._said["yes"], "no": self._said["no"], "warning": warning}
