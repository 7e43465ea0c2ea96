"""The split of a source: its table's own where that keeps images and patients whole, else one that is made anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmedpo.data.samples import Sample
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import InputError

SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
MANY = 200  # images or patients: shares then come out near enough by chance, and no image's side depends on others


@dataclass(frozen=True)
class Split:
    """Samples with the split that counts, and how it came about.

    Attributes:
        by: "source" (the table's own), or "patient", "study" or "image", which lie in one part each.
        rows: of each part.
        why: it was made anew; None where it was not.
        moved: rows, and images with such rows, that lie in another part than the table says.
        unit: what `patient_id` names: "patient", or "study".
    """

    samples: list[Sample]
    by: str = "source"
    why: str | None = None
    moved: dict[str, int] = field(default_factory=dict)
    unit: str = "patient"

    @property
    def rows(self) -> dict[str, int]:
        found = Counter(sample.split for sample in self.samples)
        return {name: found[name] for name in (*SHARES, *sorted(found.keys() - SHARES.keys())) if found[name]}

    def shared(self, split: str | None, column: str = "image_digest") -> int:
        """How many images (or patients: `column` is "patient_id") of a part, of all where None, lie in another too."""
        homes: dict[str, set[str]] = {}
        for sample in self.samples:
            if group := getattr(sample, column):
                homes.setdefault(group, set()).add(sample.split)
        return sum(len(splits) > 1 and (split is None or split in splits) for splits in homes.values())

    def note(self, name: str) -> str | None:
        """How and why the split of the source `name` was made anew; None where it is the table's own."""
        if self.why is None:
            return None
        shares = "/".join(f"{100 * share:.0f}" for share in SHARES.values())
        moved = ""
        if self.moved:
            rows, images = (number_of(self.moved[what], what) for what in ("rows", "images"))
            moved = f" {rows}, of {images}, changed side."
        own = " --official-split takes its own as it stands." if self.moved else ""
        return f"The split of {name} is made by {self.by} ({shares} %), since {self.why}: {self._said()}.{moved}{own}"

    def told(self, name: str, chosen: str | None, official: bool, quoted: bool = True) -> str:
        """How the source `name` was split, in any case, and which part was `chosen`; `quoted`: the table's own names of
        parts may be said."""
        own = f": {self._said()}" if quoted else ""
        said = self.note(name) or f"The split of {name} is its table's own{own}."
        counts = {"images": self.shared(chosen), _plural(self.unit): self.shared(chosen, "patient_id")}
        if official and (both := " and ".join(f"{count:,} {units}" for units, count in counts.items() if count)):
            said += f" It is taken as it stands: {both} of {chosen or 'it'} lie in other parts too."
        if chosen is None and len(self.rows) > 1:
            said += " No --split was given: the rows of all parts are taken."
        return said

    def _said(self) -> str:
        return ", ".join(f"{part} {rows:,} rows" for part, rows in self.rows.items())


def split(samples: Sequence[Sample], unit: str, official: bool = False) -> Split:
    """Keep the table's own split where it keeps all groups whole, or make one.

    A group is a patient, or an image by its pixels where no patient is named. The split that is made depends on the
    groups alone, never on a seed (`places`).

    Args:
        unit: what `patient_id` names: "patient", or "study".
        official: keep the table's own as it stands.

    Raises:
        InputError: `official`, and rows have no split.
    """
    without = [sample.id for sample in samples if not sample.split]
    if official:
        if without:
            raise InputError(
                f"{len(without)} rows without a split ({without[0]} is the first), so that there is no official one to "
                "take; leave out --official-split."
            )
        return Split(list(samples), unit=unit)
    names: dict[str, str] = {}  # a picture is called by its first name, since decoders may differ in the last bit
    for sample in samples:
        names[sample.image_digest] = min(sample.image_id, names.get(sample.image_digest, sample.image_id))
    groups = [sample.patient_id or names[sample.image_digest] for sample in samples]
    homes: dict[str, set[str]] = {}
    for group, sample in zip(groups, samples, strict=True):
        homes.setdefault(group, set()).add(sample.split)
    parted = sum(len(splits) > 1 for splits in homes.values())
    if not without and not parted:
        return Split(list(samples))
    by = unit if any(sample.patient_id for sample in samples) else "image"
    why = f"its own has {parted:,} of {len(homes):,} {_plural(by)} in several parts"
    if without:
        why = f"{len(without):,} rows of its table have none" if len(without) < len(samples) else "its table has none"
    place = places(Counter(groups))
    made = [replace(sample, split=part(place[group])) for group, sample in zip(groups, samples, strict=True)]
    changed = [new for old, new in zip(samples, made, strict=True) if old.split and old.split != new.split]
    own = len(without) < len(samples)
    moved = {"rows": len(changed), "images": len({sample.image_digest for sample in changed})} if own else {}
    return Split(made, by, why, moved)


def places(sizes: Mapping[str, int]) -> dict[str, float]:
    """Place each group in [0, 1), by its name alone; `sizes` are rows.

    Where there are fewer than `MANY` groups, they are ranked by that place and laid end to end, as long as they have
    rows, so that shares of rows come out as near as whole groups allow. A new group may then move neighbours of a cut.
    """
    place = {group: unit_interval("split", group) for group in sizes}
    if len(sizes) >= MANY:
        return place
    total, before = sum(sizes.values()), 0
    for group in sorted(place, key=place.__getitem__):
        place[group] = (before + sizes[group] / 2) / total
        before += sizes[group]
    return place


def part(place: float) -> str:
    """The part of a place in [0, 1)."""
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return name


def _plural(unit: str) -> str:
    return {"study": "studies"}.get(unit, f"{unit}s")
