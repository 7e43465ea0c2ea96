"""Data whose terms forbid passing it on: how it is known, and the questions that are asked before anything is sent.

A mark travels with it: source -> `manifest.json` ("source") and the licence of each row -> `training.json`
and, of whole models, `config.json` (`KEY`) -> `results.json` -> `comparison.json`, so that each later step knows
without trusting a folder's name. docs/credentialed.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedpo.errors import Fault, InputError
from mmedpo.runs.hosts import is_remote
from mmedpo.runs.options import FLAG

MARKER = "CREDENTIALED"  # a file of this name in a source folder marks the source
NAMES = ("mimic", "padchest", "chexpert", "credentialed")  # in a source's name or licence: letters and digits alone
KEY = "credentialed_source"  # of what a model was trained on, in its training.json and config.json
YES, NO = ("true", "yes", "1", "1.0"), ("false", "no", "0", "0.0")  # 1.0 is how pandas writes true
MARK_HELP = "The source may not be passed on (as MIMIC-CXR, PadChest and CheXpert): docs/credentialed.md."
UNLESS = f"If everybody who receives it has agreed to the same terms, say so with {FLAG}."


def is_credentialed(source: Mapping[str, Any]) -> bool:
    """Whether a recorded source ({"name", "license", "credentialed", ...}) may not leave: by its mark, or by name."""
    return bool(source.get("credentialed")) or telling([source.get("name"), source.get("license")]) is not None


def telling(texts: Iterable[Any]) -> str | None:
    """The first of these names and licences that tells of credentialed data; None: none does."""
    return next((str(text) for text in texts if any(known in _letters(text) for known in NAMES)), None)


def of_path(path: Path) -> str | None:
    """As `of_folders`, of a folder, or of a file and the folder that it is in."""
    known = telling([path.resolve().with_suffix("").name])
    return f"the name {known!r}" if known else of_folders([path.resolve()])


def of_folders(folders: Iterable[Path]) -> str | None:
    """Return what says that data in one of these folders is credentialed: the file `MARKER` there or in any folder
    above, or the name of one of them; None: nothing does.

    Args:
        folders: as they are after links.
    """
    asked: set[Path] = set()
    for folder in folders:
        for place in (folder, *folder.parents):
            if place in asked:
                break
            asked.add(place)
            if (place / MARKER).exists():
                return f"the file {MARKER}"
            if telling([place.name]):
                return f"the name {place.name!r}"
    return None


def has_marker(folder: Path) -> bool:
    """Whether the file `MARKER` is in a folder or in any above it, after links."""
    real = folder.resolve()
    return any((place / MARKER).exists() for place in (real, *real.parents))


def marked(license: str) -> str:
    """A licence that says what it is of, so that rows say so wherever they go and whatever their source is called."""
    return license if telling([license]) else f"{license} (credentialed)"


def first(records: Iterable[Mapping[str, Any]]) -> str | None:
    """The name of the first credentialed source in manifests, training records, results or comparisons; None: none."""
    for record in records:
        source = record.get("source")
        if isinstance(source, str):  # as results and comparisons name it
            source = {"name": source, "credentialed": record.get("credentialed")}
        trained_on = (record.get("dataset_manifest") or {}).get("source")
        for named in (source or record, trained_on or {}):
            if is_credentialed(named):
                return str(named.get("name") or "its source")
        if record.get(KEY):
            return str(record[KEY])
    return None


def is_yes(cell: Any) -> bool:
    """Whether a table's cell marks its source."""
    return str(cell).strip().lower() in YES


def is_answer(cell: Any) -> bool:
    """Whether a table's cell says that its source is marked, or that it is not."""
    return cell is None or str(cell).strip().lower() in (*YES, *NO)


def refuse_publishing(records: Iterable[Mapping[str, Any]], what: str) -> None:
    """Raise InputError if one of these records names a source that may not leave."""
    if name := first(records):
        raise InputError(
            f"{what} is not published: {name} is credentialed data, whose terms forbid passing on texts, images and "
            f"often what was trained on them. Hand it on where its terms allow. {UNLESS}"
        )


def refuse_endpoints(name: str, models: Iterable[str], marked_by: str | None = None) -> None:
    """Raise InputError if one of these models, as options name them, would have the source `name` sent elsewhere;
    `marked_by`: what says that it is credentialed."""
    if remote := [model for model in models if is_remote(model)]:
        shown = ", ".join(
            re.sub(r"//[^/@\s]*@", "//", re.sub(r"\?[^#]*", "", model)) for model in dict.fromkeys(remote)
        )
        raise InputError(
            f"Nothing was sent: {name} is credentialed data, and {shown} is not on this machine. Serve the model here "
            "(http://localhost:8000/v1#model, by its address or as localhost: other names do not count), run it in "
            f"this process (local:org/model), or leave it out. {UNLESS}"
            + (f" (It is known as credentialed data by {marked_by}.)" if marked_by else "")
        )


def unquoted(faults: Sequence[Fault]) -> list[Fault]:
    """Faults that quote no cell: what a sentence says was "got", and all from its first quotation mark to its last, is
    left out."""
    return [replace(fault, sentence=_unquoted(fault.sentence)) for fault in faults]


@contextmanager
def quoting_nothing(marked: bool) -> Iterator[None]:
    """Where `marked`, the faults of an InputError that is raised inside are `unquoted`."""
    try:
        yield
    except InputError as error:
        if not marked or not error.faults:
            raise
        raise InputError(str(error).partition("\n")[0], unquoted(error.faults)) from None


def _unquoted(sentence: str) -> str:
    kept = re.sub(r",? got .*", "", sentence, flags=re.S)
    return re.sub(r"['\"].*['\"]", "(not shown: credentialed data)", kept, flags=re.S)


def _letters(text: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", str(text)).casefold())
