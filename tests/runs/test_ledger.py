"""Ledgers: what was put stays, whatever happens to the process; what was not kept is tried again."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmedpo.errors import InputError
from mmedpo.runs.journal import Journal
from mmedpo.runs.ledger import Ledger, Overlay


def test_what_was_put_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "step.ledger"
    ledger = Ledger(path)
    ledger.put("a", {"text": "œdème\u2028\n"})
    ledger.put("b", None)
    ledger.put("a", [1])
    ledger.close()
    again = Ledger(path)
    assert "a" in again and "b" in again and "c" not in again
    assert (again["a"], again["b"], again.get("c")) == ([1], None, None)
    assert list(again.values()) == [[1], None]
    assert (again.select(["b", "c", "a"]), again.select([])) == ({"a": [1], "b": None}, {})
    assert Ledger(tmp_path / "none.ledger").select(["a"]) == {}
    with pytest.raises(KeyError):
        again["c"]


def test_new_values_lie_over_those_of_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "all.ledger")
    ledger.update({"a": 1, "b": 2})
    both = Overlay(Journal(tmp_path / "own.journal"), ledger)
    both.update({"b": 3, "c": 4})
    assert both.select(["a", "b", "c", "d"]) == {"a": 1, "b": 3, "c": 4}


def test_a_ledger_that_nothing_was_put_into_leaves_no_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "step.ledger")
    assert "a" not in ledger and list(ledger.values()) == []
    ledger.forget()
    ledger.close()
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_not_kept_is_forgotten(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work.ledger")
    ledger.put("lost", "no answer", keep=False)
    ledger.put("won", "an answer")
    assert ledger["lost"] == "no answer"
    ledger.close()
    again = Ledger(tmp_path / "work.ledger")
    again.forget()
    assert "lost" not in again and again["won"] == "an answer"


def _write_and_die(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(100):
        ledger.put(str(number), number)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_loses_nothing_that_was_put(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path / "work.ledger",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert sorted(Ledger(tmp_path / "work.ledger").values()) == list(range(100))


def _write_share(path: Path, rank: int) -> None:
    ledger = Ledger(path)
    for number in range(200):
        ledger.put(f"{rank}/{number}", number)
    ledger.close()


def test_several_processes_write_one_ledger(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_write_share, args=(tmp_path / "work.ledger", rank)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(Ledger(tmp_path / "work.ledger").values())) == 600


def test_a_batch_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "work.ledger")
    ledger.put("a", 1)
    with pytest.raises(TypeError):
        ledger.update({"b": 2, "c": object()})
    assert "b" not in ledger and ledger["a"] == 1


def test_a_file_that_is_no_ledger_is_bad_input_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "calls.sqlite").write_text("these are my notes, not a database\n" * 50)
    with pytest.raises(InputError, match=r"calls\.sqlite cannot be used as a ledger or cache"):
        Ledger(tmp_path / "calls.sqlite").get("a")
    assert (tmp_path / "calls.sqlite").read_text().startswith("these are my notes")


@pytest.mark.parametrize("lost", [700, 4096, 9000])
def test_a_ledger_that_lost_its_end_is_refused(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "rows.ledger"
    ledger = Ledger(path)
    ledger.update({f"row {number}": "digest" * 20 for number in range(100)})
    ledger.close()
    os.truncate(path, path.stat().st_size - lost)
    with pytest.raises(InputError, match=r"rows\.ledger cannot be used as a ledger or cache"):
        list(Ledger(path))


def test_a_ledger_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "calls.sqlite"):
        with pytest.raises(InputError, match="in an existing folder"):
            Ledger(path).open()


@pytest.mark.parametrize("free", [0, 2**30])
def test_an_io_error_on_a_full_disk_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # files cannot grow: SQLite says "disk I/O error"
    try:
        with pytest.raises(InputError if free else OSError) as raised:
            Ledger(tmp_path / "calls.sqlite").put("a", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert free or raised.value.errno == errno.ENOSPC
