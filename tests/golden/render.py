"""Render what a run wrote as short text that is the same on every machine, and compare it with what is expected.

Left out: versions, the commit, times, hardware, ports, digests of weights, and digests of files that hold any of these.
Numbers have at most six digits. Those that a trained model has a part in (`MEASURED`) are rounded to three and may
differ by two in the last: kernels of processors differ by about 1e-6 a step, which training and exponentials enlarge.
Images are SHA-256 digests of size, mode and pixels, so that another zlib changes nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import html
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EXPECTED = Path(__file__).parent / "expected"
WIDTH = 160
MEASURED = re.compile(r"(adapter|preference|visual|attention|page|hub/user/adapter)/|transcript")
HIDDEN = {
    "versions", "seconds", "hardware", "contents", "model_fingerprint", "adapter_sha256", "files_sha256",
    "train_runtime", "train_samples_per_second", "train_steps_per_second",
}  # fmt: skip
PLACES = (
    (re.compile(r"http://127\.0\.0\.1:\d+"), "http://hub"),
    (re.compile(r"\(\d+(\.\d+)? (k?B|bytes)\)"), "(SIZE)"),
    (re.compile(r"(download_size|dataset_size|num_bytes): \d+"), r"\1: SIZE"),
    (re.compile(r"data:[\w/+;,=-]{40,}"), "IMAGE"),
)
CARD_LINES = re.compile(r"^\| (versions|duration|hardware) \|.*\n", re.MULTILINE)
PROGRESS = re.compile(r"\d+% -?\d*:|\d+%\|.*\||^\{'")  # and a training's numbers, which trainer_state.json has
OWN = re.compile(r"[0-9a-f]{12,}|[\d.]+\+\w+|predictions\.jsonl [0-9a-f]{64}.*")  # a page's digests and versions
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+\.\d+")
BLOCKS = re.compile(r"<(style|script|svg)\b.*?</\1>|<!--.*?-->", re.DOTALL)


def files(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Return the texts of files below `root`, by the name of the expected file."""
    found = {}
    for path in paths:
        if read := READERS.get(path.name) or READERS.get(path.suffix):
            name = path.relative_to(root).as_posix()
            text = read(path, 3 if MEASURED.match(name) else 6)
            found[name + ".txt" * (path.suffix in (".parquet", ".html", ".png"))] = text
    return found


def terminal(text: str) -> str:
    """Return what a terminal showed, without progress and lines around tables."""
    lines = [re.sub("[│┃]", "|", line).rstrip() for line in text.replace("\r", "\n").splitlines()]
    kept = [line for line in lines if not PROGRESS.search(line) and not re.match("[╭╰┏┡└├]", line)]
    brief = ("Not for real use. ..." if line.startswith("Not for real use.") else line for line in kept)
    return _hidden("\n".join(re.sub(" {3,}", "  ", line) for line in brief).strip("\n") + "\n")


def pretty(value: Any, indent: str = "") -> str:
    """Return JSON in which whatever fits into a line is one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, dict | list):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        parts = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {pretty(each, inner)}" for key, each in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + pretty(each, inner) for each in value) + f"\n{indent}]"


def plain(value: Any, digits: int = 6) -> Any:
    """Return JSON data without `HIDDEN` keys, its numbers rounded."""
    if isinstance(value, dict):
        return {key: plain(each, digits) for key, each in value.items() if key not in HIDDEN}
    if isinstance(value, list):
        return [plain(each, digits) for each in value]
    return round(value, digits) + 0.0 if isinstance(value, float) else value  # and no -0.0


def same(name: str, expected: str, found: str) -> bool:
    """Return whether two texts agree; in `MEASURED` files numbers may differ in the third digit."""
    if expected == found or not MEASURED.match(name):
        return expected == found
    if NUMBER.sub("#", expected) != NUMBER.sub("#", found):
        return False
    pairs = zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True)
    values = ([float(number.replace("−", "-")) for number in pair] for pair in pairs)
    return all(abs(a - b) <= 0.002 + 1e-3 * abs(a) for a, b in values)


def difference(name: str, found: str) -> str:
    """Return a unified diff from the expected text to the one found; "" where they agree."""
    path = EXPECTED / name
    expected = path.read_text("utf-8") if path.exists() else ""
    return "" if same(name, expected, found) else _diff(expected, found, f"expected/{name}", f"found/{name}")


def write(found: dict[str, str]) -> None:
    """Write the texts that differ as the expected ones."""
    for name, text in found.items():
        if difference(name, text):
            (EXPECTED / name).parent.mkdir(parents=True, exist_ok=True)
            (EXPECTED / name).write_text(text, "utf-8")


def changes(old: Path, new: Path) -> str:
    """Return what the second of two texts has changed."""
    texts = (_text(path, 6) for path in (old, new))
    return _diff(*texts, "old", "new", n=0) + "\n"


def _diff(old: str, new: str, *names: str, n: int = 3) -> str:
    return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="", n=n))


def _hidden(text: str) -> str:
    for pattern, stands in PLACES:
        text = pattern.sub(stands, text)
    return text


def _json(path: Path, digits: int) -> str:
    return _hidden(pretty(plain(json.loads(path.read_text("utf-8")), digits))) + "\n"


def _json_lines(path: Path, digits: int) -> str:
    return _lines(map(json.loads, path.read_text("utf-8").splitlines()), digits)


def _lines(rows: Iterable[Any], digits: int) -> str:
    return "".join(f"{json.dumps(plain(row, digits), ensure_ascii=False)}\n" for row in rows)


def _parquet(path: Path, digits: int) -> str:
    import pyarrow.parquet as parquet

    return _lines(map(_row, parquet.read_table(path).to_pylist()), digits)


def columns(path: Path) -> str:
    """Return the names and types of a Parquet file's columns."""
    import pyarrow.parquet as parquet

    return f"{parquet.read_schema(path).remove_metadata()}\n"


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without empty cells, with digests for images and one text for each message and judgement."""
    for column in ("images", "rejected_images"):
        if row.get(column):
            row[column] = [pixels(image["bytes"]) for image in row[column]]
    for column in ("prompt", "chosen", "rejected"):
        if column in row:
            row[column] = [f"{message['role']}: {message['content']}" for message in row[column]]
    made = {key: cell for key, cell in row["provenance"].items() if cell is not None}
    if made.get("judgements"):
        made["judgements"] = [" | ".join(map(str, plain(each).values())) for each in made["judgements"]]
    return {name: cell for name, cell in {**row, "provenance": made}.items() if cell is not None}


def pixels(data: bytes) -> str:
    """Return size, mode and SHA-256 of an image's pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        digest = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        return f"{image.width}x{image.height} {image.mode} {digest}"


def _text(path: Path, digits: int) -> str:
    return _hidden(CARD_LINES.sub("", path.read_text("utf-8")))


def _page(path: Path, digits: int) -> str:
    """Return the words of a page, each line once; its numbers are in the JSON that it was made of."""
    text = re.sub(r"<[^>]+>", "\n", BLOCKS.sub("\n", path.read_text("utf-8")))
    lines = dict.fromkeys(line.strip() for line in html.unescape(text).splitlines())
    return (
        _hidden("\n".join(line for line in lines if re.search("[a-zA-Z]{2}", line) and not OWN.fullmatch(line))) + "\n"
    )


READERS = {
    ".json": _json, ".jsonl": _json_lines, ".parquet": _parquet, ".md": _text, ".tex": _text, ".yaml": _text,
    ".html": _page, "sheet.png": lambda path, digits: pixels(path.read_bytes()) + "\n",
}  # fmt: skip
