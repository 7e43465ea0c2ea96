"""Files of a dataset: cut before they are written, and each written alone, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data import loading, shards
from mmedpo.errors import InputError
from tests.invented import row

SIZE = "2KB"  # of some 300 bytes of images a row


def rows(count: int = 60) -> list[dict[str, Any]]:
    return [row(n, id=f"r{n}", visual=n % 3 == 0, weight=1.0, clinical_relevance=0.5) for n in range(count)]


def sizes(made: list[dict[str, Any]]) -> list[tuple[str, int]]:
    shown = [[*one["images"], *(one["rejected_images"] or [])] for one in made]
    return [(one["id"], sum(len(image["bytes"]) for image in some)) for one, some in zip(made, shown, strict=True)]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (folder / "data").iterdir()}


def parts(made: list[dict[str, Any]], lengths: list[int]) -> Iterator[list[dict[str, Any]]]:
    rest = iter(made)
    return ([next(rest) for _ in range(length)] for length in lengths)


def test_files_written_alone_are_those_that_are_saved_together(tmp_path: Path) -> None:
    made = rows()
    shards.save(made, tmp_path / "saved", shard_size=SIZE)
    lengths = shards.cut(sizes(made), SIZE)
    assert len(lengths) > 3 and sum(lengths) == len(made)
    for number, some in reversed([*enumerate(parts(made, lengths))]):
        shards.write(iter(some), tmp_path / "written", "train", number, len(lengths))
    assert files(tmp_path / "written") == files(tmp_path / "saved")
    assert loading.load(str(tmp_path / "written"))["id"] == [one["id"] for one in made]


def test_cut_keeps_later_boundaries_where_rows_change() -> None:
    before = [(f"r{number}", 1000 + number) for number in range(2000)]
    other = [(id, 5000) if id == "r50" else (id, size) for id, size in before]
    added = [*before[:70], *((f"new{number}", 900) for number in range(30)), *before[70:]]

    def ends(cut: list[tuple[str, int]]) -> list[str]:
        rest = iter(cut)
        return [[next(rest)[0] for _ in range(length)][-1] for length in shards.cut(cut, "100KB")]

    assert len(ends(before)) > 10
    for changed in (other, added):
        assert len({*ends(changed)} - {*ends(before)}) <= 2


@pytest.mark.parametrize(("given", "lengths"), [([], []), ([("a", 10**9)], [1]), ([("a", 1), ("b", 1)], [2])])
def test_cut_of_few_rows(given: list[tuple[str, int]], lengths: list[int]) -> None:
    assert shards.cut(given) == lengths


def test_cut_ends_a_file_within_its_size_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [(f"r{number}", 100) for number in range(10_000)]
    assert all(500 < length <= 600 for length in shards.cut(given, "50KB")[:-1])
    monkeypatch.setattr(shards, "SHARD_ROWS", 100)
    assert all(100 < length <= 200 for length in shards.cut(given, "50KB")[:-1])


def test_write_leaves_a_finished_file(tmp_path: Path) -> None:
    def unread() -> Iterator[dict[str, Any]]:
        raise AssertionError("the rows were read")
        yield

    shards.write(rows(3), tmp_path, "train", 0, 2)
    before = files(tmp_path)
    shards.write(unread(), tmp_path, "train", 0, 2)
    assert files(tmp_path) == before and [*before] == ["train-00000-of-00002.parquet"]


def test_write_leaves_no_half_file(tmp_path: Path) -> None:
    def stopped() -> Iterator[dict[str, Any]]:
        yield from rows(40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.write(stopped(), tmp_path, "train", 0, 1)
    assert files(tmp_path) == {}


def test_write_names_all_faulty_rows_of_a_file(tmp_path: Path) -> None:
    made = rows(5)
    made[1] |= {"weight": -1.0}
    made[3] |= {"id": "r2"}
    made[4] |= {"images": [{"bytes": b"none", "path": None}]}
    with pytest.raises(InputError) as raised:
        shards.write(made, tmp_path, "train", 0, 1)
    assert {(fault.row, fault.column) for fault in raised.value.faults} == {
        ("r1", "weight"), ("r2", "id"), ("r4", "images"),
    }  # fmt: skip
    assert files(tmp_path) == {}


def test_repeats_names_ids_of_several_files() -> None:
    found = shards.repeats(lambda: iter(["a", "b", "a", "c", "b", "a"]))
    assert [(fault.row, fault.sentence) for fault in found] == [
        ("a", "occurs 3 times; ids must be unique"), ("b", "occurs 2 times; ids must be unique"),
    ]  # fmt: skip


def test_finish_removes_what_killed_runs_left_and_misses_no_file(tmp_path: Path) -> None:
    for number in range(2):
        shards.write(rows(2), tmp_path, "train", number, 2)
    finished = files(tmp_path)
    for left in ("train-00000-of-00003.parquet", ".train-00001-of-00002.parquet.0badcafe"):
        (tmp_path / "data" / left).write_bytes(b"half")
    shards.finish(tmp_path, "train", 2)
    assert files(tmp_path) == finished
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"lacks train-00001-of-00002\.parquet"):
        shards.finish(tmp_path, "train", 2)
