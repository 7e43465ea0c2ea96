"""Describe a publication on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.filesize import decimal

from mmedpo.data.text import number_of

if TYPE_CHECKING:
    from mmedpo.hub.publish import Publication

SHOWN_NAMES = 12


def lines(done: Publication, dry_run: bool = False) -> Iterator[str]:
    """Yield lines on uploaded, deleted and unchanged files (planned ones with `dry_run`) and on open points."""
    plan, will = done.plan, "would be " if dry_run else ""
    for what, names in (("new", plan.new), ("changed", plan.changed)):
        if names:
            yield f"{will}uploaded, {what}: {_listed(names)} ({decimal(sum(done.sizes[name] for name in names))})"
    if plan.deleted:
        yield f"{will}deleted: {_listed(plan.deleted)}"
    if plan.same:
        size = decimal(sum(done.sizes[name] for name in plan.same))
        yield f"unchanged on the Hub: {number_of(len(plan.same), 'files')} ({size})"
    for conflict in done.conflicts:
        yield str(conflict)
    yield from done.notices
    if done.open_fields:
        yield f"open in the card: {number_of(len(done.open_fields), 'fields')} that only a person can fill"
    if not plan:
        named = f"; it is tagged {done.tag}" if done.tag else ""
        yield f"nothing is new: {done.url} ({done.visibility}) holds this content already{named}."
    else:
        version = f", tag {done.tag}" if done.tag else ""
        what = "nothing was sent; it would be published:" if dry_run else "published:"
        yield f"{what} {done.url} ({done.visibility}{version})"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more
