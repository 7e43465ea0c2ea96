"""Write a source folder from the rows that the reader of a published dataset yields."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from mmedpo import schema
from mmedpo.curation.rows import Precomputed, Reject
from mmedpo.curation.weigh import FAULTY_ROW
from mmedpo.data import credentialed, image_modes, placeholders, safe_paths, tables
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import Hub, Item, Picture, Tree, whole_archives
from mmedpo.runs.ledger import Ledger

TABLE = "samples.jsonl"
# Errors of a name from data: too long, a folder's, or below another file's.
IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)


def write_source(
    items: Iterable[Item] | None, name: str, folder: Path, skip_faulty: bool, about: Mapping[str, Any],
    source_name: str | None = None, folders: Sequence[Path] = (), as_of: str = "",
) -> None:  # fmt: skip
    """Write a builder's rows as a source folder, with a ledger beside it for `read_precomputed`.

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
            rows, precomputed, faults = _write(_as_published(items, name), name.replace("_", "-"), files, source_name)
        marked = {"credentialed": True} if credentialed.of_folders(files.homes) else {}
        with credentialed.hiding_cells(bool(marked)):
            if faults and not skip_faulty:
                count = len({fault.row for fault in faults})
                raise InputError(
                    f"Faulty rows in {name}: {count}. Correct them, or leave them out with --skip-faulty.", faults
                )
            if rows == len(faults) + len(precomputed.rejects):
                counts = dict(Counter(reject.reason for reject in precomputed.rejects).most_common())
                raise InputError(f"None of {rows} rows of {name} gives a question: {counts}.", faults)
        precomputed.rejects.extend(Reject(fault.row, "", FAULTY_ROW, str(fault)) for fault in faults)
        ledger.update({"given": asdict(precomputed), "about": {**about, **marked, "rows": rows}, "as_of": as_of})
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


def read_precomputed(folder: Path, about: dict[str, Any]) -> tuple[Precomputed, dict[str, Any]]:
    """Return the precomputed results of a written source and its facts; `about` if none was written."""
    ledger = Ledger(folder.with_suffix(".ledger"))
    precomputed, recorded = ledger.get("given"), ledger.get("about")
    ledger.close()
    if precomputed is None:
        return Precomputed(), about
    return Precomputed(**{**precomputed, "rejects": [Reject(**reject) for reject in precomputed["rejects"]]}), recorded


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
            f"{name}: after row {number}, it differs from what its authors publish ({what}). Give the data set's own "
            "files."
        ) from error


class Placed:
    """Images placed in a new source: `names`, and `homes`, the folders of their files."""

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
            return Fault(row, "image", safe_paths.OUTSIDE, repr(picture.name))
        content = content if isinstance(content, bytes) else _existing_spelling(content)
        if not isinstance(content, bytes) and not content.is_file():
            return Fault(row, "image", "is missing in the source; add the file", repr(picture.name))
        if isinstance(content, zipfile.Path) and (size := tables.size_in(content)) > image_modes.most_bytes():
            return Fault(
                row, "image", f"has {size:,} bytes unpacked, too many for an image; drop the row", repr(picture.name)
            )
        if isinstance(content, Path) and not safe_paths.is_below(content.resolve(), self.folders):
            return Fault(row, "image", safe_paths.LINKED, repr(picture.name))
        target = self.folder / picture.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                _link(target, content.resolve())
            else:
                target.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        except OSError as error:
            if error.errno not in IMPOSSIBLE:
                raise
            return Fault(
                row, "image", f"cannot be the name of a file ({error.strerror}); rename it", repr(picture.name)
            )
        if isinstance(content, Path):
            self.homes |= safe_paths.parents([content])
        self.names.add(picture.name)
        return None


def _link(target: Path, file: Path) -> None:
    try:
        target.hardlink_to(file)  # a hard link stays valid wherever the source is moved
    except OSError:  # another disk, or a file of another owner
        target.symlink_to(file)


def _write(
    items: Iterable[Item], name: str, files: Placed, source_name: str | None = None
) -> tuple[int, Precomputed, list[Fault]]:
    """Write table and images; return the number of rows read, precomputed results, and faults."""
    precomputed, faults, rows = Precomputed(), [], 0
    ids: set[str] = set()
    with (files.folder / TABLE).open("w", encoding="utf-8") as lines:
        for item in map(_storable, items):
            rows += 1
            if isinstance(item, Reject):
                precomputed.rejects.append(item)
            elif isinstance(item, Fault):
                faults.append(item)
            elif item["id"] in ids:  # its rejected response would go to another question
                faults.append(Fault(item["id"], "id", "is the id of an earlier row; make ids unique"))
            elif fault := next(filter(None, (files.place(one, item["id"]) for one in _pictures(item))), None):
                faults.append(fault)
            else:
                ids.add(item["id"])
                shown = [picture.name for picture in _pictures(item)]
                row = {"source": name, **item, **({"images": shown} if "images" in item else {"image": shown[0]})}
                row["source"] = source_name or row["source"]
                if row.get("answer") == "None":  # an answer of SLAKE; a source reads it as a missing value
                    row["answer"] = "none"
                _bring(row, precomputed)
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
    return rows, precomputed, faults


def _pictures(item: Mapping[str, Any]) -> Sequence[Picture]:
    found: Sequence[Picture] = item["images"] if "images" in item else [item["image"]]
    return found


def _storable(item: Item) -> Item:
    """Return an item whose texts UTF-8 can hold: lone surrogates, which JSON may escape, are replaced."""
    if not isinstance(item, dict):
        texts: dict[str, Any] = {part.name: tables.as_text(getattr(item, part.name)) for part in fields(item)}
        return replace(item, **texts)
    text = json.dumps(
        {name: value for name, value in item.items() if name not in ("image", "images")}, ensure_ascii=False
    )
    return {**item, **json.loads(text.encode("utf-8", "replace"))}


def _bring(row: dict[str, Any], precomputed: Precomputed) -> None:
    """Move a row's own rejected response, or the reason why it is unusable, to `precomputed`."""
    if "rejected" not in row:
        return
    rejected, made_by, score = (row.pop(key) for key in ("rejected", "rejected_by", "clinical_relevance"))
    known = row.pop("rejected_fault", None)
    sentence = (
        placeholders.fault(rejected)
        or schema.text_fault(row["answer"], rejected, row["task"], row.get("options"))
        or known
    )
    if sentence:
        precomputed.answers[row["id"]] = {"reason": sentence, "detail": rejected}
    else:
        precomputed.answers[row["id"]] = {"text": rejected, "made_by": made_by}
        precomputed.scores[row["id"]] = score


def _existing_spelling(file: Tree) -> Tree:
    """Return the file under the Unicode form of its name that exists; unchanged if none does."""
    folder: Any = file.parent
    forms: list[Tree] = [file, *(folder / unicodedata.normalize(form, file.name) for form in ("NFC", "NFD"))]
    return next((found for found in forms if found.is_file()), file)
