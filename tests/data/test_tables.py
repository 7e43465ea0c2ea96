"""Cells of a source's table: what is missing, what is no text, and files whose names are spelt in two ways."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mmedpo.data.columns import COLUMNS, OTHER_FORMS
from mmedpo.data.sources import read_source
from mmedpo.data.tables import MISSING, is_missing, parsed
from mmedpo.errors import InputError

MakeSource = Callable[..., Path]
WHOLE = {"id": "q1", "image": "a.png", "question": "What is seen?", "answer": "a nodule"}
BLANK = [None, math.nan, "", " ", "\u200b", "NaN", "nan", "None", "NA", "N/A", "null", "<NA>", "#N/A"]


def faults(source: Any) -> list[tuple[str, str]]:
    return [(fault.column, fault.sentence) for fault in source.faults]


def test_missing_values_are_those_that_pandas_reads_as_missing() -> None:
    from pandas._libs.parsers import STR_NA_VALUES

    assert {name.lower() for name in STR_NA_VALUES} <= MISSING
    assert all(map(is_missing, BLANK))
    assert not any(map(is_missing, ["no", "0", 0, 0.0, False, "nano", "none seen", "-", [], [None]]))


@pytest.mark.parametrize("blank", BLANK, ids=repr)
def test_missing_cell_of_any_optional_column_is_as_if_it_were_absent(make_source: MakeSource, blank: Any) -> None:
    names = (
        "id", "task", "split", "patient_id", "study_id", "boxes", "masks", "heatmap", "confidence", "modality", "organ",
        "question_type", "labels", "width", "source", "license", "credentialed", "report", "findings", "impression",
    )  # fmt: skip
    without = {name: WHOLE[name] for name in ("image", "question", "answer")}
    bare, filled = (
        read_source(make_source([row], name="source")) for row in (without, {**without, **dict.fromkeys(names, blank)})
    )
    assert filled.faults == [] and filled.samples == bare.samples
    (sample,) = filled.samples
    assert (sample.id, sample.patient_id, sample.license) == ("samples.jsonl:1", None, "unknown")


@pytest.mark.parametrize("blank", BLANK, ids=repr)
@pytest.mark.parametrize("column", ["image", "question", "answer"])
def test_missing_cell_of_a_needed_column_is_a_fault_of_its_row(
    make_source: MakeSource, column: str, blank: Any
) -> None:
    source = read_source(make_source([WHOLE, {**WHOLE, "id": "q2", column: blank}]))
    ((found, sentence),) = faults(source)
    assert found == column and ("is empty" in sentence or "is a missing value; write the answer" in sentence)
    assert [sample.id for sample in source.samples] == ["q1"]


def test_none_in_small_letters_is_an_answer(make_source: MakeSource) -> None:
    answers = ["none", "None seen", "No"]
    source = read_source(make_source({**WHOLE, "id": answer, "answer": answer} for answer in answers))
    assert (source.faults, [sample.answer for sample in source.samples]) == ([], answers)


def test_table_written_by_pandas_has_no_patient_called_nan(make_source: MakeSource) -> None:
    table = pd.DataFrame({
        "id": ["1", "2", "3"], "image": ["a.png", "b.png", "b.png"], "question": "What is seen?",
        "answer": ["a nodule", "a mass", None], "patient_id": [None, 4.0, math.nan], "split": [None, "train", "test"],
        "boxes": [[{"label": "nodule", "x": 1, "y": 2, "w": 3, "h": 4}], None, None],
    })  # fmt: skip
    for text in (table.to_csv(), table.astype(str).to_csv(index=False), table.to_csv(na_rep="NaN")):
        source = read_source(make_source(text=text, table="t.csv"))
        assert faults(source) and {column for column, _ in faults(source)} == {"answer"}
        assert [sample.patient_id for sample in source.samples] == [None, "4"]
        assert [len(sample.boxes) for sample in source.samples] == [1, 0]
        assert ["without a patient" in said for said in source.notices] == [True]  # and nothing of the row numbers
    records = {"t.json": table.to_json(orient="records"), "t.jsonl": json.dumps(WHOLE | {"patient": math.nan})}
    for name, text in records.items():
        source = read_source(make_source(text=text, table=name, name=name))
        assert "nan" not in {str(sample.patient_id).lower() for sample in source.samples}


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in OTHER_FORMS])
@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (["no", "no", "none"], "is a list"),
        ("['no', 'no', 'none']", "is a list"),  # as pandas writes it
        ('["no", null]', "is a list"),
        ([], "is a list"),
        ({"text": "no"}, "is an object"),
        (True, "is a truth value"),
        (False, "is a truth value"),
        (math.inf, "is not a finite number"),
    ],
)
def test_cell_that_is_no_text_is_a_fault(make_source: MakeSource, column: str, cell: Any, said: str) -> None:
    row = {**WHOLE, "id": "q2", column: cell}
    source = read_source(make_source([WHOLE, row]))
    ((found, sentence),) = faults(source)
    assert found == column and said in sentence


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in OTHER_FORMS])
@pytest.mark.parametrize("cell", ["True", "False", "TRUE", "FALSE", " False "])
def test_truth_value_of_a_csv_is_a_fault_as_in_json(make_source: MakeSource, column: str, cell: str) -> None:
    row = {**WHOLE, column: cell}
    text = "\n".join(",".join(map(str, cells)) for cells in (row, row.values()))
    ((found, sentence),) = faults(read_source(make_source(text=text, table="t.csv")))
    assert found == column and "is a truth value" in sentence and "yes or no" in sentence


@pytest.mark.parametrize("cell", ["yes", "no", "true", "false", "Falsely low"])
def test_word_of_a_csv_is_text(make_source: MakeSource, cell: str) -> None:
    row = {**WHOLE, "answer": cell, "credentialed": "True"}
    text = "\n".join(",".join(map(str, cells)) for cells in (row, row.values()))
    source = read_source(make_source(text=text, table="t.csv"))
    assert ([sample.answer for sample in source.samples], source.credentialed) == ([cell], True)


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"confidence": True}, "confidence"),
        ({"masks": [True]}, "masks"),
        ({"masks": [["b.png"]]}, "masks"),
        ({"boxes": False}, "boxes"),
        ({"boxes": {}}, "boxes"),
        ({"boxes": [{"x": True, "y": 1, "w": 1, "h": 1}]}, "boxes"),
        ({"boxes": [{"label": ["a"], "x": 1, "y": 1, "w": 1, "h": 1}]}, "boxes"),
        ({"question": None, "labels": ["Mass"], "width": True}, "width"),
        ({"question": None, "labels": [True]}, "labels"),
        ({"question": None, "labels": {"Mass": 1}}, "labels"),
        ({"question": None, "labels": ["Mass"], "image": ["a.png"]}, "image"),
        ({"credentialed": "perhaps"}, "credentialed"),
        ({"credentialed": ["yes"]}, "credentialed"),
    ],
)
def test_other_columns_take_their_documented_forms_alone(
    make_source: MakeSource, changes: dict[str, Any], column: str
) -> None:
    source = read_source(make_source([WHOLE, {**WHOLE, "id": "q2", **changes}]))
    assert [found for found, _ in faults(source)] == [column]


@pytest.mark.parametrize("mark", [True, "TRUE", "yes", 1, 1.0, "1.0"])
def test_mark_of_credentialed_data_is_read_as_tables_write_it(make_source: MakeSource, mark: Any) -> None:
    assert read_source(make_source([{**WHOLE, "credentialed": mark}])).credentialed


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('[{"a": null}]', [{"a": None}]),
        ("[{'a': None}, 'b']", [{"a": None}, "b"]),
        ("[unfinished", "[unfinished"),
        ("[left] lung", "[left] lung"),
        ("[left]", "[left]"),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        (3, 3),
    ],
)
def test_parsed(cell: Any, expected: Any) -> None:
    assert parsed(cell) == expected


def test_column_that_a_csv_has_twice_is_refused(make_source: MakeSource) -> None:
    folder = make_source(text="id,image,question,answer,answer\n1,a.png,q,yes,no\n", table="t.csv")
    with pytest.raises(InputError, match="has 2 columns 'answer'"):
        read_source(folder)


@pytest.mark.parametrize(("disk", "table"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_files_are_found_in_either_form_of_their_name(
    make_source: MakeSource, png: bytes, disk: Any, table: Any
) -> None:
    names = ("Bücher/Röntgen é.png", "masks/é.png", "heat/é.png")
    on_disk, in_table = ([unicodedata.normalize(form, name) for name in names] for form in (disk, table))
    image, mask, heat = in_table
    rows = [{**WHOLE, "image": image, "masks": [mask], "heatmap": heat}]
    source = read_source(make_source(rows, images=dict.fromkeys(on_disk, png)))
    assert source.faults == []
    (sample,) = source.samples
    (image,) = sample.images
    assert image.file.name == Path(on_disk[0]).name and image.name == unicodedata.normalize("NFC", names[0])
    assert [image.masks[0].parent.name, image.heatmap and image.heatmap.parent.name] == ["masks", "heat"]


def test_two_forms_of_one_name_on_one_disk_are_two_files(make_source: MakeSource, png: bytes) -> None:
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    rows = [{**WHOLE, "id": str(number), "image": name} for number, name in enumerate(names)]
    source = read_source(make_source(rows, images=dict.fromkeys(names, png)))
    assert [sample.images[0].file.name for sample in source.samples] == names
