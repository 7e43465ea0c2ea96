"""Write a source folder from a published dataset: the rows that readers yield, helpers for readers, the writer."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import shutil
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from mmedpo import schema
from mmedpo.curation.pipeline import FAULTY_ROW
from mmedpo.curation.rows import Given, Reject
from mmedpo.data import credentialed, hub, image_modes, loading, placeholders, safe_paths, tables
from mmedpo.data.images import SUFFIXES
from mmedpo.data.tables import LARGEST, is_missing
from mmedpo.errors import Fault, InputError
from mmedpo.runs.ledger import Ledger

REPORT_QUESTION = "Describe the findings in this chest X-ray."
TABLE = "samples.jsonl"
TRIPLE = ("image", "question", "answer")
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


# A reader yields rows of the source's table (`samples.COLUMNS` with "id" and a Picture as "image"), rejects and faults.
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
        raise InputError(
            f"{source.name} holds nothing like {' or '.join(patterns)}; give the data set's own repository."
        )
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
        InputError: the ZIP file is damaged.
    """
    if not tree.is_file():
        return tree
    with whole_archives(tree.name):
        return zipfile.Path(zipfile.ZipFile(tree if isinstance(tree, Path) else tree.open("rb")))


@contextmanager
def whole_archives(name: str) -> Iterator[None]:
    """Raise InputError for damaged and encrypted ZIP files that are read inside the block."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name} is no whole ZIP file ({error}); download it again.") from error
    except RuntimeError as error:  # zipfile's error for a missing password
        raise InputError(f"{name} cannot be read ({error}); unpack it, and name the folder.") from error


def csv_rows(folder: Path, stem: str) -> Iterator[dict[str, str]]:
    """Yield rows of `stem`.csv or `stem`.csv.gz.

    Raises:
        InputError: neither file exists or can be read.
    """
    plain, packed = folder / f"{stem}.csv", folder / f"{stem}.csv.gz"
    if not plain.exists() and not packed.exists():
        raise InputError(f"{plain} is missing, and {packed.name} too; both would do.")
    try:
        with plain.open("rb") if plain.exists() else gzip.open(packed) as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise InputError(f"{stem}.csv has more than {LARGEST:,} bytes, unpacked. Give the data set's own table.")
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{stem}.csv cannot be read to its end ({error}); download it again.") from error
    for row in csv.DictReader(io.StringIO(text, newline="")):
        yield {name: "" if is_missing(cell) else cell for name, cell in row.items()}


def sections(report: str) -> dict[str, str]:
    """Return a radiology report's sections by heading, white space normalised; of equal headings the last counts."""
    places = list(HEADING.finditer(report))
    ends = [*(place.start() for place in places[1:]), len(report)]
    return {
        place[1]: text
        for place, end in zip(places, ends, strict=False)
        if (text := " ".join(report[place.end() : end].split()))
    }


def write_source(
    items: Iterable[Item] | None, name: str, folder: Path, skip_faulty: bool, about: Mapping[str, Any],
    source_name: str | None = None, folders: Sequence[Path] = (), as_of: str = "",
) -> None:  # fmt: skip
    """Write a builder's rows as a source folder, with a ledger beside it for `read_given`.

    An interrupted run's finished source is reused.

    Args:
        as_of: `stamp` of the builder's source; a source folder written from another one is replaced.
        about: facts to record about the source; the number of its rows is added.
        source_name: of the rows; by default their own, or the builder's.
        folders: named by the user; files that links lead to must lie in them.

    Raises:
        InputError: rows are faulty (all are listed) and `skip_faulty` is false; files are damaged or of another layout.
    """
    ledger = Ledger(folder.with_suffix(".ledger"))
    if items is not None and not (ledger.get("as_of") == as_of and folder.exists()):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with whole_archives(name):
            files = Placed(folder, folders)
            rows, given, faults = _write(_as_published(items, name), name.replace("_", "-"), files, source_name)
        if faults and not skip_faulty:
            count = len({fault.row for fault in faults})
            raise InputError(
                f"Faulty rows in {name}: {count}. Mend them, or leave them out with --skip-faulty.", faults
            )
        if rows == len(faults) + len(given.rejects):
            counts = Counter(reject.reason for reject in given.rejects)
            raise InputError(f"None of {rows} rows of {name} gives a question: {dict(counts.most_common())}.", faults)
        given.rejects.extend(Reject(fault.row, "", FAULTY_ROW, str(fault)) for fault in faults)
        marked = {"credentialed": True} if credentialed.of_folders(files.homes) else {}
        ledger.update({"given": asdict(given), "about": {**about, **marked, "rows": rows}, "as_of": as_of})
    ledger.close()


def stamp(source: Hub | Path, also: Iterable[Path] = ()) -> str:
    """Return a digest of file names, sizes and times, or of the Hub's revision, that changes if files change."""
    told = [f"{source.name}@{source.revision}"] if isinstance(source, Hub) else []
    for place in (*([source] if isinstance(source, Path) else []), *also):
        for file in sorted([place, *place.rglob("*")]):
            if file.is_file():
                stat = file.stat()
                told.append(f"{file} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def read_given(folder: Path, about: dict[str, Any]) -> tuple[Given, dict[str, Any]]:
    """Return the precomputed results of a written source and its facts; `about` if none was written."""
    ledger = Ledger(folder.with_suffix(".ledger"))
    given, recorded = ledger.get("given"), ledger.get("about")
    ledger.close()
    if given is None:
        return Given(), about
    return Given(**{**given, "rejects": [Reject(**reject) for reject in given["rejects"]]}), recorded


def _as_published(items: Iterable[Item], name: str) -> Iterator[Item]:
    """Yield the items; turn errors of their reader into InputError."""
    number = 0
    try:
        for item in items:
            yield item
            number += 1
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"After row {number}, {name} is not as its authors publish it ({what}); give the data set's own files."
        ) from error


class Placed:
    """Images placed in a new source: `names`, and `homes`, the real folders of their files."""

    def __init__(self, folder: Path, folders: Sequence[Path]) -> None:
        self.folder, self.folders = folder, folders
        self.names: set[str] = set()
        self.homes: set[Path] = set()

    def place(self, picture: Picture, row: str) -> Fault | None:
        """Put an image into the source, once: as hard link, symbolic link or bytes."""
        content = picture.content
        if picture.name in self.names:
            return None
        if safe_paths.leads_out(picture.name):
            return Fault(row, "image", f"{picture.name!r} {safe_paths.OUTSIDE}")
        content = content if isinstance(content, bytes) else _existing_spelling(content)
        if not isinstance(content, bytes) and not content.is_file():
            return Fault(row, "image", f"{picture.name} is missing in the source; add the file")
        if isinstance(content, zipfile.Path) and (size := tables.size_in(content)) > image_modes.most_bytes():
            return Fault(
                row, "image", f"{picture.name} has {size:,} bytes, unpacked, which no image needs; drop the row"
            )
        target = self.folder / picture.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, Path):
            target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        elif not safe_paths.is_below(real := content.resolve(), self.folders):
            return Fault(row, "image", f"{picture.name!r} {safe_paths.LINKED}")
        else:
            _link(target, real)
            self.homes.add(real.parent)
        self.names.add(picture.name)
        return None


def _link(target: Path, file: Path) -> None:
    try:
        target.hardlink_to(file)  # a hard link stays valid wherever the source is moved
    except OSError:  # another disk, or a file of another owner
        target.symlink_to(file)


def _write(
    items: Iterable[Item], name: str, files: Placed, source_name: str | None = None
) -> tuple[int, Given, list[Fault]]:
    """Write table and images; return the number of rows read, precomputed results, and faults."""
    given, faults, rows = Given(), [], 0
    ids: set[str] = set()
    with (files.folder / TABLE).open("w", encoding="utf-8") as lines:
        for item in items:
            rows += 1
            if isinstance(item, Reject):
                given.rejects.append(item)
            elif isinstance(item, Fault):
                faults.append(item)
            elif item["id"] in ids:  # its rejected response would go to another question
                faults.append(Fault(item["id"], "id", "was used by a row before; make ids unique"))
            elif fault := files.place(item["image"], item["id"]):
                faults.append(fault)
            else:
                ids.add(item["id"])
                row = {"source": name, **item, "image": item["image"].name}
                row["source"] = source_name or row["source"]
                if row.get("answer") == "None":  # an answer of SLAKE; a source reads it as a missing value
                    row["answer"] = "none"
                _bring(row, given)
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows, given, faults


def _bring(row: dict[str, Any], given: Given) -> None:
    """Move a row's own rejected response, or the reason why it is unusable, to `given`."""
    if "rejected" not in row:
        return
    rejected, made_by, score = (row.pop(key) for key in ("rejected", "rejected_by", "clinical_relevance"))
    known = row.pop("rejected_fault", None)
    sentence = placeholders.fault(rejected) or schema.text_fault(row["answer"], rejected, row["task"]) or known
    if sentence:
        given.answers[row["id"]] = {"reason": sentence, "detail": rejected}
    else:
        given.answers[row["id"]] = {"text": rejected, "made_by": made_by}
        given.scores[row["id"]] = score


def _existing_spelling(file: Tree) -> Tree:
    """Return the file under the Unicode form of its name that exists; unchanged if none does."""
    folder: Any = file.parent
    forms: list[Tree] = [file, *(folder / unicodedata.normalize(form, file.name) for form in ("NFC", "NFD"))]
    return next((found for found in forms if found.is_file()), file)
