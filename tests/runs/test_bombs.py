"""Small files and replies that are made to grow or to be read for ever: refused in time, as their row's fault."""

from __future__ import annotations

import gzip
import io
import json
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mmedpo.data import tables
from mmedpo.data.images import LIMIT_VARIABLE, fault, pixels, read_heat
from mmedpo.data.sources import read_source, refuse_faults
from mmedpo.data.tables import read_table
from mmedpo.errors import InputError
from mmedpo.evaluation.score import read_by_id
from mmedpo.hub import readers, upstream
from mmedpo.models.chat import parse_json
from mmedpo.runs.json_files import read_json
from tests.pictures import check_refused, deep, dicom, saved, sixteen_bit_colour

DEEP, DIGITS = '{"a":' * 500 + "1" + "}" * 500, "9" * 5000


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return lambda count: monkeypatch.setenv(LIMIT_VARIABLE, str(count))


def deflated(padding: int) -> bytes:
    """A DICOM file of 2 x 3 pixels and of `padding` further bytes, deflated."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.array([[0, 100, 200], [300, 400, 500]], dtype=np.uint16))))
    data.add_new(0x00091001, "OB", bytes(padding))
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_a_deflated_dicom_is_inflated_within_the_limit(tmp_path: Path, limit: Callable[[int], None]) -> None:
    limit(10**6)  # pixels: 8 MB
    (tmp_path / "small.dcm").write_bytes(deflated(10**6))
    assert pixels(tmp_path / "small.dcm").tolist() == [[0, 51, 102], [153, 204, 255]]
    bomb = deflated(40 * 10**6)
    assert len(bomb) < 50_000
    (tmp_path / "a.dcm").write_bytes(bomb)
    tracemalloc.start()
    said = fault(tmp_path / "a.dcm")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "larger than the limit of 8000000 bytes when decompressed" in str(said)
    assert peak < 8 * 10**6
    check_refused(tmp_path / "a.dcm", None, f"too large .*set {LIMIT_VARIABLE}")


WIDE = [("uint16", "PNG"), ("uint16", "TIFF"), ("int32", "TIFF"), ("float32", "TIFF")]


@pytest.mark.parametrize(("dtype", "format"), WIDE)
def test_more_than_8_bits_count_by_their_bytes(
    tmp_path: Path, limit: Callable[[int], None], dtype: str, format: str
) -> None:
    data = deep(dtype, format)
    count = int(np.prod(Image.open(io.BytesIO(data)).size))
    limit(count - 1)  # Pillow itself would take twice as many pixels
    check_refused(tmp_path / f"a.{format.lower()[:4]}", data, f"{count} pixels of 8 bytes exceed the limit")
    assert fault(saved("RGB")) is None
    limit(count)
    assert fault(data) is None


def test_16_bits_of_colour_count_too(tmp_path: Path, limit: Callable[[int], None]) -> None:
    count = int(np.prod(Image.open(io.BytesIO(sixteen_bit_colour())).size))
    limit(count - 1)
    check_refused(tmp_path / "a.png", sixteen_bit_colour(), f"{count} pixels of 8 bytes exceed the limit")
    limit(count)
    assert fault(tmp_path / "a.png") is None


def test_dicom_samples_and_bits_count(tmp_path: Path, limit: Callable[[int], None]) -> None:
    data = dicom(np.zeros((20, 30), np.uint16))
    limit(599)
    check_refused(tmp_path / "a.dcm", data, "600 pixels of 8 bytes exceed")
    limit(600)
    assert fault(tmp_path / "a.dcm") is None


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "iCCP"])
def test_packed_notes_of_a_png_are_bounded(tmp_path: Path, chunk: str) -> None:
    note, notes = "x" * (32 * 2**20), PngImagePlugin.PngInfo()
    options: dict[str, Any] = {"icc_profile": note.encode()} if chunk == "iCCP" else {"pnginfo": notes}
    if chunk == "zTXt":
        notes.add_text("note", note, zip=True)
    elif chunk == "iTXt":
        notes.add_itxt("note", note, zip=True)
    data = saved("RGB", **options)
    assert len(data) < 10**6
    tracemalloc.start()
    fault(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50"])  # JPEG 2000, JPEG
@pytest.mark.parametrize(("shape", "said"), [((20, 30), None), ((3000, 3000), "another size than its header")])
def test_compressed_pixels_have_the_size_that_the_dicom_header_says(
    syntax: str, shape: tuple[int, int], said: str | None
) -> None:
    packed = io.BytesIO()
    Image.new("L", shape[::-1]).save(packed, "JPEG2000" if syntax.endswith("90") else "JPEG")
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((20, 30), np.uint8))))
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([packed.getvalue()])
    data["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    assert said in str(fault(buffer.getvalue())) if said else fault(buffer.getvalue()) is None


@pytest.mark.parametrize("format", ["EPS", "JPEG2000", "PPM", "PDF"])
def test_formats_that_run_programs_or_hide_their_size_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 30)).save(buffer, format)
    check_refused(tmp_path / "a.png", buffer.getvalue(), "an unknown format")
    assert not (tmp_path / "ran").exists()


def test_pages_of_a_tiff_are_counted_no_further_than_a_limit(tmp_path: Path) -> None:
    tags = [(256, 4, 8), (257, 4, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (279, 4, 64)]
    entries = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    count, size = 60_000, len(entries) + 4
    links = [72 + size * number for number in range(1, count)] + [0]
    data = (
        struct.pack("<2sHI", b"II", 42, 72) + bytes(64) + b"".join(entries + struct.pack("<I", link) for link in links)
    )
    began = time.process_time()
    check_refused(tmp_path / "a.tif", data, "has more than 1000 pages")
    assert time.process_time() - began < 10


def test_a_heat_map_counts_too(tmp_path: Path, limit: Callable[[int], None]) -> None:
    np.save(tmp_path / "heat.npy", np.zeros((100, 100), np.uint8))
    limit(9_999)
    with pytest.raises(InputError, match=r"heat.npy: .*10000 pixels of 8 bytes exceed the limit"):
        read_heat(tmp_path / "heat.npy")
    limit(10_000)
    assert read_heat(tmp_path / "heat.npy").shape == (100, 100)


ENDLESS = {
    "braces": "{" * 900_000,
    "quoted braces": '{"' * 450_000,
    "begun objects": '{"a":1,' * 130_000,
    "begun lists": '{"a":[' * 150_000,
    "long lists": ('{"a":[' + "0," * 500) * 850,
    "spaces": "{ " * 450_000,
    "thoughts": "<think>" * 130_000,
    "answers": "<answer>" * 110_000,
    "deep": DEEP,
    "digits": f'{{"score": {DIGITS}}}',
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS)
def test_parse_json_takes_no_longer_for_a_text_without_an_end(text: str) -> None:
    begun = time.process_time()
    assert parse_json(text) is None
    assert time.process_time() - begun < 5  # some were read for hours


def test_parse_json_still_finds_the_last_whole_object() -> None:
    assert parse_json('{"draft": {' * 50 + '\n{"score": 0.5} {x}') == {"score": 0.5}
    assert parse_json('{ \n "score": 1}') == {"score": 1}


def test_a_packed_table_is_unpacked_within_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LARGEST", 2**20)
    monkeypatch.setattr(tables, "LARGEST", 2**20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id\n" + b"1\n" * 10))
    assert len([*readers.csv_rows(tmp_path, "a")]) == 10
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(bytes(2**26)))
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("c.json", " " * 2**26)
    tracemalloc.start()
    for read in (
        lambda: [*readers.csv_rows(tmp_path, "b")],
        lambda: tables.json_file(readers.unzipped(tmp_path / "c.zip") / "c.json"),
    ):
        with pytest.raises(InputError, match=r"bytes, (unpacked|decompressed)"):
            read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_an_image_in_an_archive_counts_before_it_is_unpacked(tmp_path: Path, limit: Callable[[int], None]) -> None:
    limit(10**5)  # pixels: 800 kB
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("bomb.png", bytes(10**6))
        packed.writestr("good.png", saved("RGB"))
    (tmp_path / "made").mkdir()
    files, tree = upstream.Placed(tmp_path / "made", [tmp_path]), readers.unzipped(tmp_path / "a.zip")
    pictures = {name: readers.Picture(name, tree / name) for name in ("bomb.png", "good.png")}
    faults = {name: files.place(picture, name) for name, picture in pictures.items()}
    assert "1,000,000 bytes unpacked" in str(faults["bomb.png"]) and faults["good.png"] is None
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["good.png"]


LINES = {
    "deep": (DEEP, "nests deeper than 100"),
    "endless": ("[" * 100_000, "nests deeper than 100"),
    "digits": (f'{{"id": {DIGITS}}}', "too many digits"),
}

READERS: list[tuple[Callable[[Path], Any], str]] = [
    (read_by_id, "predictions.jsonl"),
    (read_json, "results.json"),
    (lambda file: [*read_table(file)], "list.json"),
]


@pytest.mark.parametrize("kind", LINES)
def test_a_line_without_bounds_is_the_fault_of_its_row(tmp_path: Path, kind: str) -> None:
    line, why = LINES[kind]
    Image.linear_gradient("L").save(tmp_path / "a.png")
    good = {"image": "a.png", "question": "Is it clear?", "answer": "yes"}
    lines = [json.dumps(good), line, json.dumps({**good, "question": "Where?"})]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    source = read_source(tmp_path)
    assert [(given.row, why in given.sentence) for given in source.faults] == [("table.jsonl:2", True)]
    refuse_faults(source, skip_faulty=True)
    assert [sample.question for sample in source.samples] == ["Is it clear?", "Where?"]
    for read, name in READERS:
        (tmp_path / name).write_text(line)
        with pytest.raises(InputError, match=rf"{name}.* is not JSON.*{why}"):
            read(tmp_path / name)


NUMBERS = {
    "1e400 as a side": ('"boxes": [{"x": 1e400, "y": 0, "width": 2, "height": 2}]', "boxes"),
    "400 digits as a side": (f'"boxes": [{{"x": {"9" * 400}, "y": 0, "width": 2, "height": 2}}]', "boxes"),
    "NaN as a side": ('"boxes": [{"x": NaN, "y": 0, "width": 2, "height": 2}]', "boxes"),
    "400 digits as a confidence": (f'"confidence": {"9" * 400}', "confidence"),
    "1e400 as a confidence": ('"confidence": 1e400', "confidence"),
    "1e400 as an answer": ('"answer": 1e400', "answer"),
    "depth in a cell": (f'"boxes": "{"[" * 5000 + "]" * 5000}"', "boxes"),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_no_float_holds_are_the_fault_of_their_row(tmp_path: Path, kind: str) -> None:
    cells, column = NUMBERS[kind]
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    row = f'{{"image": "a.png", "question": "Is it clear?", "answer": "yes", {cells}}}'
    (tmp_path / "table.jsonl").write_text(row)
    (given,) = read_source(tmp_path).faults
    assert (given.row, given.column) == ("table.jsonl:1", column)
