"""Restricted data: how it is recognised, and checks before anything is sent.

A mark travels with the data, so that no later step relies on a folder's name: source -> `manifest.json` ("source")
and the licence of each row -> `training.json` and, for whole models, `config.json` (`KEY`) -> `results.json` ->
`comparison.json`. See docs/restricted.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedpo.data.safe_paths import routes
from mmedpo.errors import Fault, InputError
from mmedpo.runs.hosts import is_remote
from mmedpo.runs.options import FLAG

NOT_SHOWN = "a cell (not shown: restricted data)"
MARKER = "CREDENTIALED"  # a file of this name in a source folder marks the source
NAMES = ("mimic", "padchest", "chexpert", "credentialed")  # in names and licences, compared by letters and digits
KEY = "credentialed_source"  # in training.json and config.json: the restricted source of the training data
YES, NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")  # pandas may write true as 1.0
MARK_HELP = "The source is restricted data, which may not be passed on (as MIMIC-CXR): docs/restricted.md."
UNLESS = f"If all recipients have agreed to the same terms, add {FLAG}."


def is_credentialed(source: Mapping[str, Any]) -> bool:
    """Return True if a recorded source ({"name", "license", "credentialed", ...}) is restricted, by mark or name."""
    return bool(source.get("credentialed")) or telling([source.get("name"), source.get("license")]) is not None


def telling(texts: Iterable[Any]) -> str | None:
    """Return the first of these names and licences that identifies restricted data, or None."""
    return next((str(text) for text in texts if any(known in _letters(text) for known in NAMES)), None)


def of_path(path: Path) -> str | None:
    """Return the evidence that a folder, or a file by its name and folder, is restricted (`of_folders`), or None."""
    known = telling(route.with_suffix("").name for route in routes(path) if route.name)
    return f"the name {known!r}" if known else of_folders([path])


def of_folders(folders: Iterable[Path]) -> str | None:
    """Return the evidence that data in one of these folders is restricted, or None.

    Evidence is the file `MARKER` in a folder or any parent, or the name of one of them. Folders are looked at as they
    are spelled, as each link on their way leads on, and resolved.
    """
    checked: set[Path] = set()
    for folder in (route for spelled in folders for route in routes(spelled)):
        for place in (folder, *folder.parents):
            if place in checked:
                break
            checked.add(place)
            if (place / MARKER).exists():
                return f"the file {MARKER}"
            if telling([place.name]):
                return f"the name {place.name!r}"
    return None


def has_marker(folder: Path) -> bool:
    """Return True if the file `MARKER` is in a folder or any parent, spelled or after links."""
    return any((place / MARKER).exists() for route in routes(folder) for place in (route, *route.parents))


def marked(license: str) -> str:
    """Return a licence that names the data as restricted, so that the mark stays with each row."""
    return license if telling([license]) else f"{license} (credentialed)"


def first(records: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the name of the first restricted source in manifests, training records, results or comparisons."""
    for record in records:
        source = record.get("source")
        if isinstance(source, str):  # in results and comparisons
            source = {"name": source, "credentialed": record.get("credentialed")}
        manifests = [record.get("dataset_manifest"), *(one.get("manifest") for one in record.get("datasets") or ())]
        for named in (source or record, *((made or {}).get("source") or {} for made in manifests)):
            if is_credentialed(named):
                return str(named.get("name") or "its source")
        if record.get(KEY):
            return str(record[KEY])
    return None


def is_no(cell: Any) -> bool:
    """Return True if a cell of the column `credentialed` is empty or no; any other, even an unknown word, marks."""
    return cell is None or str(cell).strip().lower() in NO


def is_answer(cell: Any) -> bool:
    """Return True if a cell of the column `credentialed` is empty, yes or no."""
    return is_no(cell) or str(cell).strip().lower() in YES


def refuse_publishing(records: Iterable[Mapping[str, Any]], what: str) -> None:
    """Raise InputError if one of these records names a restricted source."""
    if name := first(records):
        raise InputError(
            f"{what} is not published: {name} is restricted data, whose terms forbid passing on texts, images and "
            f"often models trained on them. Share it only where its terms allow. {UNLESS}"
        )


def refuse_endpoints(name: str, models: Iterable[str], marked_by: str | None = None) -> None:
    """Raise InputError if one of these models is on another machine.

    Args:
        name: of the restricted source.
        models: as options name them.
        marked_by: the evidence that the source is restricted.
    """
    if remote := [model for model in models if is_remote(model)]:
        shown = ", ".join(
            re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?[^#]*", "", model)) for model in dict.fromkeys(remote)
        )
        raise InputError(
            f"Nothing was sent: {name} is restricted data, and {shown} is not on this machine. Serve the model here "
            "(http://localhost:8000/v1#model, by its address or as localhost: other names do not count), run it in "
            f"this process (local:org/model), or leave it out. {UNLESS}"
            + (f" (It is restricted by {marked_by}.)" if marked_by else "")
        )


def without_cells(faults: Sequence[Fault]) -> list[Fault]:
    """Return faults without their cells."""
    return [replace(fault, value=fault.value and NOT_SHOWN) for fault in faults]


@contextmanager
def hiding_cells(marked: bool) -> Iterator[None]:
    """Redact the faults of an InputError raised inside (`without_cells`), where the source is `marked`."""
    try:
        yield
    except InputError as error:
        if not marked or not error.faults:
            raise
        raise InputError(str(error).partition("\n")[0], without_cells(error.faults)) from None


def _letters(text: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", str(text)).casefold())
