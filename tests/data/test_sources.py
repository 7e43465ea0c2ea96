"""Reading sources: what is accepted, and that each bad input is named with its row and its remedy."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data import files
from mmedpo.data.images import digest, open_rgb, read_heat
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.data.sources import Source, read_source, refuse_faults
from mmedpo.errors import InputError

MakeSource = Callable[..., Path]
CUT = object()  # a key that is left out


def row(**changes: Any) -> dict[str, Any]:
    whole = {"id": "q1", "image": "a.png", "question": "What is seen?", "answer": "a nodule", **changes}
    return {key: value for key, value in whole.items() if value is not CUT}


def only(source: Source) -> Sample:
    assert source.faults == []
    (sample,) = source.samples
    return sample


def test_row_becomes_a_sample(make_source: MakeSource) -> None:
    boxes = [{"label": "nodule", "x": 1, "y": 2.5, "w": 3, "h": 4}, {"x": 0, "y": 0, "width": 1, "height": 1}]
    folder = make_source([row(task="open", split="train", patient_id=7, boxes=boxes, source="clinic", license="mit")])
    shown = SampleImage(
        folder / "a.png", "a.png", (Box("nodule", 1, 2.5, 3, 4), Box("", 0, 0, 1, 1)),
        digest=digest(open_rgb(folder / "a.png")), size=(32, 32),
    )  # fmt: skip
    assert only(read_source(folder)) == Sample(
        id="q1", images=(shown,), question="What is seen?", answer="a nodule", task="open_vqa", patient_id="7",
        split="train", source="clinic", license="mit",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "names"),
    [
        ("id", ["id", "qid", "question_id"]),
        ("image", ["image", "image_name", "img_name", "image_path", "file_name"]),
        ("question", ["question", "prompt"]),
        ("answer", ["answer", "report", "findings"]),
    ],
)
def test_columns_are_found_by_their_usual_names(make_source: MakeSource, column: str, names: list[str]) -> None:
    for name in names:
        sample = only(read_source(make_source([row(**{column: CUT, name: row()[column]})], name=name)))
        assert (sample.id, sample.images[0].file.name, sample.question, sample.answer) == tuple(row().values())


@pytest.mark.parametrize(
    ("task", "answer", "expected"),
    [
        ("closed", "a nodule", "closed_vqa"),
        ("CLOSED ", "yes", "closed_vqa"),  # as VQA-RAD has it
        ("Open", "yes", "open_vqa"),
        ("report", "Clear lungs.", "report"),
        ("open_vqa", "yes", "open_vqa"),
        (CUT, "Yes", "closed_vqa"),
        (CUT, "no", "closed_vqa"),
        (CUT, "Yes.", "closed_vqa"),
        (CUT, "No.", "closed_vqa"),
        (CUT, '"Yes,"', "closed_vqa"),
        (CUT, "*NO*!", "closed_vqa"),
        (CUT, "\uff39\uff45\uff53", "closed_vqa"),
        (CUT, "yes, a nodule", "open_vqa"),
        (CUT, "yes/no", "open_vqa"),
        (CUT, "nº", "open_vqa"),
        (CUT, "nod", "open_vqa"),
        (CUT, "?", "open_vqa"),
        (CUT, "nodule", "open_vqa"),
    ],
)
def test_task_is_the_given_one_or_follows_from_the_answer(
    make_source: MakeSource, task: Any, answer: str, expected: str
) -> None:
    assert only(read_source(make_source([row(task=task, answer=answer)]))).task == expected


def test_masks_heat_map_and_what_the_image_is_are_read(make_source: MakeSource, png: bytes) -> None:
    files = dict.fromkeys(("a.png", "masks/a.png", "masks/left.png", "heat/a.png"), png)
    np.save((folder := make_source([], images=files)) / "a.npy", np.eye(3))
    region = {"masks": ["masks/a.png", "left.png"], "heatmap": "a.npy", "confidence": "0.5"}
    rows = [row(image="./a.png", **region, modality="X-Ray", organ="Chest"), row(id="q2", image="./a.png", boxes=[])]
    rows[1] |= {"mask": "left.png", "heatmap": "heat/a.png", "image_modality": 7, "body_part": "ABD", "confidence": 0}
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_source(folder)
    assert source.faults == []
    first, second = source.samples
    assert first.images[0].masks == (folder / "masks" / "a.png", folder / "masks" / "left.png")
    assert (first.images[0].heatmap, first.images[0].confidence, first.modality, first.organ) == (
        folder / "a.npy",
        0.5,
        "X-Ray",
        "Chest",
    )
    assert second.images[0].masks == (folder / "masks" / "left.png",)
    assert (second.images[0].heatmap, second.images[0].confidence) == (folder / "heat" / "a.png", 0.0)
    assert (second.modality, second.organ) == ("7", "ABD")


def test_row_without_them_has_no_region_of_its_own(make_source: MakeSource) -> None:
    sample = only(read_source(make_source([row(masks=[], heatmap="", confidence=None, modality="", organ=None)])))
    (image,) = sample.images
    assert (image.masks, image.heatmap, image.confidence, sample.modality, sample.organ) == (
        (),
        None,
        None,
        None,
        None,
    )


@pytest.mark.parametrize("cell", ["b.png", '["b.png"]'])
def test_csv_masks_are_one_name_or_json(make_source: MakeSource, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    text = f"id,image,question,answer,masks,heatmap\n1,a.png,q,a,{quoted},\n2,a.png,q,a,,b.png\n"
    folder = make_source(text=text, table="t.csv")
    first, second = read_source(folder).samples
    assert (first.images[0].masks, first.images[0].heatmap) == ((folder / "b.png",), None)
    assert (second.images[0].masks, second.images[0].heatmap) == ((), folder / "b.png")


@pytest.mark.parametrize(("answer", "expected"), [(3, "3"), (0, "0"), (2.5, "2.5"), (" left ", "left")])
def test_answers_are_read_as_text(make_source: MakeSource, answer: Any, expected: str) -> None:
    assert only(read_source(make_source([row(answer=answer)]))).answer == expected


UNICODE = row(id="é\u2028", image="röntgen-胸部.png", question="Où est\u2028l’œdème ?", answer="肺\u2029水腫")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("table", ["samples.jsonl", "samples.json"])
def test_unicode_names_and_texts_survive(make_source: MakeSource, png: bytes, table: str, ending: str) -> None:
    """U+2028 and U+2029 end a line for `str.splitlines`, and are allowed bare inside a JSON string."""
    text = json.dumps([UNICODE, row()] if table.endswith("json") else UNICODE, ensure_ascii=False) + ending
    images = {"bilder/röntgen-胸部.png": png, "a.png": png}
    sample = read_source(make_source(text="\ufeff" + text, table=table, images=images)).samples[0]
    read = {"id": sample.id, "image": sample.images[0].file.name, "question": sample.question, "answer": sample.answer}
    assert read == UNICODE
    assert sample.images[0].file.exists()


def test_csv_with_quotes_and_line_breaks(make_source: MakeSource) -> None:
    text = 'qid,image_name,question,answer,answer_type,boxes\r\n1,a.png,"One\ntwo, ""three""?",é,OPEN,\r\n'
    sample = only(read_source(make_source(text=text, table="t.csv")))
    assert (sample.id, sample.question, sample.answer) == ("1", 'One\ntwo, "three"?', "é")
    assert (sample.task, sample.boxes) == ("open_vqa", ())


def test_csv_boxes_are_json(make_source: MakeSource) -> None:
    text = 'id,image,question,answer,boxes\n1,a.png,q,a,"[{""x"": 1, ""y"": 2, ""w"": 3, ""h"": 4}]"\n'
    assert only(read_source(make_source(text=text, table="t.csv"))).boxes == (Box("", 1, 2, 3, 4),)


def test_row_without_an_id_is_named_by_its_place(make_source: MakeSource) -> None:
    assert only(read_source(make_source(text="\n" + json.dumps(row(id=CUT))))).id == "samples.jsonl:2"


def test_the_table_itself_may_be_given(make_source: MakeSource) -> None:
    folder = make_source([row()])
    (folder / "other.jsonl").write_text(json.dumps(row(id="other")))
    assert only(read_source(folder / "other.jsonl")).id == "other"


def test_images_of_one_name_in_two_folders_stay_apart(make_source: MakeSource, png: bytes) -> None:
    rows = [row(id=folder, image=f"{folder}/0.png") for folder in ("study-1", "study-2")]
    folder = make_source(rows, images={"study-1/0.png": png, "study-2/0.png": png})
    samples = read_source(folder).samples
    assert [sample.images[0].file for sample in samples] == [folder / "study-1" / "0.png", folder / "study-2" / "0.png"]
    assert [sample.image_id for sample in samples] == ["study-1/0.png", "study-2/0.png"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.png", "0.png"),  # the whole path
        ("a/0.png", "a/0.png"),
        ("b/1.png", "deep/b/1.png"),  # the end of the path
        ("2.png", "a/2.png"),  # the base name
    ],
)
def test_image_is_found_by_its_path_or_else_by_its_base_name(
    make_source: MakeSource, png: bytes, name: str, expected: str
) -> None:
    files = ("0.png", "a/0.png", "a/2.png", "b/0.png", "deep/b/1.png", "deep/c/1.png")
    folder = make_source([row(image=name)], images=dict.fromkeys(files, png))
    sample = only(read_source(folder))
    assert (sample.images[0].file, sample.image_id) == (folder / expected, expected)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("0.png", "is the name of 2 files; give its whole path, got '0.png'"),
        (
            "elsewhere/0.png",
            "is not below the source folder; add the file, got 'elsewhere/0.png'",
        ),  # not another folder's
    ],
)
def test_image_that_may_be_another_is_a_fault(make_source: MakeSource, png: bytes, name: str, sentence: str) -> None:
    (fault,) = read_source(make_source([row(image=name)], images=dict.fromkeys(("a/0.png", "b/0.png"), png))).faults
    assert str(fault) == f"samples.jsonl:1 [image]: {sentence}"


def test_a_name_in_many_folders_is_looked_for_once_and_among_its_own_files(
    make_source: MakeSource, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLAKE calls every image source.jpg: with each row looked for among all, time grew with the square of the rows."""
    names = [f"study{number}/image.png" for number in range(30)]
    folder = make_source(
        [row(id=f"{n}", image=name) for n, name in enumerate(names * 2)], images=dict.fromkeys(names, png)
    )
    looked: list[int] = []
    find = files._look_up

    def count(name: object, root: Path, images: files.Files) -> Path | str:
        looked.append(len(images.get(str(name), [])))
        return find(name, root, images)

    monkeypatch.setattr(files, "_look_up", count)
    assert [sample.image_id for sample in read_source(folder).samples] == names * 2
    assert looked == [1] * 30


def test_image_of_two_patients_is_a_fault_and_one_patient_is_the_images(make_source: MakeSource) -> None:
    rows = [row(id="1", patient_id="A"), row(id="2"), row(id="3", image="b.png", patient_id="A")]
    assert [sample.patient_id for sample in read_source(make_source(rows)).samples] == ["A", "A", "A"]
    rows[1]["patient_id"] = "B"
    source = read_source(make_source(rows))
    assert [sample.id for sample in source.samples] == ["3"]
    assert {fault.sentence for fault in source.faults} == {"a.png belongs to 2 patients; give it one"}


# Sources that cannot be read at all.


def missing(folder: Path) -> None:
    (folder / "samples.jsonl").unlink()
    for image in folder.glob("*.png"):
        image.unlink()
    folder.rmdir()


def no_table(folder: Path) -> None:
    (folder / "samples.jsonl").unlink()


def two_tables(folder: Path) -> None:
    (folder / "more.csv").write_text("id\n")


def empty_table(folder: Path) -> None:
    (folder / "samples.jsonl").write_text("\n \n")


def latin_1(folder: Path) -> None:
    (folder / "samples.jsonl").write_bytes('{"answer": "œdème"}'.replace("œ", "oe").encode("latin-1"))


def broken_json(folder: Path) -> None:
    (folder / "samples.jsonl").rename(folder / "samples.json")


def header_only(folder: Path) -> None:
    (folder / "samples.jsonl").unlink()
    (folder / "t.csv").write_text("id,image,question,answer\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (missing, "does not exist; give a folder with a table"),
        (no_table, "has no table; a source is one .jsonl, .json or .csv file"),
        (two_tables, "has 2 tables (samples.jsonl, more.csv)"),
        (empty_table, "has no rows"),
        (header_only, "has no rows"),
        (latin_1, "is not UTF-8"),
        (broken_json, "is not JSON: Extra data: line 2"),
    ],
)
def test_unreadable_source_is_bad_input(make_source: MakeSource, spoil: Callable[[Path], None], message: str) -> None:
    folder = make_source([row(), row(id="q2")])
    spoil(folder)
    with pytest.raises(InputError) as raised:
        read_source(folder)
    assert message in str(raised.value) and str(folder) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": [row()]}, "t.json contains a dict; it must be a list with one object a question"),
        ("row", "t.json contains a str; it must be a list"),
        (["row"], "t.json[1] [(row)]: is not an object"),
        ([row(), 3], "t.json[2] [(row)]: is not an object"),
    ],
)
def test_json_that_is_no_list_of_rows_is_bad_input(make_source: MakeSource, content: Any, message: str) -> None:
    folder = make_source(text=json.dumps(content), table="t.json")
    with pytest.raises(InputError) as raised:
        refuse_faults(read_source(folder), skip_faulty=False)
    assert message in str(raised.value)


# Faulty rows of a source that can be read.

BOX = {"x": 1, "y": 2, "w": 3, "h": 4}


@pytest.mark.parametrize(
    ("changes", "column", "sentence"),
    [
        ({"image": CUT}, "image", "is empty; every row needs the name of an image file"),
        ({"image": ""}, "image", "is empty"),
        ({"image": "c.png"}, "image", "is not below the source folder; add the file, got 'c.png'"),
        ({"image": 5}, "image", "add the file, got 5"),
        ({"image": "scan.nii.gz"}, "image", "is not below the source folder as one of .png, .jpg, "),
        ({"masks": "m.png"}, "masks", "is not below the source folder; add the file, got 'm.png'"),
        ({"masks": ["b.png", "m.png"]}, "masks", "is not below the source folder; add the file, got 'm.png'"),
        ({"masks": '["m.png"]'}, "masks", "is not below the source folder; add the file, got 'm.png'"),
        ({"heatmap": "h.npy"}, "heatmap", "is not below the source folder; add the file, got 'h.npy'"),
        (
            {"heatmap": ["a.png", "b.png"]},
            "heatmap",
            "has several for one image; join them, got ['a.png', 'b.png']",
        ),
        *(
            ({"confidence": confidence}, "confidence", f"is not a number in [0, 1], got {confidence!r}")
            for confidence in (-0.1, 1.1, "high", math.inf, [0.5])
        ),
        ({"question": CUT}, "question", "is empty; every row needs a question"),
        ({"question": " "}, "question", "is empty"),
        ({"answer": CUT}, "answer", "is empty; every row needs a gold answer"),
        ({"answer": None}, "answer", "is empty"),
        ({"answer": "  \n"}, "answer", "is empty"),
        ({"task": "closedish"}, "task", "is unknown; use closed, open, choice or report, got 'closedish'"),
        *(
            ({"boxes": boxes}, "boxes", "boxes are a list of {label, x, y, width (w), height (h)} in pixels, got ")
            for boxes in (
                [{"x": 1, "y": 2, "w": 3}],
                [[1, 2, 3, 4]],
                ["box"],
                [{"x": "left", "y": 2, "w": 3, "h": 4}],
                "[{",  # broken JSON
                "3",  # JSON of a number
                3,
            )
        ),
        *(
            (
                {"boxes": [{**BOX, **changes}]},
                "boxes",
                "a box needs a positive size in pixels and a confidence in [0, 1]",
            )
            for changes in (
                {"w": 0},
                {"h": -4},
                {"x": math.nan},
                {"w": math.inf},
                {"confidence": 3},
                {"confidence": math.nan},
            )
        ),
    ],
)
def test_faulty_row_is_named_and_good_rows_are_kept(
    make_source: MakeSource, changes: dict[str, Any], column: str, sentence: str
) -> None:
    source = read_source(make_source([row(), row(id="q2", **changes)]))
    (fault,) = source.faults
    assert (fault.row, fault.column) == ("samples.jsonl:2", column)
    assert sentence in fault.text
    assert [sample.id for sample in source.samples] == ["q1"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{broken", "is not JSON"),
        ("[1, 2]", "is not an object"),
        ('"row"', "is not an object"),
        ("{} {}", "is not JSON"),
    ],
)
def test_broken_line_is_named(make_source: MakeSource, line: str, sentence: str) -> None:
    source = read_source(make_source(text=f"{json.dumps(row())}\n{line}\n"))
    (fault,) = source.faults
    assert fault.row == "samples.jsonl:2" and sentence in fault.sentence
    assert [sample.id for sample in source.samples] == ["q1"]


@pytest.mark.parametrize("column", ["question", "answer"])
def test_half_a_surrogate_pair_becomes_a_replacement_character(make_source: MakeSource, column: str) -> None:
    sample = only(read_source(make_source([row(**{column: "a \ud800 b \U0001fac1"})])))
    assert getattr(sample, column) == "a ? b \U0001fac1"


def test_id_that_no_file_can_hold_is_mended_or_a_fault(make_source: MakeSource) -> None:
    source = read_source(make_source([row(), row(id="\ud800")]))
    for sample in source.samples:
        sample.id.encode()
    assert len(source.samples) + len(source.faults) == 2


def test_every_fault_of_a_row_and_of_all_rows_is_listed(make_source: MakeSource) -> None:
    source = read_source(make_source([row(question="", answer="", image="c.png"), row(id="q2", task="?")]))
    assert [(fault.row, fault.column) for fault in source.faults] == [
        ("samples.jsonl:1", "image"),
        ("samples.jsonl:1", "question"),
        ("samples.jsonl:1", "answer"),
        ("samples.jsonl:2", "task"),
    ]


def test_second_row_of_an_id_names_the_first(make_source: MakeSource) -> None:
    source = read_source(make_source([row(), row(question="And what else?"), row(id="q2")]))
    (fault,) = source.faults
    assert str(fault) == "samples.jsonl:2 [id]: was used by samples.jsonl:1; make ids unique, got 'q1'"
    assert [(sample.id, sample.question) for sample in source.samples] == [
        ("q1", "What is seen?"),
        ("q2", "What is seen?"),
    ]


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        pytest.param(lambda data: b"", "has an unknown format", id="empty"),
        pytest.param(lambda data: b"no image", "has an unknown format", id="unreadable"),
        pytest.param(lambda data: data[: len(data) // 2], "cannot be decoded", id="truncated"),
    ],
)
def test_bad_image_is_found_before_any_work(
    make_source: MakeSource, png: bytes, spoiled: Callable[[bytes], bytes], sentence: str
) -> None:
    rows = [row(), row(id="q2", image="b.png"), row(id="q3", image="b.png")]
    source = read_source(make_source(rows, images={"a.png": png, "b.png": spoiled(png)}))
    assert [(fault.row, fault.column) for fault in source.faults] == [("q2", "image"), ("q3", "image")]
    assert all(fault.sentence.startswith(f"b.png: the image {sentence}") for fault in source.faults)
    assert [sample.id for sample in source.samples] == ["q1"]


def spoilt_array(heat: np.ndarray, cut: int | None = None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, heat)
    return buffer.getvalue()[:cut]


@pytest.mark.parametrize(
    ("column", "name", "data", "sentence"),
    [
        ("masks", "m.png", b"no image", "m.png: the image has an unknown format"),
        ("masks", "m.npy", spoilt_array(np.eye(3)), "m.npy: the image has an unknown format"),
        ("image", "i.npy", spoilt_array(np.eye(3)), "i.npy: the image has an unknown format"),
        ("heatmap", "h.png", b"no image", "h.png: the image has an unknown format"),
        ("heatmap", "h.npy", b"", "h.npy: the array cannot be read (EOF"),
        ("heatmap", "h.npy", b"no array", "h.npy: the array cannot be read (the magic string is not correct"),
        ("heatmap", "h.npy", spoilt_array(np.eye(3), -1), "h.npy: the array cannot be read (Failed to read all data"),
        ("heatmap", "h.npy", spoilt_array(np.eye(3), 60), "h.npy: the array cannot be read (EOF"),
        ("heatmap", "h.npy", spoilt_array(np.array([{}])), "h.npy: the array cannot be read (Object arrays cannot"),
        ("heatmap", "H.NPY", spoilt_array(np.zeros((2, 3, 4))), "H.NPY: a heat map has 2 dimensions of real numbers; "),
        ("heatmap", "h.npy", spoilt_array(np.zeros((0, 4))), "this is float64 of shape (0, 4)"),
        ("heatmap", "h.npy", spoilt_array(np.eye(2, dtype=complex)), "this is complex128 of shape (2, 2)"),
        ("heatmap", "h.npy", spoilt_array(np.array([["a"]])), "this is <U1 of shape (1, 1)"),
        *(
            ("heatmap", "h.npy", spoilt_array(np.array([[0, odd]])), "h.npy: a heat map has no NaN, no infinity")
            for odd in (-1, math.nan, math.inf)
        ),
    ],
)
def test_bad_mask_or_heat_map_is_found_before_any_work(
    make_source: MakeSource, png: bytes, column: str, name: str, data: bytes, sentence: str
) -> None:
    source = read_source(make_source([row(), row(id="q2", **{column: name})], images={"a.png": png, name: data}))
    (fault,) = source.faults
    assert (fault.row, fault.column) == ("q2", column) and sentence in fault.sentence
    assert [sample.id for sample in source.samples] == ["q1"]


def test_no_damage_to_an_array_file_is_more_than_a_fault(tmp_path: Path) -> None:
    """Every byte replaced in turn, in the header by what Python's and NumPy's parsers stumble over."""
    data, file, outcomes = spoilt_array(np.eye(3, 4)), tmp_path / "h.npy", set()
    for place in range(len(data)):
        for byte in (0, 255, *b" (9'"):
            file.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            try:
                outcomes.add(read_heat(file).ndim)
            except InputError as error:
                outcomes.add(str(error).split(" ")[0])
    assert outcomes == {2, "h.npy:"}


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float16, np.float32])
def test_heat_of_any_real_type_is_read_as_it_is(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "h.npy", np.eye(2, 3).astype(kind))
    heat = read_heat(tmp_path / "h.npy")
    assert heat.dtype == np.float64 and np.array_equal(heat, np.eye(2, 3))


def test_faulty_rows_are_refused_with_the_remedy(make_source: MakeSource) -> None:
    source = read_source(make_source([row(), row(id="q2", answer="")]))
    with pytest.raises(InputError) as raised:
        refuse_faults(source, skip_faulty=False)
    assert "Faulty rows in source: 1. Correct them, or leave these rows out with --skip-faulty." in str(raised.value)
    assert "samples.jsonl:2 [answer]" in str(raised.value)
    refuse_faults(source, skip_faulty=True)
    assert [sample.id for sample in source.samples] == ["q1"]


def test_rows_are_counted_and_not_their_faults(make_source: MakeSource) -> None:
    source = read_source(make_source([row(), row(id="q2", answer="", question="")]))
    with pytest.raises(InputError, match=r"Faulty rows in source: 1\.") as raised:
        refuse_faults(source, skip_faulty=False)
    assert len(raised.value.faults) == 2


@pytest.mark.parametrize(
    ("renamed", "missing", "known"),
    [
        ({"image": "picture"}, ["no column image (or image_name, img_name, "], ["question (or", "answer (or"]),
        (
            {"question": "q", "answer": "a"},
            ["question (or prompt), no answer (or report, findings, impression);"],
            ["image (or"],
        ),
    ],
)
def test_table_whose_columns_have_other_names_is_refused_at_once(
    make_source: MakeSource, renamed: dict[str, str], missing: list[str], known: list[str]
) -> None:
    rows = [{renamed.get(name, name): value for name, value in row(id=str(i)).items()} for i in range(100)]
    with pytest.raises(InputError) as raised:
        read_source(make_source(rows))
    assert all(phrase in str(raised.value) for phrase in missing)
    assert not any(phrase in str(raised.value) for phrase in known)
    assert f"its columns are {', '.join(sorted(rows[0]))}. Rename them" in str(raised.value)


def test_csv_with_semicolons_is_refused_with_what_it_needs(make_source: MakeSource) -> None:
    with pytest.raises(InputError, match=r"its columns are id;image;question;answer.*columns by commas"):
        read_source(make_source(text="id;image;question;answer\n1;a.png;q;a\n", table="t.csv"))


def test_findings_need_an_image_column_alone(make_source: MakeSource) -> None:
    with pytest.raises(InputError, match=r"has no column image \(or [a-z_, ]+\); its columns are file, labels"):
        read_source(make_source([{"file": "a.png", "labels": ["Mass"]}]))


def test_two_hundred_rows_of_different_faults_leave_the_good_ones(make_source: MakeSource, png: bytes) -> None:
    odd: list[dict[str, Any]] = [
        *({"image": f"missing-{i}.png"} for i in range(40)),
        *({"task": f"kind {i}"} for i in range(40)),
        *({"boxes": [{**BOX, "w": -i}]} for i in range(40)),
        *({"confidence": 2 + i} for i in range(40)),
        *({"image": f"cut-{i}.png"} for i in range(40)),
    ]
    images = {"a.png": png, **{f"cut-{i}.png": png[: i * len(png) // 40] for i in range(40)}}
    rows = [row(id=str(i), **changes) for i, changes in enumerate(odd)]
    source = read_source(make_source([row(id="first"), *rows, row(id="last")], images=images))
    assert [sample.id for sample in source.samples] == ["first", "last"]
    with pytest.raises(InputError, match=r"Faulty rows in source: 200\.") as raised:
        refuse_faults(source, skip_faulty=False)
    assert len({fault.row for fault in raised.value.faults}) == 200
    assert str(raised.value).endswith("... and 180 more")


def test_source_without_a_usable_row_is_refused_even_so(make_source: MakeSource) -> None:
    source = read_source(make_source([row(answer="")]))
    with pytest.raises(InputError, match="No row is usable"):
        refuse_faults(source, skip_faulty=True)


def test_faultless_source_is_not_refused(make_source: MakeSource) -> None:
    refuse_faults(read_source(make_source([row()])), skip_faulty=False)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "RGBA"])
def test_image_of_one_colour_is_a_fault_and_such_a_mask_is_none(make_source: MakeSource, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (32, 32), 200 if mode in "LI;16" else (9, 80, 7)).save(buffer, "PNG")
    images = {"a.png": picture(1), "flat.png": buffer.getvalue(), "black.png": mask_of_nothing()}
    source = read_source(make_source([row(image="flat.png"), row(id="q2", masks="black.png")], images=images))
    assert [(fault.row, fault.column) for fault in source.faults] == [("q1", "image")]
    said = "flat.png: the image has one colour everywhere; replace the file or drop the row"
    assert source.faults[0].sentence == said
    assert [sample.id for sample in source.samples] == ["q2"]


def mask_of_nothing() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "PNG")
    return buffer.getvalue()


# Splits and limits.


def picture(number: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image = Image.new("L", (4, 4), number)
    image.putpixel((0, 0), 255 - number)
    image.save(buffer, format)
    return buffer.getvalue()


def questions(count: int, **columns: Callable[[int], Any]) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Two questions about each of `count` images, with further columns by the image's number."""
    rows = [
        row(id=f"{number}-{part}", image=f"{number}.png", **{name: of(number) for name, of in columns.items()})
        for number in range(count)
        for part in "ab"
    ]
    return rows, {f"{number}.png": picture(number) for number in range(count)}


def homes(source: Source, key: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for sample in source.samples:
        found.setdefault(getattr(sample, key), set()).add(sample.split)
    return found


def test_clean_split_of_the_source_is_kept(make_source: MakeSource) -> None:
    rows, images = questions(6, split=lambda number: "train" if number < 4 else "dev")
    source = read_source(make_source(rows, images=images))
    assert source.split_by == "source"
    assert [sample.split for sample in source.samples] == ["train"] * 8 + ["dev"] * 4


def test_split_that_shares_an_image_is_made_anew_by_image(make_source: MakeSource) -> None:
    rows, images = questions(60, split=lambda _: "train")
    rows[1]["split"] = "test"  # its image is also in train
    folder = make_source(rows, images=images)
    source = read_source(folder, seed=1)
    assert source.split_by == "image"
    assert all(len(splits) == 1 for splits in homes(source, "image_id").values())
    shares = [sample.split for sample in source.samples]
    assert shares.count("train") / 120 == pytest.approx(0.6, abs=0.2)  # 3 standard errors of 60 images
    assert set(shares) == {"train", "validation", "test"}
    assert read_source(folder, seed=2).samples == source.samples, "a seed must not move an image to another part"


def test_split_that_shares_a_patient_is_made_anew_by_patient(make_source: MakeSource) -> None:
    columns = {"split": lambda number: "train" if number % 2 else "test", "patient_id": lambda number: number // 2}
    rows, images = questions(20, **columns)
    source = read_source(make_source(rows, images=images))
    assert source.split_by == "patient"
    assert all(len(splits) == 1 for splits in homes(source, "patient_id").values())


def test_an_official_split_is_taken_as_it_stands_and_what_it_shares_is_counted(make_source: MakeSource) -> None:
    rows, images = questions(6, split=lambda number: "train" if number < 4 else "test")
    rows[1]["split"] = rows[3]["split"] = "test"  # their images are also in train
    folder = make_source(rows, images=images)
    anew = read_source(folder)
    assert anew.note and "its own has 2 of 6 images in several splits: train" in anew.note
    source = read_source(folder, "test", official_split=True)
    assert [sample.id for sample in source.samples] == [row["id"] for row in rows if row["split"] == "test"]
    assert (source.split_by, source.images_in_other_splits, source.note) == ("source", 2, None)
    assert read_source(folder, "train", official_split=True).images_in_other_splits == 2


def test_one_picture_under_two_names_is_one_image(make_source: MakeSource) -> None:
    """A copy, and the same pixels in another format, in other splits: the split parts pictures and not names."""
    rows, images = questions(20, split=lambda number: "test" if number >= 17 else "train")
    images |= {"17.png": picture(0), "18.png": images["1.png"], "19.png": picture(2, "BMP")}
    folder = make_source(rows, images=images)
    source = read_source(folder)
    assert source.note and "its own has 3 of 17 images in several splits" in source.note
    assert all(len(splits) == 1 for splits in homes(source, "image_digest").values())
    assert len(homes(source, "image_digest")) == 17 and len(homes(source, "image_id")) == 20
    assert read_source(folder, "test", official_split=True).images_in_other_splits == 3
    # Pictures are named by their first file, and stay where its name puts them.
    alone = read_source(make_source(questions(17)[0], images=images, name="alone"))
    assert homes(alone, "image_id").items() <= homes(source, "image_id").items()


def test_one_picture_under_two_names_has_one_patient(make_source: MakeSource) -> None:
    images = {"a.png": picture(1), "b.png": picture(1), "c.png": picture(2)}
    rows = [row(id="1", patient_id="A"), row(id="2", image="b.png"), row(id="3", image="c.png", patient_id="B")]
    source = read_source(make_source(rows, images=images))
    assert [sample.patient_id for sample in source.samples] == ["A", "A", "B"]
    rows[1]["patient_id"] = "B"
    source = read_source(make_source(rows, images=images))
    assert [sample.id for sample in source.samples] == ["3"]
    assert {(fault.row, fault.sentence) for fault in source.faults} == {
        ("1", "a.png belongs to 2 patients (b.png has the same pixels); give it one"),
        ("2", "b.png belongs to 2 patients (a.png has the same pixels); give it one"),
    }


def test_an_official_split_must_be_there(make_source: MakeSource) -> None:
    rows, images = questions(3, split=lambda number: "train" if number else "")
    folder = make_source(rows, images=images)
    with pytest.raises(InputError, match=r"has 2 rows without a split .*leave out --official-split"):
        read_source(folder, "train", official_split=True)
    note = read_source(folder).note
    assert note and "2 rows of its table without one" in note


def test_missing_split_is_made_and_does_not_depend_on_other_rows(make_source: MakeSource) -> None:
    rows, images = questions(20)
    every = read_source(make_source(rows, images=images))
    assert every.split_by == "image"
    some = read_source(make_source(rows[::-3], images=images, name="some"))
    assert homes(some, "image_id").items() <= homes(every, "image_id").items()


def test_unknown_split_lists_the_known_ones(corpus: Path) -> None:
    with pytest.raises(InputError, match="no split 'train'; it has preference, supervised, test, validation"):
        read_source(corpus, "train")


def test_limit_is_seeded_stable_and_in_the_sources_order(corpus: Path) -> None:
    every = [sample.id for sample in read_source(corpus, "test").samples]

    def kept(limit: int, seed: int) -> list[str]:
        return [sample.id for sample in read_source(corpus, "test", limit, seed).samples]

    assert kept(10, 0) == kept(10, 0)
    assert set(kept(10, 0)) < set(kept(20, 0)) < set(every)  # more of the same shuffle
    assert kept(10, 0) != kept(10, 1)
    assert kept(10, 0) == [id_ for id_ in every if id_ in kept(10, 0)] and len(kept(10, 0)) == 10
    assert kept(10_000, 0) == every


def test_csv_row_with_too_many_cells_is_a_fault_and_not_a_shorter_answer(make_source: MakeSource) -> None:
    source = read_source(make_source(text="image,question,answer\na.png,Any?,no, none at all\n", table="samples.csv"))
    assert [(fault.row, fault.column) for fault in source.faults] == [("samples.csv:2", "(row)")]
    assert "put texts with commas in quotes" in source.faults[0].sentence


def test_csv_cell_may_be_as_long_as_a_report_can_be(make_source: MakeSource) -> None:
    report = "no effusion " * 20_000  # more than the csv module's own limit
    source = read_source(make_source(text=f"image,question,report\na.png,Describe.,{report}\n", table="samples.csv"))
    assert [sample.answer for sample in source.samples] == [report.strip()]
