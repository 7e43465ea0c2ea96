"""Output folders are whole or absent, and ledgers survive a kill."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.runs import run_folder, writable
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import REPORTED_PACKAGES, portable, versions
from mmedpo.runs.run_folder import output_folder, short_folder


def partial_of(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def interrupt(output: Path, settings: dict[str, object], error: type[BaseException] = KeyboardInterrupt) -> None:
    with pytest.raises(error), output_folder(output, settings) as folder:
        (folder / "work.txt").write_text("half")
        raise error


def test_finished_folder_holds_the_work_and_digests_of_the_settings(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "er" / "out"
    with output_folder(output, {"seed": 0}) as folder:
        assert folder == partial_of(output)
        assert not output.exists()
        (folder / "work.txt").write_text("whole")
    assert sorted(file.name for file in output.iterdir()) == [".settings.sha256", "work.txt"]
    assert not partial_of(output).exists()


def test_a_finished_run_has_nothing_to_resume_for_its_own_settings_only(tmp_path: Path) -> None:
    output, settings = tmp_path / "out", {"model": "org/a", "seed": 0, "paths": ("a", "b"), "adapter": None}
    with output_folder(output, settings):
        pass
    assert "org/a" not in (output / ".settings.sha256").read_text()
    for same in (settings, {**settings, "paths": ["a", "b"]}, {**settings, "a_later_option": False}):
        with pytest.raises(AlreadyFinished), output_folder(output, same, resume=True):
            pytest.fail("the block must not run")
    other = {**settings, "model": "org/b", "adapter": "runs/adapter"}
    with pytest.raises(InputError) as refused, output_folder(output, other, resume=True):
        pytest.fail("the block must not run")
    assert str(refused.value).splitlines() == [
        f"{output} was finished with other settings. Repeat them, or choose another --output:",
        "  - adapter: now 'runs/adapter'", "  - model: now 'org/b'",
    ]  # fmt: skip


def test_a_path_may_be_spelt_otherwise_but_not_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "link").symlink_to("source")
    monkeypatch.chdir(tmp_path)
    interrupt(tmp_path / "out", {"source": "source", "name": "a"})
    for spelt in ("source/", str(tmp_path / "source"), "link"):
        with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", {"source": spelt, "name": "a"}, True):
            raise KeyboardInterrupt
    others = ({"source": "elsewhere", "name": "a"}, {"source": "source", "name": ""})
    for other in others:
        with pytest.raises(InputError, match="other settings"), output_folder(tmp_path / "out", other, True):
            pytest.fail("the block must not run")
    with output_folder(tmp_path / "out", {"source": "source", "name": "a"}, True):
        pass
    for spelt in ("source/", str(tmp_path / "source"), "link"):  # the same once it is finished
        with pytest.raises(AlreadyFinished), output_folder(tmp_path / "out", {"source": spelt, "name": "a"}, True):
            pytest.fail("the block must not run")
    for other in others:
        with pytest.raises(InputError, match="finished with other"), output_folder(tmp_path / "out", other, True):
            pytest.fail("the block must not run")


def test_of_groups_of_settings_what_differs_is_named_alone(tmp_path: Path) -> None:
    output = tmp_path / "out"
    begun = {"model": "org/a", "config": {"learning_rate": 1e-5, "weighted": False, "names": ["a"]}, "lora": {}}
    interrupt(output, begun)
    config = {"learning_rate": 5e-6, "weighted": False, "names": ["a"]}
    other = {**begun, "config": config, "lora": {"lora_r": 8}}
    with pytest.raises(InputError) as refused, output_folder(output, other, resume=True):
        pytest.fail("the block must not run")
    assert str(refused.value).splitlines() == [
        f"{partial_of(output)} was started with other settings. Repeat them, or remove the folder:",
        "  - config.learning_rate: 1e-05 -> 5e-06", "  - lora.lora_r: None -> 8",
    ]  # fmt: skip
    with output_folder(output, begun, resume=True):
        pass
    for changed in ({"weighted": True}, {"names": []}):
        (name,) = changed
        other = {**begun, "config": {**begun["config"], **changed}}
        with pytest.raises(InputError, match=rf"\n  - config\.{name}: now \S+$"), output_folder(output, other, True):
            pytest.fail("the block must not run")
    without = {**begun, "config": {name: value for name, value in begun["config"].items() if name != "weighted"}}
    with pytest.raises(InputError, match=r"\n  - config\.weighted: now None$"), output_folder(output, without, True):
        pytest.fail("the block must not run")  # of a group, False is no default


def test_a_run_killed_right_after_it_had_its_name_is_finished_and_tidied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(output: Path) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "_tidy", killed)
        with pytest.raises(KeyboardInterrupt), output_folder(output, {"seed": 0}) as folder:
            Ledger(folder / "step.ledger").put("a", 1)
            (folder / "work.txt").write_text("whole")
    assert (output / "step.ledger").exists() and (output / ".lock").exists() and not partial_of(output).exists()
    with pytest.raises(AlreadyFinished), output_folder(output, {"seed": 0}, resume=True):
        pytest.fail("the block must not run")
    assert sorted(file.name for file in output.iterdir()) == [".settings.sha256", "work.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, InputError])
def test_short_work_that_did_not_end_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out"
    with pytest.raises(error), short_folder(output) as folder:
        (folder / "work.txt").write_text("half")
        raise error("stopped")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.writing").mkdir()
    (tmp_path / ".out.writing" / "killed.txt").write_text("half")
    with short_folder(output) as folder:
        (folder / "work.txt").write_text("whole")
    assert [file.name for file in output.iterdir()] == ["work.txt"] and list(tmp_path.iterdir()) == [output]


def test_short_work_takes_no_name_of_other_work(tmp_path: Path) -> None:
    interrupt(tmp_path / "out", {})
    with pytest.raises(InputError, match=r"out.partial holds an interrupted run"), short_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert (partial_of(tmp_path / "out") / "work.txt").exists()
    with pytest.raises(InputError, match="exists already"), short_folder(tmp_path):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("output", ["/proc/out", "/dev/null/out", "a" * 300])
@pytest.mark.parametrize("folder", [short_folder, partial(output_folder, settings={})])
def test_an_output_that_cannot_be_made_is_bad_input(tmp_path: Path, folder: Any, output: str) -> None:
    with pytest.raises(InputError, match=r"Cannot write .*Choose another --output"), folder(tmp_path / output):
        pytest.fail("the block must not run")


def test_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for resume in (False, True):
        refused = pytest.raises(InputError, match="exists already; choose another --output")
        with refused, output_folder(tmp_path, {}, resume=resume):
            pytest.fail("the block must not run")
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert not partial_of(tmp_path).exists()


def test_two_runs_do_not_work_in_one_folder(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", {}) as folder:
        (folder / "file").write_text("work")
        for resume in (True, False):
            at_work = pytest.raises(InputError, match=r"Another process works in .*out\.partial; wait")
            with at_work, output_folder(tmp_path / "out", {}, resume=resume):
                pytest.fail("the block must not run")
        assert (folder / "file").exists()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".settings.sha256", "file"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_another_process_just_finished_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    output, lock = tmp_path / "out", run_folder._locked
    if begun:
        interrupt(output, {"seed": 0})

    def finish_first(folder: Path) -> Any:
        monkeypatch.undo()
        with output_folder(output, {"seed": 0}, resume=True) as working:
            (working / "work.txt").write_text("whole")
        return lock(folder)

    monkeypatch.setattr(run_folder, "_locked", finish_first)
    with pytest.raises(InputError, match="out exists already"), output_folder(output, {"seed": 0}, resume=True):
        pytest.fail("the block must not run")
    assert (output / "work.txt").read_text() == "whole" and list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_run_is_kept_and_resumed(tmp_path: Path, error: type[BaseException]) -> None:
    output = tmp_path / "out"
    interrupt(output, {"seed": 0, "paths": ("a", "b")}, error)
    assert not output.exists()
    with pytest.raises(InputError, match="continue it with --resume"), output_folder(output, {"seed": 0}):
        pytest.fail("the block must not run")
    with output_folder(output, {"seed": 0, "paths": ["a", "b"]}, resume=True) as folder:
        assert (folder / "work.txt").read_text() == "half"
    assert output.exists()


def test_resume_without_an_interrupted_run_begins_one(tmp_path: Path) -> None:
    with output_folder(tmp_path / "out", {}, resume=True):
        pass
    assert (tmp_path / "out").exists()


def test_resume_with_other_settings_names_each_difference(tmp_path: Path) -> None:
    interrupt(tmp_path / "out", {"seed": 0, "old": 1, "same": "x"})
    now = {"seed": 1, "new": 2, "same": "x"}
    with pytest.raises(InputError) as raised, output_folder(tmp_path / "out", now, resume=True):
        pytest.fail("the block must not run")
    message = str(raised.value)
    assert message.splitlines()[1:] == ["  - new: None -> 2", "  - old: 1 -> None", "  - seed: 0 -> 1"]
    assert "same" not in message
    assert (partial_of(tmp_path / "out") / "work.txt").exists()


def test_bad_input_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(InputError), output_folder(tmp_path / "out", {}) as folder:
        Ledger(folder / "step.ledger").close()  # opened, but nothing recorded
        raise InputError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_bad_input_found_late_keeps_recorded_work(tmp_path: Path) -> None:
    with pytest.raises(InputError), output_folder(tmp_path / "out", {}) as folder:
        Ledger(folder / "step.ledger").put("a", 1)
        raise InputError("the key was refused")
    assert (partial_of(tmp_path / "out") / "step.ledger").exists()


def test_bad_input_of_a_resumed_run_keeps_its_work(tmp_path: Path) -> None:
    interrupt(tmp_path / "out", {})
    with pytest.raises(InputError), output_folder(tmp_path / "out", {}, resume=True):
        raise InputError("wrong")
    assert (partial_of(tmp_path / "out") / "work.txt").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_names_the_remedy_and_keeps_the_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No space left.*--resume"), output_folder(tmp_path / "out", {}) as folder:
        Path("/dev/full").write_text("x")
    assert folder.exists()


@pytest.mark.parametrize("output", [".", "..", "inner/.."])
def test_the_current_folder_as_output_is_refused_as_existing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "here" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="exists already"), output_folder(Path(output), {}):
        pytest.fail("the block must not run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["here"]
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == ["inner"]


def test_json_is_written_whole_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "œdème\u2028", "value": 0.5})
    assert read_json(tmp_path / "a.json") == {"name": "œdème\u2028", "value": 0.5}
    assert "œdème" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert read_json(tmp_path / "a.json")["value"] == 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"{", "is not JSON"), (b'"\xe9"', "is not JSON")]
)
def test_unreadable_json_is_bad_input_that_names_the_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"results\.json {message}"):
        read_json(tmp_path / "results.json")


def test_json_below_a_file_or_a_folder_in_its_place_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{}")
    for path in (tmp_path / "results.json" / "results.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(path)


def test_versions_names_every_reported_package() -> None:
    assert set(REPORTED_PACKAGES) <= versions().keys() <= {*REPORTED_PACKAGES, "commit"}


def test_records_name_no_folder_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable(str(tmp_path / "runs" / "tiny")) == "runs/tiny"
    assert portable("/data/models/tiny") == "tiny"
    for name in ("org/model", "runs/tiny", "standin:rules", "data/*/x", "3 of 4 / 5", "a and/or b"):
        assert portable(name) == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("detector:/data/models/yolos", "detector:yolos"),
        ("--source=/data/clinic", "--source=clinic"),
        ("hub:/data/models/a b", "hub:a b"),
        ("hub:/data/a,hub:/data/b,standin:strict", "hub:a,hub:b,standin:strict"),
        ("detector:org/model", "detector:org/model"),
        ("../../Müller, Alice/vqa-rad", "vqa-rad"),
        ("data/../../Müller, Alice/vqa-rad", "vqa-rad"),
        ("/x/users/Müller, Alice/vqa-rad", "vqa-rad"),
        ("/x/O'Brien/vqa-rad", "vqa-rad"),
        ("file:///home/alice/x", "x"),
        ('["/home/alice/x"]', '["x"]'),
        ("http://localhost:8000/v1#/srv/kim/models/llava", "endpoint#llava"),
        ("HTTPS://kim:word@box:9/v1?key=s#m,standin:strict", "endpoint#m,standin:strict"),
        ("https://me:secret@example.org/terms/4.0/?token=k", "https://example.org/terms/4.0/"),
        ('{"a": ["/srv/x", 3], "b": "org/m"}', '{"a": ["x", 3], "b": "org/m"}'),
        ("and /or both", "and /or both"),
        ("--judges=http://a/v1#m,http://alice:word@b.hospital:9/v1#n", "--judges=endpoint#m,endpoint#n"),
        ("--judges=standin:strict,http://u:p@b/v1#/srv/n", "--judges=standin:strict,endpoint#n"),
        ("http://a/v1#m, http://u:p@b/v1#n", "endpoint#m,endpoint#n"),
        ("['/data/alice/x', 'org/m']", '["x", "org/m"]'),
        ("lesion:/srv/x", "lesion:x"),
        ("--source=~/alice/x", "--source=x"),
        (str(Path.home()), "~"),
    ],
)
def test_records_name_no_folder_inside_an_option(name: str, expected: str) -> None:
    assert portable(name) == expected


def test_a_folder_below_the_current_one_is_relative_inside_an_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert portable(f"detector:{tmp_path / 'runs' / 'yolos'}") == "detector:runs/yolos"


def test_full_disk_is_one_sentence_even_where_a_library_wraps_the_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No space left"), output_folder(tmp_path / "out", {}) as folder:
        (folder / "work.ledger").write_text("{}\n")
        try:
            with Path("/dev/full").open("w") as full:
                full.write("x")
        except OSError as error:
            raise RuntimeError("writing failed") from error
    assert (tmp_path / "out.partial" / "work.ledger").exists()


def test_a_run_killed_right_before_it_had_its_name_keeps_its_work_and_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rename = tmp_path / "out", Path.replace

    def killed(self: Path, name: Path) -> None:
        if name == output:
            raise KeyboardInterrupt
        rename(self, name)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt), output_folder(output, {"a": 1}) as folder:
            Ledger(folder / "step.ledger").put("a", 1)
    assert not output.exists()
    with (
        pytest.raises(InputError, match=r"other settings[^\n]+\n  - a: now 2$"),
        output_folder(output, {"a": 2}, resume=True),
    ):
        pytest.fail("the block must not run")
    with output_folder(output, {"a": 1}, resume=True) as folder:
        assert Ledger(folder / "step.ledger")["a"] == 1


def test_a_check_killed_in_its_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []

    def usage(place: Path) -> Any:
        seen.append(list(place.iterdir()))
        return disk_usage(place)

    disk_usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", usage)
    writable.check(tmp_path / "out")
    Ledger(tmp_path / "calls.sqlite").open()
    assert seen == [[]] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(36, "File name too long", "x"), RuntimeError("a bug")])
def test_an_error_before_any_work_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), output_folder(tmp_path / "out", {}):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_input_that_may_not_be_read_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"Cannot read or write locked/x: Permission denied\. Check its permissions"),
        output_folder(tmp_path / "out", {}),
    ):
        raise PermissionError(13, "Permission denied", "locked/x")
    assert list(tmp_path.iterdir()) == []
