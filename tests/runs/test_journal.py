"""Journals: what was put is read back, by others too; a kill costs the last line at most; damage is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.runs.journal import Journal

VALUES: dict[str, Any] = {
    "plain": 1, "tab\tand\nline": {"text": "a\tb\nc", "": None}, "größe/λ": ["x"], "": "empty key", "\ud800": "lone",
}  # fmt: skip


def test_values_are_read_back_by_the_writer_and_by_another(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "work.journal")
    assert "plain" not in journal and journal.get("plain") is None and not journal.path.exists()
    journal.update(VALUES)
    journal.put("plain", 2)
    for reader in (journal, Journal(journal.path)):
        assert {key: reader[key] for key in reader} == {**VALUES, "plain": 2}
        with pytest.raises(KeyError):
            reader["absent"]


def test_parts_share_a_file_and_do_not_see_each_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work.journal")
    one, two = journal.part("judge"), journal.part("judges")
    one.update({"a": 1, "b/c": 2})
    two.put("a", 3)
    assert (list(one), list(one.values()), list(two.values())) == (["a", "b/c"], [1, 2], [3])
    one.drop(["a", "absent"])
    again = Journal(journal.path)
    assert ("a" in again.part("judge"), again.part("judge")["b/c"], again.part("judges")["a"]) == (False, 2, 3)


def test_what_is_not_kept_is_there_until_it_is_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work.journal")
    journal.put("lost", 1, keep=False)
    journal.put("mended", 1, keep=False)
    journal.put("mended", 2)
    journal.close()
    assert [journal[key] for key in journal] == [1, 2]
    journal.forget()
    for reader in (journal, Journal(journal.path)):
        assert list(reader) == ["mended"]


@pytest.mark.parametrize("left", range(1, 24))
def test_a_line_that_was_cut_off_anywhere_does_not_count_and_is_written_over(tmp_path: Path, left: int) -> None:
    path = tmp_path / "work.journal"
    Journal(path).update({"first": "kept", "second": "x" * 9})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][: min(left, len(lines[1]) - 1)])
    assert list(Journal(path)) == ["first"]
    journal = Journal(path)
    journal.put("third", 3)
    assert {key: Journal(path)[key] for key in Journal(path)} == {"first": "kept", "third": 3}


def test_a_killed_writer_loses_no_value_that_was_put(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal\nfrom mmedpo.runs.journal import Journal\n"
        f"journal = Journal(pathlib.Path({str(tmp_path / 'work.journal')!r}))\n"
        "for number in range(500): journal.put(str(number), 'x' * number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert {key: len(Journal(tmp_path / "work.journal")[key]) for key in Journal(tmp_path / "work.journal")} == {
        str(number): number for number in range(500)
    }


@pytest.mark.parametrize("damage", [b"no tabs\n", b'"k"\t7\t1\n', b"k\t1\t1\n", b"\x00\xff\n", b"5\t1\t1\n"])
def test_a_damaged_line_is_one_clear_error(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "work.journal"
    Journal(path).put("before", 1)
    with path.open("ab") as file:
        file.write(damage)
    with pytest.raises(InputError, match=r"work\.journal is damaged .* --resume"):
        Journal(path).get("before")


def test_a_damaged_value_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "work.journal"
    path.write_bytes(b'"k"\t1\t{"a": \n')
    with pytest.raises(InputError, match=r"work\.journal is damaged"):
        Journal(path).get("k")
