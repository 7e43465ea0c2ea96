"""Outputs are whole or absent: two commands on one name, full disks, long names, and records of other versions."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.quickstart import tiny
from mmedpo.runs import writable
from mmedpo.runs.json_files import write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.run_folder import output_folder, short_folder


def test_two_short_commands_on_one_output(tmp_path: Path) -> None:
    with short_folder(tmp_path / "out") as first:
        (first / "work.txt").write_text("first")
        with pytest.raises(InputError, match="Another process works"), short_folder(tmp_path / "out") as second:
            (second / "work.txt").write_text("second")
    assert (tmp_path / "out" / "work.txt").read_text() == "first"
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "work.txt"]


def test_a_command_that_waited_for_the_name_does_not_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = writable.make

    def finished_meanwhile(folder: Path) -> None:
        (tmp_path / "out").mkdir()
        make(folder)

    monkeypatch.setattr(writable, "make", finished_meanwhile)
    with pytest.raises(InputError, match="exists already"), short_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize("length", [247, 250, 255])
def test_a_name_that_leaves_no_room_for_what_is_written_beside_it_is_refused_first(tmp_path: Path, length: int) -> None:
    name = "n" * length
    for work in (short_folder, lambda output: output_folder(output, {})):
        with pytest.raises(InputError, match=r"File name too long\. Choose another --output"), work(tmp_path / name):
            pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []
    with short_folder(tmp_path / ("n" * 246)) as folder:
        write_json(folder / "a.json", 1)
    assert (tmp_path / ("n" * 246) / "a.json").read_text() == "1\n"


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on each file takes 10 bytes, and the disk is full."""

    def fill() -> None:
        def torn(self: Path, data: Any) -> int:
            with self.open("wb") as file:
                file.write(data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))

        monkeypatch.setattr(Path, "write_bytes", torn)

    return fill


def test_a_file_on_a_full_disk_is_absent_or_what_it_was(tmp_path: Path, full: Callable[[], None]) -> None:
    write_json(tmp_path / "old.json", {"kept": True})
    full()
    for name in ("old.json", "new.json"):
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / name, {"kept": False})
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert json.loads((tmp_path / "old.json").read_text()) == {"kept": True}


def test_a_preview_on_a_full_disk_leaves_nothing(corpus: Path, tmp_path: Path, full: Callable[[], None]) -> None:
    from mmedpo.curation.localize import open_localizer
    from mmedpo.curation.noise import Noise
    from mmedpo.curation.preview import sheet
    from mmedpo.data.sources import read_source

    samples = read_source(corpus, "test").samples
    full()
    with pytest.raises(InputError, match=r"sheet.png cannot be written: No space left on device"):
        sheet(samples, open_localizer("standin:centre"), Noise(), 0, 1, tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_a_tiny_model_on_a_full_disk_is_one_sentence(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def refused(*arguments: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("transformers.modeling_utils.safe_save_file", refused)
        with pytest.raises(InputError, match=r"No space left on the disk .*--resume"):
            tiny.make(corpus, "supervised", 1, tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()
    tiny.make(corpus, "supervised", 1, tmp_path / "tiny", resume=True)
    assert (tmp_path / "tiny" / "supervised.json").exists()


# Records.


def old_layout(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT)")
        database.execute("INSERT INTO entries VALUES ('a', '1')")


def cut_record(path: Path) -> None:
    Ledger(path).put("a", {"text": "yes"})
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entries SET value = substr(value, 1, 8)")


def no_text(path: Path) -> None:
    Ledger(path).put("a", 1)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE entries SET value = NULL")


def damaged(path: Path) -> None:
    ledger = Ledger(path)
    ledger.update({str(number): "x" * 5000 for number in range(50)})
    ledger.close()
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


BROKEN = {old_layout: "its columns are key, value", cut_record: "not JSON", no_text: "not JSON", damaged: "malformed"}


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_ledger_that_cannot_be_read_is_one_sentence(tmp_path: Path, breaks: Callable[[Path], None]) -> None:
    breaks(tmp_path / "cache.sqlite")
    for ask in (lambda ledger: ledger.get("a"), lambda ledger: list(ledger.values())):
        with pytest.raises(InputError, match=rf"cache.sqlite cannot be used .*{BROKEN[breaks]}.*remove it"):
            ask(Ledger(tmp_path / "cache.sqlite"))
