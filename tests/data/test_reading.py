"""Files of a source are read by processes as by this one, and remembered while they are unchanged."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data import reading
from mmedpo.data.images import LIMIT_VARIABLE
from mmedpo.data.reading import Asked, read_files
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError

MakeSource = Callable[..., Path]


def bmp(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8 + seed), dtype=np.uint8)).save(buffer, "BMP")
    return buffer.getvalue()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any source is large, on a machine of three cores; files settle at once."""
    monkeypatch.setattr(reading, "SHARE", 1)
    monkeypatch.setattr(reading, "SETTLED", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, in their order."""
    found: list[str] = []
    read_all = reading._read_all

    def noted(asked: list[Asked], count: int) -> Any:
        found.extend(file.name for _, file in asked)
        return read_all(asked, count)

    monkeypatch.setattr(reading, "_read_all", noted)
    return found


@pytest.fixture
def source(make_source: MakeSource) -> Path:
    images = {f"{number}.bmp": bmp(number) for number in range(20)}
    Image.new("L", (8, 8)).save(flat := io.BytesIO(), "PNG")
    np.save(heat := io.BytesIO(), np.full((2, 2), -1.0))
    images |= {"7.bmp": b"", "9.bmp": images["9.bmp"][:50], "flat.png": flat.getvalue(), "heat.npy": heat.getvalue()}
    rows: list[dict[str, Any]] = [
        {"id": f"q{number}", "image": f"{number % 20}.bmp", "question": "What is it?", "answer": f"finding {number}"}
        for number in range(30)
    ]
    rows[4]["image"], rows[5]["masks"], rows[6]["masks"] = "flat.png", ["flat.png"], ["7.bmp"]
    rows[8]["heatmap"] = "heat.npy"
    return make_source(rows, images=images)


def test_read_source_by_processes_is_the_same(source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    alone = read_source(source)
    assert [(fault.row, fault.column) for fault in alone.faults] == [
        ("q4", "image"), ("q6", "masks"), ("q7", "image"), ("q8", "heatmap"), ("q9", "image"), ("q27", "image"),
        ("q29", "image"),
    ]  # fmt: skip
    request.getfixturevalue("large")
    assert read_source(source) == alone
    known = tmp_path / "known.ledger"
    assert read_source(source, known=known) == read_source(source, known=known) == alone


def test_read_files_counts_all_cores_where_a_system_does_not_tell_its_own(
    monkeypatch: pytest.MonkeyPatch, large: None
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    asked = [("image", Path(name)) for name in "abc"]
    assert reading._processes(asked, dict.fromkeys(asked, (9, 0, 0))) == 2


def test_processes_import_nothing_from_the_current_folder(
    source: Path, large: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mmedpo").mkdir(exist_ok=True)
    (tmp_path / "mmedpo" / "__init__.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    assert len(read_source(source).samples) == 23


def test_read_files_remembers_files_while_they_are_unchanged(
    source: Path, tmp_path: Path, large: None, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, asked = tmp_path / "known.ledger", [("image", source / f"{number}.bmp") for number in range(12)]
    broken = ["7.bmp", "9.bmp"]

    def again() -> list[str]:
        decoded.clear()
        read_files(asked, known)
        return list(decoded)

    assert again() == [file.name for _, file in asked]
    assert again() == broken
    file = source / "2.bmp"
    before = file.stat()
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a copy that keeps times
    assert again() == ["2.bmp", *broken]
    assert again() == broken
    digest = read_files(asked, known)["image", file].digest
    assert digest == reading.read("image", file).digest
    read_files([("masks", source / "3.bmp"), ("masks", source / "4.bmp")], known)
    assert decoded[-2:] == ["3.bmp", "4.bmp"]  # a mask of one colour is none of an image
    monkeypatch.setenv(LIMIT_VARIABLE, "10")
    assert again() == [file.name for _, file in asked]


def test_read_files_does_not_remember_files_that_may_change_in_the_same_moment(
    source: Path, tmp_path: Path, large: None, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SETTLED", 10**12)
    for _ in range(2):
        read_files([("image", source / "1.bmp"), ("image", source / "2.bmp")], tmp_path / "known.ledger")
    assert decoded == ["1.bmp", "2.bmp"] * 2


def test_read_files_errors_of_processes_are_those_of_this_one(
    source: Path, large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [("image", source / f"{number}.bmp") for number in range(3)]
    with monkeypatch.context() as patch, pytest.raises(InputError) as alone:
        patch.setenv(LIMIT_VARIABLE, "many")
        reading.read(*asked[0])
    with monkeypatch.context() as patch, pytest.raises(InputError) as raised:
        patch.setenv(LIMIT_VARIABLE, "many")
        read_files(asked)
    assert str(raised.value) == str(alone.value)
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda command, **options: start(["sh", "-c", "cat > /dev/null; kill -9 $$"], **options)
    )
    with pytest.raises(InputError, match=r"0\.bmp: the process that decodes it was killed by SIGKILL"):
        read_files(asked)
