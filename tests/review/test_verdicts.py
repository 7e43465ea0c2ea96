"""Verdicts on disk: appended whole, shared by writers, safe against a kill; what is no verdict is refused."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.review.verdicts import Verdict, Verdicts, read

BOX = {"label": "l", "x": 0, "y": 0, "width": 1, "height": 1}


def verdict(number: int = 0, **changes: Any) -> Verdict:
    given = {"id": f"v{number}", "row": f"r{number}", "digest": "d", "reviewer": "A", "time": "2026-01-01T00:00:00",
             "decision": "accept"}  # fmt: skip
    return Verdict(**given | changes)


def _append(file: Path, name: str) -> None:
    for number in range(50):
        Verdicts(file).append([verdict(number, id=f"{name}{number}", reviewer=name)])


def test_writers_in_two_processes_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "v.jsonl"
    writers = [multiprocessing.get_context("spawn").Process(target=_append, args=(file, name)) for name in "AB"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Verdicts(file).all()) == len(file.read_text().splitlines()) == 100


def test_the_last_verdict_of_a_reviewer_counts_and_one_sent_twice_is_written_once(tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    assert file.append([verdict(), verdict(), verdict(id="other", decision="reject", reason="– 肺")]) == 2
    assert file.append([verdict()]) == 0
    assert file.last() == {("r0", "A"): verdict(id="other", decision="reject", reason="– 肺")}


@pytest.mark.parametrize("left", ['{"id": "v9", "row"', '{"id": "v9"', "\x00\x00", json.dumps(asdict(verdict(9)))])
def test_a_line_cut_short_by_a_kill_costs_nothing_else(tmp_path: Path, left: str) -> None:
    file = tmp_path / "v.jsonl"
    Verdicts(file).append([verdict(0)])
    with file.open("a") as lines:
        lines.write(left)  # killed before the end of the line
    opened = Verdicts(file)
    whole = left.endswith("}")  # an editor leaves such lines too
    assert [one.id for one in opened.all()] == (["v0", "v9"] if whole else ["v0"])
    opened.append([verdict(1)])
    assert [one.id for one in Verdicts(file).all()] == (["v0", "v9", "v1"] if whole else ["v0", "v1"])
    assert opened.broken == (not whole)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reviewer": " "}, "name of 1 to 80"),
        ({"reviewer": "a\nb"}, "name of 1 to 80"),
        ({"decision": "maybe"}, "accept, reject, unsure"),
        ({"relevance": float("nan")}, r"\[0, 1\]"),
        ({"relevance": 1.1}, r"\[0, 1\]"),
        ({"relevance": 10**400}, r"\[0, 1\]"),
        ({"reason": "\ud800"}, "lone surrogate"),
        ({"reviewer": "\ud800"}, "name of 1 to 80|lone surrogate"),
        ({"before": {"boxes": []}, "after": {"boxes": [BOX | {"confidence": float("nan")}]}}, "confidence"),
        ({"before": {"boxes": []}, "after": {"boxes": [BOX | {"x": 1e7}]}}, "pixels"),
        ({"relevance": True}, r"\[0, 1\]"),
        ({"seconds": -1}, "from 0"),
        ({"reason": None}, "are texts"),
        ({"better": "A"}, "better side"),
        ({"after": {"chosen": "x"}}, "the same fields"),
        ({"before": {"weight": 1}, "after": {"weight": 2}}, "the same fields"),
        ({"before": {"chosen": "x"}, "after": {"chosen": " "}}, "chosen text has 1 to"),
        ({"before": {"boxes": []}, "after": {"boxes": [BOX | {"width": 0}]}}, "above 0"),
        ({"before": {"boxes": []}, "after": {"boxes": [{"x": 0, "y": 0}]}}, "a box has"),
    ],
)  # fmt: skip
def test_what_no_reviewer_can_give_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        verdict(**changes)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 10**5, b"garbage", b'{"id": "v"'])
def test_lines_that_are_no_json_are_counted(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "v.jsonl"
    file.write_bytes(line + b"\n" + json.dumps(asdict(verdict(0))).encode() + b"\n")
    read = Verdicts(file)
    assert [one.id for one in read.all()] == ["v0"] and read.broken == 1


@pytest.mark.parametrize("line", ["[1]", '{"id": "v"}', json.dumps(asdict(verdict()) | {"seconds": -1})])
def test_a_line_that_is_no_verdict_is_named_each_time(tmp_path: Path, line: str) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    file.append([verdict(0)])
    with file.file.open("a") as lines:
        lines.write(line + "\n")
    for _ in range(2):
        with pytest.raises(InputError, match=r"v\.jsonl, line 2: "):
            file.append([verdict(1)])
    assert len(file.file.read_text().splitlines()) == 2


def test_a_file_that_was_removed_begins_anew(tmp_path: Path) -> None:
    file = Verdicts(tmp_path / "v.jsonl")
    file.append([verdict(0), verdict(1)])
    file.file.unlink()
    assert file.append([verdict(0)]) == 1 and [one.id for one in file.all()] == ["v0"]


def test_a_file_that_cannot_be_written_is_said_before_the_review(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        Verdicts(tmp_path / "v.jsonl").check()
    Verdicts(tmp_path / "new" / "v.jsonl").check()
    assert not (tmp_path / "new" / "v.jsonl").exists()


def test_a_file_with_a_line_that_is_no_verdict_is_refused_before_the_review(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text('{"id": "v", "row": "r"}\n')
    with pytest.raises(InputError, match="lacks digest, reviewer, time, decision"):
        Verdicts(tmp_path / "v.jsonl").check()


@pytest.mark.parametrize("record", [[], "x", {"id": "v"}, asdict(verdict()) | {"weight": 3}])
def test_a_record_that_is_no_verdict_is_refused(record: Any) -> None:
    with pytest.raises(InputError, match="verdict"):
        read(record)
