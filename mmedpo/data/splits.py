"""Split of a source: the table's own if no image or patient is in two of its parts, else a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mmedpo.data.samples import Sample
from mmedpo.data.studies import together
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import InputError

SHARES = {"train": 0.6, "validation": 0.1, "test": 0.3}
MANY = 200  # groups from which random places give close enough shares, so that no group's part depends on others


@dataclass(frozen=True)
class Split:
    """Samples with their final split, and how it was made.

    Attributes:
        by: "source" for the table's own, else the group kept in one part: "patient", "study" or "image".
        rows: counts by part.
        why: reason for a new split; None for the table's own.
        moved: counts of "rows" and "images" that changed their part.
        unit: meaning of `patient_id`: "patient" or "study".
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

    def shared(self, split: str | None, column: str = "images") -> int:
        """Count images (or patients, by the column "patient_id") of a part, or of all, that another part has too."""
        homes: dict[str, set[str]] = {}
        for sample in self.samples:
            images = [image.digest for image in sample.images]
            for group in images if column == "images" else [sample.patient_id]:
                if group:
                    homes.setdefault(group, set()).add(sample.split)
        return sum(len(splits) > 1 and (split is None or split in splits) for splits in homes.values())

    def note(self, name: str) -> str | None:
        """Return how and why the split of the source `name` was made, or None for the table's own."""
        if self.why is None:
            return None
        shares = "/".join(f"{100 * share:.0f}" for share in SHARES.values())
        moved = ""
        if self.moved:
            rows, images = (number_of(self.moved[what], what) for what in ("rows", "images"))
            moved = f" {rows} about {images} changed their split."
        own = " --official-split keeps its own." if self.moved else ""
        return f"The split of {name} is made by {self.by} ({shares} %), since {self.why}: {self._counts()}.{moved}{own}"

    def notice(self, name: str, chosen: str | None, official: bool, quoted: bool = True) -> str:
        """Return how the source `name` was split, and which part was `chosen`.

        `quoted` includes the table's own names of parts, which restricted sources do not show.
        """
        own = f": {self._counts()}" if quoted else ""
        text = self.note(name) or f"The split of {name} is its table's own{own}."
        counts = {"images": self.shared(chosen), _plural(self.unit): self.shared(chosen, "patient_id")}
        if official and (both := " and ".join(f"{count:,} {units}" for units, count in counts.items() if count)):
            text += f" It is kept: {both} of {chosen or 'it'} are in other splits too."
        if chosen is None and len(self.rows) > 1:
            text += " No --split was given: rows of all splits are used."
        return text

    def _counts(self) -> str:
        return ", ".join(f"{part} {number_of(rows, 'rows')}" for part, rows in self.rows.items())


def split(samples: Sequence[Sample], unit: str, official: bool = False) -> Split:
    """Keep the table's own split if each group is in one part, else make a new one.

    A group is a patient, or an image by its pixels if no patient is named, with all that are shown together with it.
    A new split depends on the groups only, never on a seed (`places`).

    Args:
        unit: meaning of `patient_id`: "patient" or "study".
        official: keep the table's own unchanged.

    Raises:
        InputError: `official`, and rows have no split.
    """
    without = [sample.id for sample in samples if not sample.split]
    if official:
        if without:
            raise InputError(
                f"{number_of(len(without), 'rows')} without a split ({without[0]} is the first), so no official split "
                "can be used; leave out --official-split."
            )
        return Split(list(samples), unit=unit)
    names: dict[str, str] = {}  # first name of each picture; digests may differ between decoders
    pictures = together(samples)
    for picture, sample in zip(pictures, samples, strict=True):
        names[picture] = min(sample.image_id, names.get(picture, sample.image_id))
    groups = [sample.patient_id or names[picture] for picture, sample in zip(pictures, samples, strict=True)]
    homes: dict[str, set[str]] = {}
    for group, sample in zip(groups, samples, strict=True):
        homes.setdefault(group, set()).add(sample.split)
    divided = sum(len(splits) > 1 for splits in homes.values())
    if not without and not divided:
        return Split(list(samples))
    by = unit if any(sample.patient_id for sample in samples) else "image"
    why = f"its own has {divided:,} of {len(homes):,} {_plural(by)} in several splits"
    if without:
        why = (
            f"{number_of(len(without), 'rows')} of its table without one"
            if len(without) < len(samples)
            else "its table has none"
        )
    place = places(Counter(groups))
    made = [replace(sample, split=part(place[group])) for group, sample in zip(groups, samples, strict=True)]
    changed = [new for old, new in zip(samples, made, strict=True) if old.split and old.split != new.split]
    own = len(without) < len(samples)
    images = {image.digest for sample in changed for image in sample.images}
    moved = {"rows": len(changed), "images": len(images)} if own else {}
    return Split(made, by, why, moved)


def places(sizes: Mapping[str, int]) -> dict[str, float]:
    """Return a place in [0, 1) for each group, by its name alone; `sizes` are counts of rows.

    Fewer than `MANY` groups are sorted by that place and laid end to end, each as long as its rows. Shares of rows
    are then as close as whole groups allow, but a new group may move others to another part.
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
    """Return the part of a place in [0, 1)."""
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return name


def _plural(unit: str) -> str:
    return {"study": "studies"}.get(unit, f"{unit}s")
