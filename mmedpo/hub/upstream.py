"""From a published dataset to a source folder: what its reader yields, what readers share, and the folder written."""

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
# is left out, or one that is faulty. A row whose pair exists already has "rejected", the wrong answer, "rejected_by",
# "clinical_relevance" in [0, 1], "task" by the schema's name, and maybe "rejected_fault", why it is no wrong answer.
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
    suffix = path.suffix.lower() if path.suffix.lower() in SUFFIXES else ".png"  # Pillow goes by the content
    picture = Picture(f"images/{hashlib.sha256(data).hexdigest()[:24]}{suffix}", data)
    return {"id": name, "image": picture, "question": row["question"], "answer": row["answer"], "split": split}


def hub_folder(source: Hub, patterns: list[str]) -> Path:
    """The files of a Hub dataset that match, downloaded. Raises InputError where that cannot be done."""
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
    """The words of an option that takes several with commas. Raises InputError for none, or one that is not `known`."""
    chosen = [word for part in text.split(",") if (word := part.strip())]
    if not chosen or (known and not set(chosen) <= set(known)):
        raise InputError(f"{option} is {text!r}; use {' or '.join(known) or 'one or more words'}, several with commas.")
    return chosen


def unzipped(tree: Tree) -> Tree:
    """The inside of a ZIP file; a folder as it is. Raises InputError where the file is no whole ZIP file."""
    if not tree.is_file():
        return tree
    with whole_archives(tree.name):
        return zipfile.Path(zipfile.ZipFile(tree if isinstance(tree, Path) else tree.open("rb")))


@contextmanager
def whole_archives(name: str) -> Iterator[None]:
    """Turn what broken and locked ZIP files raise inside the block into InputError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name} is no whole ZIP file ({error}); download it again.") from error
    except RuntimeError as error:  # how zipfile asks for a password
        raise InputError(f"{name} cannot be read ({error}); unpack it, and name the folder.") from error


def csv_rows(folder: Path, stem: str) -> Iterator[dict[str, str]]:
    """Rows of `stem`.csv or `stem`.csv.gz. Raises InputError where neither is there or readable."""
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
    """A radiology report's sections by heading in capitals, white space as one space; the last of a heading counts."""
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
    """Write a builder's rows as a source folder, unless an interrupted run has; beside it what `read_given` reads.

    Args:
        as_of: the `stamp` of what is read; an interrupted run's source of another one is written anew.
        about: to be recorded of the source, with the number of its rows.
        source_name: of the rows; by default what they say, or the builder's.
        folders: those that the user named, from which files are taken, after links.

    Raises:
        InputError: faulty rows (all of them), unless `skip_faulty`; files that are broken or of another layout.
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
    """What tells, without reading, that files may have changed: their names, sizes and times, or the Hub's revision."""
    told = [f"{source.name}@{source.revision}"] if isinstance(source, Hub) else []
    for place in (*([source] if isinstance(source, Path) else []), *also):
        for file in sorted([place, *place.rglob("*")]):
            if file.is_file():
                stat = file.stat()
                told.append(f"{file} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()


def read_given(folder: Path, about: dict[str, Any]) -> tuple[Given, dict[str, Any]]:
    """What came with a written source, and what is to be recorded of it (`about` where none was written)."""
    ledger = Ledger(folder.with_suffix(".ledger"))
    given, recorded = ledger.get("given"), ledger.get("about")
    ledger.close()
    if given is None:
        return Given(), about
    return Given(**{**given, "rejects": [Reject(**reject) for reject in given["rejects"]]}), recorded


def _as_published(items: Iterable[Item], name: str) -> Iterator[Item]:
    """The items; what their reader stumbles over becomes InputError."""
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
    """The images of a source that is written: `names`, and `homes`, the folders that their files really lie in."""

    def __init__(self, folder: Path, folders: Sequence[Path]) -> None:
        self.folder, self.folders = folder, folders
        self.names: set[str] = set()
        self.homes: set[Path] = set()

    def place(self, picture: Picture, row: str) -> Fault | None:
        """Put an image where the table says it is, once: the file itself (a hard link), a link, or the bytes."""
        content = picture.content
        if picture.name in self.names:
            return None
        if safe_paths.leads_out(picture.name):
            return Fault(row, "image", f"{picture.name!r} {safe_paths.OUTSIDE}")
        content = content if isinstance(content, bytes) else _as_spelt(content)
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
        target.hardlink_to(file)  # is no link that leads out of the source wherever that is kept
    except OSError:  # another disk, or somebody else's file
        target.symlink_to(file)


def _write(
    items: Iterable[Item], name: str, files: Placed, source_name: str | None = None
) -> tuple[int, Given, list[Fault]]:
    """The table and its images; returns how many rows were read, what comes with them, and the faulty ones."""
    given, faults, rows = Given(), [], 0
    ids: set[str] = set()
    with (files.folder / TABLE).open("w", encoding="utf-8") as lines:
        for item in items:
            rows += 1
            if isinstance(item, Reject):
                given.rejects.append(item)
            elif isinstance(item, Fault):
                faults.append(item)
            elif item["id"] in ids:  # whose wrong answer would be another question's
                faults.append(Fault(item["id"], "id", "was used by a row before; make ids unique"))
            elif fault := files.place(item["image"], item["id"]):
                faults.append(fault)
            else:
                ids.add(item["id"])
                row = {"source": name, **item, "image": item["image"].name}
                row["source"] = source_name or row["source"]
                if row.get("answer") == "None":  # SLAKE's word; in a source it would be a missing value
                    row["answer"] = "none"
                _bring(row, given)
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows, given, faults


def _bring(row: dict[str, Any], given: Given) -> None:
    """Move the wrong answer that a row came with from the row to `given`, or why it is none."""
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


def _as_spelt(file: Tree) -> Tree:
    """The file under the form of its name that is there, composed or decomposed; as it is where none is."""
    folder: Any = file.parent
    forms: list[Tree] = [file, *(folder / unicodedata.normalize(form, file.name) for form in ("NFC", "NFD"))]
    return next((found for found in forms if found.is_file()), file)
