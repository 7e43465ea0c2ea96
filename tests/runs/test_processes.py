"""Processes of one launch: they share a folder, and the first one waits for the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mmedpo.errors import InputError
from mmedpo.runs import processes as module
from mmedpo.runs.processes import ALONE, Processes
from mmedpo.runs.run_folder import output_folder


def test_a_process_that_nobody_launched_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.here() == ALONE


def test_several_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="4 processes were launched, 2 of them on this machine"):
        Processes.here()


def test_the_first_process_waits_for_the_others_and_they_get_its_folder(tmp_path: Path) -> None:
    said = []

    def other() -> None:
        with output_folder(tmp_path / "out", {"a": 1}, processes=Processes(1, 2, "now")) as folder:
            said.append(folder.name)
            (folder / "share").write_text("done")
            Processes(1, 2, "now").finish(folder)

    thread = threading.Thread(target=other)
    thread.start()
    first = Processes(0, 2, "now")
    with output_folder(tmp_path / "out", {"a": 1}, processes=first) as folder:
        first.finish(folder)
        assert (folder / "share").read_text() == "done"
    thread.join()
    assert said == ["out.partial"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".settings.sha256", "share"]


def test_what_an_earlier_launch_said_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Processes(0, 2, "before").open(tmp_path)
    monkeypatch.setattr(module, "LONGEST_START", 0.5)
    with pytest.raises(InputError, match="did not prepare"):
        Processes(1, 2, "now").open(tmp_path)


def test_bad_input_before_any_work_leaves_no_folder_of_several_processes(tmp_path: Path) -> None:
    with pytest.raises(InputError), output_folder(tmp_path / "out", {}, processes=Processes(0, 2, "now")):
        raise InputError("no such model")
    assert list(tmp_path.iterdir()) == []
