"""Readers of published datasets: the rows they yield, and what several of them need."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import lzma
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from mmedpo import schema
from mmedpo.curation.rows import Reject
from mmedpo.data import hub, loading
from mmedpo.data.images import SUFFIXES
from mmedpo.data.tables import LARGEST, is_missing
from mmedpo.errors import Fault, InputError

REPORT_QUESTION = "Describe the findings in this chest X-ray."
TRIPLE = ("image", "question", "answer")
DEEPEST = 64  # most folders of a path in an archive
PACKED = 20  # most times that an archive is smaller inside another one
Tree = Path | zipfile.Path  # a folder on disk or in a ZIP file
# Heading of a report: capitals at the start of a line, then a colon.
HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&,()-]*?)[ \t]*:", re.MULTILINE)


class Picture(NamedTuple):
    """A row's image: its path in the new source folder (the image's id), and its file or bytes."""

    name: str
    content: Tree | bytes


class Hub(NamedTuple):
    """A dataset on the Hub, and its commit if the Hub answered."""

    name: str
    revision: str | None


# A reader yields rows of the source's table (`samples.COLUMNS` with "id", and a Picture as "image" or
# several as "images"), rejects and faults.
# A row that brings its pair has "rejected" (the response), "rejected_by", "clinical_relevance" in [0, 1], "task" by the
# schema's name, and "rejected_fault" if the response is unusable.
Item = dict[str, Any] | Reject | Fault


def left_out(row: str, reason: str, detail: str = "") -> Reject:
    """Return a reject for a row that gives no question; `reason` is for counting."""
    return Reject(row, "", reason, detail)


def hub_triples(source: Hub | Path) -> Iterator[Item]:
    """Yield rows of a dataset of images, questions and answers, on the Hub or as a folder of Parquet files.

    Such images have no names: an image's id is the digest of its file, a row's its split and position.

    Raises:
        InputError: the dataset cannot be loaded, or has other columns.
    """
    name = source.name if isinstance(source, Hub) else str(source)
    folder = hub_folder(source, ["data/*.parquet"]) if isinstance(source, Hub) else source
    for split, dataset in loading.load_splits(str(folder)).items():
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
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"  # Pillow goes by content
    picture = Picture(f"images/{hashlib.sha256(data).hexdigest()[:24]}{suffix}", data)
    return {"id": name, "image": picture, "question": row["question"], "answer": row["answer"], "split": split}


def hub_folder(source: Hub, patterns: list[str]) -> Path:
    """Download the matching files of a Hub dataset and return their folder.

    Raises:
        InputError: the download failed, or nothing matches.
    """
    from httpx2 import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = Path(
            snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=patterns)
        )
    except (HfHubHTTPError, HTTPError, OSError, ValueError) as error:
        why = hub.why_unread(error).removesuffix(".")
        raise InputError(f"{source.name} cannot be downloaded: {why}. Give a local copy as --source.") from error
    if not folder.is_dir():
        raise InputError(f"{source.name} has no files {' or '.join(patterns)}. Name the data set's own repository.")
    return folder


def listed(option: str, text: str, known: Sequence[str] = ()) -> list[str]:
    """Return the words of a comma-separated option.

    Raises:
        InputError: there is none, or one is not in `known`.
    """
    chosen = [word for part in text.split(",") if (word := part.strip())]
    if not chosen or (known and not set(chosen) <= set(known)):
        raise InputError(f"{option} is {text!r}; use {' or '.join(known) or 'one or more words'}, several with commas.")
    return chosen


def unzipped(tree: Tree) -> Tree:
    """Return the inside of a ZIP file; folders are returned unchanged.

    Raises:
        InputError: the ZIP file is damaged, packed far smaller inside another one, or holds paths that are too deep.
    """
    if not tree.is_file():
        return tree
    with whole_archives(tree.name):
        archive = zipfile.ZipFile(tree if isinstance(tree, Path) else _copied(tree))
        if any(name.count("/") > DEEPEST for name in archive.namelist()):  # `zipfile.Path` lists each parent
            raise InputError(f"{tree.name} holds a path of more than {DEEPEST} folders. Give the data set's own file.")
        return zipfile.Path(archive)


def _copied(inner: zipfile.Path) -> IO[bytes]:
    """Return a temporary copy of an archive in an archive, in which each step back would unpack it anew."""
    info = inner.root.getinfo(inner.at)
    if info.file_size > PACKED * max(info.compress_size, 1):
        raise InputError(f"{inner.name} unpacks to {info.file_size:,} bytes, too many for images. Download it again.")
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the archive
    with inner.open("rb") as packed:
        shutil.copyfileobj(packed, copy)
    return copy


@contextmanager
def whole_archives(name: str) -> Iterator[None]:
    """Raise InputError for damaged and encrypted ZIP files that are read inside the block."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise InputError(f"{name}: the ZIP file is damaged ({error}). Download it again.") from error
    except RuntimeError as error:  # zipfile's error for a missing password
        raise InputError(f"{name} cannot be read ({error}). Unpack it, and name the folder.") from error


def csv_rows(folder: Path, stem: str) -> Iterator[dict[str, str]]:
    """Yield rows of `stem`.csv or `stem`.csv.gz.

    Raises:
        InputError: neither file exists or can be read.
    """
    plain, packed = folder / f"{stem}.csv", folder / f"{stem}.csv.gz"
    if not plain.exists() and not packed.exists():
        raise InputError(f"{folder} has neither {plain.name} nor {packed.name}. Add one of them.")
    try:
        with plain.open("rb") if plain.exists() else gzip.open(packed) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError(f"{stem}.csv has more than {LARGEST:,} bytes, unpacked. Give the data set's own table.")
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")  # StringIO takes 4 bytes a letter
        for row in csv.DictReader(text):
            yield {name: "" if is_missing(cell) else cell for name, cell in row.items()}
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise InputError(f"{stem}.csv cannot be read to its end ({error}). Download it again.") from error


def sections(report: str) -> dict[str, str]:
    """Return a radiology report's sections by heading, white space normalised; of equal headings the last counts."""
    places = list(HEADING.finditer(report))
    ends = [*(place.start() for place in places[1:]), len(report)]
    return {
        place[1]: text
        for place, end in zip(places, ends, strict=False)
        if (text := " ".join(report[place.end() : end].split()))
    }
