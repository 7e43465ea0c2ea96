"""Reader of a source's table (JSON lines, a JSON list or CSV), and the values of its cells."""

from __future__ import annotations

import ast
import csv
import io
import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmedpo.data.text import folded
from mmedpo.errors import InputError
from mmedpo.runs import bounded_json

LARGEST = 2**29  # bytes of a table in an archive; the largest of MIMIC-CXR has 0.1 GB
FAULT = "_fault"  # key of a row's fault: (column, sentence) or (column, sentence, value)
WIDE = ("(row)", "has more cells than the table has columns; put texts with commas in quotes")
# Missing values as pandas writes and reads them, in lower case.
MISSING = frozenset((
    "", "nan", "-nan", "nat", "none", "null", "na", "n/a", "<na>", "#n/a", "#na", "#n/a n/a",
    "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan",
))  # fmt: skip
TRUTH = {"True": True, "TRUE": True, "False": False, "FALSE": False}  # in a CSV of pandas, R or Excel
NO_OBJECT = ("(row)", "is not an object; each row is one JSON object")


def find_table(path: Path) -> Path:
    """Return the only table of a source folder, or `path` itself if it is a file.

    Raises:
        InputError: no table, or several.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"The source {path} does not exist; give a folder with a table of questions and images.")
    tables = _tables(path)
    if len(tables) != 1:
        found = f"{len(tables)} tables ({', '.join(table.name for table in tables)})" if tables else "no table"
        raise InputError(f"{path} has {found}; a source is one .jsonl, .json or .csv file with its images beside it.")
    return tables[0]


def has_table(folder: Path) -> bool:
    """Return True if a folder holds at least one table."""
    return bool(_tables(folder))


def _tables(folder: Path) -> list[Path]:
    return [file for suffix in ("jsonl", "json", "csv") for file in sorted(folder.glob(f"*.{suffix}"))]


def json_file(file: Path | zipfile.Path) -> Any:
    """Return the value of a JSON file, with or without a byte order mark.

    Raises:
        InputError: not JSON in UTF-8, or larger than `LARGEST` in a ZIP file.
    """
    try:
        return bounded_json.loads(_text(file))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}. Download or write it again.") from None


def size_in(file: zipfile.Path) -> int:
    """Return the unpacked bytes of a file in a ZIP file, by its directory; `zipfile` reads no more than that."""
    return file.root.getinfo(file.at).file_size


def _text(file: Path | zipfile.Path) -> str:
    if isinstance(file, zipfile.Path) and (size := size_in(file)) > LARGEST:
        raise InputError(f"{file} has {size:,} bytes, decompressed; at most {LARGEST:,} are read. Split the source.")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it as UTF-8.") from None


def read_table(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row); an unreadable line becomes {FAULT: (column, sentence)}.

    Raises:
        InputError: the file cannot be read.
    """
    if table.suffix == ".csv":
        text = _text(table)
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        rows = csv.DictReader(io.StringIO(text))
        _check_header(table, rows.fieldnames or [])
        for number, row in enumerate(rows, start=2):
            wide = {FAULT: WIDE} if row.pop(None, None) else {}
            yield f"{table.name}:{number}", _parse_truth_values(row) | wide
    elif table.suffix == ".json":
        rows = json_file(table)
        if not isinstance(rows, list):
            raise InputError(f"{table} contains a {type(rows).__name__}; it must be a list with one object a question.")
        for number, row in enumerate(rows, start=1):
            yield f"{table.name}[{number}]", row if isinstance(row, dict) else {FAULT: NO_OBJECT}
    else:
        for number, line in enumerate(_lines(table), start=1):
            if line.strip():
                try:
                    row = bounded_json.loads(line)
                except ValueError as error:
                    row = {FAULT: ("(row)", f"is not JSON ({error}); each line is one JSON object")}
                yield f"{table.name}:{number}", row if isinstance(row, dict) else {FAULT: NO_OBJECT}


def _lines(table: Path) -> Iterator[str]:
    try:
        with table.open(encoding="utf-8-sig") as lines:
            yield from (line.removesuffix("\n") for line in lines)
    except UnicodeDecodeError:
        _text(table)  # raises with the position in the file


def _parse_truth_values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: TRUTH.get(cell.strip(), cell) if isinstance(cell, str) else cell for name, cell in row.items()}


def _check_header(table: Path, names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise InputError(f"{table} has {names.count(twice[0])} columns {twice[0]!r}. Rename or remove all but one.")


def is_missing(cell: Any) -> bool:
    """Return True if a cell holds no value: null, NaN, blank, or a spelling in `MISSING`."""
    if isinstance(cell, str):
        return folded(cell) in MISSING
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def as_text(cell: Any) -> str:
    """Return a cell as text, "" for None. Lone surrogates, which UTF-8 cannot hold, are replaced."""
    return "" if cell is None else str(cell).encode("utf-8", "replace").decode("utf-8")


def parsed(cell: Any) -> Any:
    """Return a cell, or the list or object that its text spells in JSON or Python."""
    if isinstance(cell, str) and (cell.strip()[:1], cell.strip()[-1:]) in (("[", "]"), ("{", "}")):
        for read in (bounded_json.loads, _literal):
            with suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
                return read(cell.strip())
    return cell


def _literal(text: str) -> Any:
    value = ast.literal_eval(text)
    if bounded_json.is_deep(value):
        raise ValueError("it nests too deep")
    return value


def form_fault(cell: Any) -> tuple[str, str | None] | None:
    """Return why a cell is no text (or number to be read as text), as sentence and value of a fault, or None."""
    value = parsed(cell)
    if isinstance(value, bool):
        remedy = "write a word (yes or no; in JSON in quotes, true and false in CSV in small letters)"
        return f"is a truth value, not a text; {remedy}", str(value)
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"is {kind}, not one text; write one text, or a row for each", repr(cell)
    if isinstance(value, float) and math.isinf(value):
        return "is not a finite number; write a text", repr(cell)
    return None
