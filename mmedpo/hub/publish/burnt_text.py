"""Text burnt into the images of a dataset: looked for before publishing, said, and asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import track

from mmedpo.data import burnt_text, credentialed, licenses
from mmedpo.hub.publish.files import File

SAMPLE = 50  # most images that are read, at about two seconds each
LOOK = "Look at them yourself before others do."
PUBLISH = "The source is restricted or under no licence that the Hub knows. Publish its pixels?"


def found(manifest: Mapping[str, Any], shards: Mapping[str, Sequence[Path]]) -> Mapping[str, Any] | None:
    """Return the text in the images of a dataset: as its curation recorded it, or else in a sample of a private source.

    None where nobody looked: the source is public (`is_private`), or the OCR is not installed.
    """
    if recorded := manifest.get("burnt_text"):
        return recorded if isinstance(recorded, dict) else None
    if not is_private(manifest) or not burnt_text.is_installed():
        return None
    sample, count = _sample(file for files in shards.values() for file in files)
    read = [*map(burnt_text.Finder(), track(sample, "Looking for text in images"))]
    return {**burnt_text.counts(read), **({"of": count} if count > len(sample) else {})}


def _sample(files: Iterable[Path]) -> tuple[list[bytes], int]:
    """Return the image files of the chosen sides with the least hashes, SAMPLE at most, and the number of all."""
    seen: set[bytes] = set()
    kept: dict[bytes, bytes] = {}
    for file in files:
        for row in File(file).rows(but=("rejected_images",)):
            for data in (image["bytes"] for image in row["images"]):
                key = hashlib.sha256(data).digest()
                if key not in seen:
                    seen.add(key)
                    kept[key] = data
                if len(kept) > SAMPLE:
                    del kept[max(kept)]
    return [kept[key] for key in sorted(kept)], len(seen)


def is_private(manifest: Mapping[str, Any]) -> bool:
    """Return whether a dataset's source is restricted, or under no licence that the Hub knows."""
    known = licenses.IDENTIFIERS - {"unknown"}
    terms = licenses.fields(str(manifest["source"].get("license")))["license"]
    return credentialed.first([manifest]) is not None or terms not in known


def question(manifest: Mapping[str, Any], record: Mapping[str, Any] | None) -> str:
    """Return what a person must agree to first; "" for a public source, and where text was masked or none is found."""
    if not is_private(manifest) or (record and (record.get("masked") or not record["with_text"])):
        return ""
    return f"{burnt_text.said(record)} {PUBLISH}"
