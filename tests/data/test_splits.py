"""How a source is split: near shares on small sources, and what is said and recorded of it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmedpo.curation.plan import open_source
from mmedpo.curation.settings import Settings
from mmedpo.data.sources import Source, read_source
from mmedpo.data.splits import MANY, SHARES, part, places
from mmedpo.evaluation.questions import Asked, read

MakeSource = Callable[..., Path]


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("RGB", (4, 4), (number % 256, number // 256, 7))
    image.putpixel((0, 0), (0, 0, 0))
    image.save(buffer, "PNG")
    return buffer.getvalue()


def folder(make_source: MakeSource, count: int, name: str = "clinic", **columns: Callable[[int], Any]) -> Path:
    """Two questions about each of `count` images, with further columns by the image's number."""
    rows = [
        {"id": f"{number}-{kind}", "image": f"{number}.png", "question": f"Is there {kind}?", "answer": "yes"}
        | {column: of(number) for column, of in columns.items()}
        for number in range(count)
        for kind in ("a mass", "a cyst")
    ]
    return make_source(rows, images={f"{number}.png": picture(number) for number in range(count)}, name=name)


def rows_by_split(source: Source) -> dict[str, int]:
    return dict(Counter(sample.split for sample in source.samples))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, {"train": 2}),
        (2, {"train": 2, "test": 2}),
        (10, {"train": 12, "validation": 2, "test": 6}),
        (20, {"train": 24, "validation": 4, "test": 12}),
        (37, {"train": 44, "validation": 8, "test": 22}),
    ],
)
def test_shares_of_a_small_source_are_as_near_as_its_images_allow(
    make_source: MakeSource, count: int, expected: dict[str, int]
) -> None:
    source = read_source(folder(make_source, count))
    assert rows_by_split(source) == source.split_rows == expected
    assert source.note and "since its table has none: train" in source.note


def test_patients_of_unequal_size_share_rows_nearly(make_source: MakeSource) -> None:
    # 8 patients of 1 to 15 images
    source = read_source(folder(make_source, 60, patient=lambda number: int(number**0.5)))
    assert source.split_by == "patient"
    shares = {name: rows / 120 for name, rows in source.split_rows.items()}
    assert shares["train"] == pytest.approx(0.6, abs=0.15) and shares["test"] == pytest.approx(0.3, abs=0.15)
    homes: dict[str | None, set[str]] = {}
    for sample in source.samples:
        homes.setdefault(sample.patient_id, set()).add(sample.split)
    assert len(homes) == 8 and all(len(found) == 1 for found in homes.values())


def test_places_are_in_order_of_the_hash_whatever_the_number() -> None:
    sizes = {f"{number}.png": 1 for number in range(MANY)}
    many, few = places(sizes), places(dict(list(sizes.items())[:-1]))
    assert sorted(few, key=few.__getitem__) == [name for name in sorted(many, key=many.__getitem__) if name in few]
    assert {name: round(place * 199 - 0.5) for name, place in few.items()} == {
        name: rank for rank, name in enumerate(sorted(few, key=few.__getitem__))
    }
    assert many.items() <= places({**sizes, "new.png": 5}).items()  # of many, no image's place depends on others


@pytest.mark.parametrize("count", [5, 20, 60, 150])
def test_a_new_image_moves_neighbours_of_the_cuts_at_most(count: int) -> None:
    before = places({f"{number}.png": 1 for number in range(count)})
    after = places({f"{number}.png": 1 for number in range(count + 1)})
    assert sum(part(before[name]) != part(after[name]) for name in before) <= len(SHARES) - 1


def test_what_changed_side_is_counted_and_said(make_source: MakeSource) -> None:
    path = folder(make_source, 10, split=lambda number: "train" if number < 5 else "test")
    (path / "samples.jsonl").write_text((path / "samples.jsonl").read_text().replace('"test"', '"train"', 1))
    source = read_source(path)
    own = {row["id"]: row["split"] for row in map(json.loads, (path / "samples.jsonl").read_text().splitlines())}
    changed = [sample for sample in source.samples if sample.split != own[sample.id]]
    assert source.moved == {"rows": len(changed), "images": len({sample.image_id for sample in changed})}
    assert source.split_notice == f"{source.note} No --split was given: rows of all splits are used."
    assert source.note == (
        "The split of clinic is made by image (60/10/30 %), since its own has 1 of 10 images in several splits: train "
        f"12 rows, validation 2 rows, test 6 rows. {len(changed)} rows about {source.moved['images']} images "
        "changed their split. --official-split keeps its own."
    )
    assert source.record("train")["moved"] == source.moved


def test_own_split_is_said_too(make_source: MakeSource) -> None:
    source = read_source(folder(make_source, 5, split=lambda number: "dev" if number else "train"), "dev")
    assert (source.note, source.moved) == (None, {})
    assert source.split_notice == "The split of clinic is its table's own: train 2 rows, dev 8 rows."
    assert "moved" not in source.record("dev") and source.record("dev")["split_rows"] == {"train": 2, "dev": 8}


def test_curate_takes_the_official_split_where_asked(make_source: MakeSource) -> None:
    path = folder(make_source, 4, split=lambda number: "train")
    table = path / "samples.jsonl"
    table.write_text("".join(
        json.dumps(json.loads(line) | {"split": ("train", "test")[number % 2]}) + "\n"
        for number, line in enumerate(table.read_text().splitlines())
    ))  # fmt: skip
    settings = {"source": path, "split": "test", "localizer": "none"}
    anew, official = (open_source(Settings(**settings, official_split=asked)) for asked in (False, True))
    assert anew.split_by == "image" and len(anew.samples) == 2
    assert [sample.id for sample in official.samples] == [f"{number}-a cyst" for number in range(4)]
    assert official.split_notice.endswith("It is kept: 4 images of test are in other splits too.")
    assert official.record("test") | {"notices": []} == {
        "name": "clinic", "license": "unknown", "licenses": {"unknown": 4}, "split": "test", "split_by": "source",
        "split_rows": {"train": 4, "test": 4}, "images_in_other_splits": 4, "questions": 4, "doubtful_answers": {},
        "notices": [],
    }  # fmt: skip


@pytest.mark.parametrize("column", ["patient_id", "study_id"])
@pytest.mark.parametrize(
    ("cells", "name"),
    [
        (("Andr\u00e9", "Andre\u0301"), "Andr\u00e9"),
        (("P\u20111", "P-1", "P\u20131"), "P-1"),
        (("P\u200b1", "P1", " P1\u00a0"), "P1"),
        (("\uff11\uff12", "12", 12, 12.0, "12.0"), "12"),
        (("J  Doe", "J\u3000Doe"), "J Doe"),
        ((1.5, "1.5"), "1.5"),
        (("p1", "P1"), None),  # case may tell two apart
    ],
)
def test_one_patient_or_study_under_several_spellings_is_one(
    make_source: MakeSource, column: str, cells: tuple[Any, ...], name: str | None
) -> None:
    path = folder(make_source, len(cells), **{column: cells.__getitem__})
    found = {sample.patient_id for sample in read_source(path).samples}
    assert found == ({name} if name else set(cells))
    assert name is None or len({sample.split for sample in read_source(path).samples}) == 1


@pytest.mark.parametrize("column", ["patient_id", "study_id"])
@pytest.mark.parametrize("cell", ["unknown", "-", "Anonymous", "--", "?", "ANONYMIZED", "_", "\u2014", "Not available"])
def test_nobodys_name_is_no_patient_and_is_said(make_source: MakeSource, column: str, cell: str) -> None:
    source = read_source(folder(make_source, 8, **{column: lambda _: cell}))
    assert ({sample.patient_id for sample in source.samples}, source.split_by) == ({None}, "image")
    assert source.notices == [
        "clinic: 16 rows with a placeholder as patient or study (unknown, anonymous, -), which is read as missing."
    ]


@pytest.mark.parametrize(
    ("column", "split", "shared", "said"),
    [
        ("patient", "test", 2, "It is kept: 2 patients of test are in other splits too."),
        ("patient", None, 2, "It is kept: 2 patients of it are in other splits too."),
        ("study", "train", 2, "It is kept: 2 studies of train are in other splits too."),
        ("patient", "validation", 0, "The split of clinic is its table's own"),
    ],
)
def test_patients_that_an_official_split_shares_are_counted_and_said(
    make_source: MakeSource, column: str, split: str | None, shared: int, said: str
) -> None:
    parts = ["train", "train", "test", "test", "train", "validation"]
    names = ["p", "q", "p", "q", "r", "s"]
    path = folder(make_source, 6, split=parts.__getitem__, **{column: names.__getitem__})
    source = read_source(path, split, official_split=True)
    assert (source.patients_in_other_splits, source.images_in_other_splits) == (shared, 0)
    assert said in source.split_notice and ("It is kept" in source.split_notice) == bool(shared)
    assert source.record(split).get("patients_in_other_splits", 0) == shared
    recorded = read(Asked(path, split=split, official_split=True)).record
    assert (recorded["patients_in_other_splits"], recorded["images_in_other_splits"]) == (shared, 0)


@pytest.mark.parametrize("other", ["study_id", "StudyInstanceUID", "study"])
def test_study_stands_for_the_patient_where_none_is_named(make_source: MakeSource, other: str) -> None:
    source = read_source(folder(make_source, 12, **{other: lambda number: f"s{number // 3}"}))
    assert (source.split_by, {sample.patient_id for sample in source.samples}) == ("study", {"s0", "s1", "s2", "s3"})
    assert all(len({s.split for s in source.samples if s.patient_id == f"s{n}"}) == 1 for n in range(4))
    assert ["clinic has studies but no patients" in said for said in source.notices] == [True]
    both = read_source(folder(make_source, 4, "both", study=lambda number: "s", patient=lambda number: f"p{number}"))
    assert (both.split_by, {sample.patient_id for sample in both.samples}) == ("patient", {"p0", "p1", "p2", "p3"})
    assert both.notices == []


BY_STUDY = "the study is used as the patient of {}, who may be one named elsewhere"


@pytest.mark.parametrize(
    ("study", "patients", "said"),
    [
        ([None] * 6, [None, None], "their images are split one by one"),
        (["s"] * 6, ["p", "p"], BY_STUDY.format(4)),  # a study lies within one patient
        ([None, None, None, None, "s", "s"], ["study s", "study s"], BY_STUDY.format(4)),
        (
            [None, None, None, None, "p", None],
            ["study p", None],
            f"{BY_STUDY.format(2)}; the images of 2 are split one by one",
        ),
    ],
)
def test_study_stands_for_the_patient_of_rows_without_one_beside_others(
    make_source: MakeSource, study: list[str | None], patients: list[str | None], said: str
) -> None:
    named: dict[str, Any] = {"patient": lambda number: "p" if number < 4 else None, "study": study.__getitem__}
    source = read_source(folder(make_source, 6, **named))
    assert [sample.patient_id for sample in source.samples[::2]] == ["p"] * 4 + patients
    assert source.split_by == "patient"
    assert source.notices == [f"clinic: 4 of 12 rows without a patient: {said}."]


def test_parts_of_a_credentialed_split_are_not_quoted(make_source: MakeSource) -> None:
    source = read_source(folder(make_source, 4, split=lambda _: "secret ward", credentialed=lambda _: True))
    assert source.split_notice == "The split of clinic is its table's own."
