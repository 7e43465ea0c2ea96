"""Missing values, and files in two forms of their name, in data sets as their authors publish them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.hub.readers import Picture, csv_rows
from mmedpo.hub.upstream import write_source


def written(folder: Path, *items: dict[str, Any]) -> Any:
    write_source(items, "made", folder, False, {}, folders=[folder.parent])
    return read_source(folder)


@pytest.mark.parametrize(
    ("answer", "read"),
    [("None", "none"), ("none", "none"), (None, None), (float("nan"), None), ("NaN", None), (0, "0")],
)
def test_an_authors_none_is_an_answer_and_a_missing_one_is_a_fault(
    tmp_path: Path, png: bytes, answer: Any, read: str | None
) -> None:
    good = {"id": "0", "image": Picture("a.png", png), "question": "Which?", "answer": "a mass"}
    source = written(tmp_path / "made", good, {**good, "id": "1", "answer": answer})
    assert [sample.answer for sample in source.samples] == ["a mass", *([read] if read else [])]
    assert [fault.column for fault in source.faults] == ([] if read else ["answer"])


@pytest.mark.parametrize(("disk", "table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_image_is_found_in_either_form_of_its_name(tmp_path: Path, png: bytes, disk: Any, table: Any) -> None:
    (tmp_path / unicodedata.normalize(disk, "Röntgen.png")).write_bytes(png)
    name = unicodedata.normalize(table, "Röntgen.png")
    row = {"id": "0", "image": Picture(name, tmp_path / name), "question": "Which?", "answer": "a mass"}
    (sample,) = written(tmp_path / "made", row).samples
    assert sample.image_id == unicodedata.normalize("NFC", name)


def test_image_that_is_not_there_in_any_form_is_a_fault(tmp_path: Path) -> None:
    row = {"id": "0", "image": Picture("é.png", tmp_path / "é.png"), "question": "Which?", "answer": "a mass"}
    with pytest.raises(InputError, match=r"is missing in the source; add the file, got .*é\.png"):
        written(tmp_path / "made", row)


def test_cells_of_an_authors_csv_are_empty_where_they_are_missing(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("uid,findings,impression\n1,NaN,None\n2,Clear.\n", encoding="utf-8")
    assert list(csv_rows(tmp_path, "reports")) == [
        {"uid": "1", "findings": "", "impression": ""},
        {"uid": "2", "findings": "Clear.", "impression": ""},
    ]


def test_a_released_row_without_an_id_is_called_by_its_place(tmp_path: Path, png: bytes) -> None:
    from mmedpo.hub import builders

    turns = [[{"value": "<image>Which?"}, {"value": answer}] for answer in ("a mass", "a cyst")]
    row = dict(zip(("conversations", "rejected_conversations"), turns, strict=True))
    row |= {"id": None, "image": "a.png", "weighted_score": 0.5}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png)
    (tmp_path / "pairs.json").write_text(json.dumps([row]), encoding="utf-8")
    released = builders.load("released")
    (item,) = released.read(tmp_path / "pairs.json", released.Options(tmp_path / "images"))
    assert (item["id"], item["answer"]) == ("pairs.json[1]", "a mass")
