"""Data whose terms forbid passing it on: the one question every publication asks before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mmedpo.errors import InputError

NAMES = ("mimiccxr", "padchest", "chexpert")  # letters and digits alone, as they are compared


def refuse(records: Iterable[Mapping[str, Any]]) -> None:
    """Raise InputError if one of these records (a manifest, a training record) names a source that may not leave.

    A source is credentialed if its record says `"credentialed": true`, or by its name.
    """
    for record in records:
        for source in (record.get("source"), (record.get("dataset_manifest") or {}).get("source")):
            if isinstance(source, Mapping) and is_credentialed(source):
                raise InputError(
                    f"{source.get('name')} is credentialed data: its terms forbid passing texts or images on, and what "
                    "is made of them. It is not published."
                )


def is_credentialed(source: Mapping[str, Any]) -> bool:
    """Whether a recorded source ({"name", "credentialed", ...}) may not leave the machine."""
    name = re.sub(r"[^a-z0-9]", "", str(source.get("name")).lower())
    return bool(source.get("credentialed")) or any(known in name for known in NAMES)
