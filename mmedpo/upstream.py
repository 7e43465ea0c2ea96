"""What the readers of published datasets share: how they say what they found, archives, tables, reports."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mmedpo import schema
from mmedpo.curation.rows import Reject
from mmedpo.errors import Fault, InputError
from mmedpo.images import SUFFIXES

REPORT_QUESTION = "Describe the findings in this chest X-ray."
TRIPLE = ("image", "question", "answer")
Tree = Path | zipfile.Path  # a folder, or one inside a ZIP file
# A report's headings: capitals at the start of a line, then a colon.
HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&,()-]*?)[ \t]*:", re.MULTILINE)


class Picture(NamedTuple):
    """A row's image: its path in the source folder that is made (the image's id), and the file or its bytes."""

    name: str
    content: Tree | bytes


class Hub(NamedTuple):
    """A dataset on the Hub, and its commit where the Hub could be asked."""

    name: str
    revision: str | None


# What a reader yields: a row of the source's table (`samples.COLUMNS`, with "id", and a Picture as "image"), a row that
# is left out, or one that is faulty. A row whose pair exists already has "rejected", the wrong answer (or why it is
# none), "rejected_by", "clinical_relevance" in [0, 1], and "task" by the schema's name.
Item = dict[str, Any] | Reject | Fault


def left_out(row: str, reason: str, detail: str = "") -> Reject:
    """A row that gives no question; `reason` is for counting."""
    return Reject(row, "", reason, detail)


def hub_triples(source: Hub | Path) -> Iterator[Item]:
    """Rows of a dataset of images, questions and answers, on the Hub or as a folder with its Parquet files.

    Images have no names there: an image is known by the digest of its file, a row by its split and place.

    Raises:
        InputError: it cannot be loaded, or has other columns.
    """
    name, revision = source if isinstance(source, Hub) else (str(source), None)
    for split, dataset in schema.load_splits(name, revision=revision).items():
        if missing := set(TRIPLE) - set(dataset.column_names):
            held = ", ".join(dataset.column_names)
            raise InputError(f"{name} has no column {', '.join(sorted(missing))}; its columns are {held}.")
        for place, row in enumerate(schema.undecoded(dataset)):
            yield _triple(f"{split}-{place}", split, row)


def _triple(name: str, split: str, row: Mapping[str, Any]) -> Item:
    if row["image"] is None:
        return Fault(name, "image", "is empty; every row needs an image")
    path = Path(row["image"]["path"] or "")
    data = row["image"]["bytes"] or path.read_bytes()
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"  # Pillow goes by the content
    picture = Picture(f"images/{hashlib.sha256(data).hexdigest()[:24]}{suffix}", data)
    return {"id": name, "image": picture, "question": row["question"], "answer": row["answer"], "split": split}


def hub_folder(source: Hub, patterns: list[str]) -> Path:
    """The files of a Hub dataset that match, downloaded. Raises InputError where that cannot be done."""
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(
            snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source.name} cannot be downloaded: {why} Give a local copy as --source.") from error


def unzipped(tree: Tree) -> Tree:
    """The inside of a ZIP file; a folder as it is. Raises InputError where the file is no whole ZIP file."""
    if not tree.is_file():
        return tree
    with whole_archives(tree.name):
        return zipfile.Path(zipfile.ZipFile(tree if isinstance(tree, Path) else tree.open("rb")))


@contextmanager
def whole_archives(name: str) -> Iterator[None]:
    """Turn what broken ZIP files raise inside the block into InputError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name} is no whole ZIP file ({error}); download it again.") from error


def csv_rows(folder: Path, stem: str) -> Iterator[dict[str, str]]:
    """Rows of `stem`.csv or `stem`.csv.gz. Raises InputError where neither is there or readable."""
    plain, packed = folder / f"{stem}.csv", folder / f"{stem}.csv.gz"
    if not plain.exists() and not packed.exists():
        raise InputError(f"{plain} is missing, and {packed.name} too; both would do.")
    try:
        opened = plain.open(encoding="utf-8", newline="") if plain.exists() else gzip.open(packed, "rt", newline="")
        with opened as file:
            yield from csv.DictReader(file)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{stem}.csv cannot be read to its end ({error}); download it again.") from error


def sections(report: str) -> dict[str, str]:
    """A radiology report's sections by heading in capitals, white space as one space; the last of a heading counts."""
    places = list(HEADING.finditer(report))
    ends = [*(place.start() for place in places[1:]), len(report)]
    return {
        place[1]: text
        for place, end in zip(places, ends, strict=True)
        if (text := " ".join(report[place.end() : end].split()))
    }
