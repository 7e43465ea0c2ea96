"""The preference dataset: every row rule, all faults together, and rows that come back as they were written."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Value, load_dataset
from PIL import Image

from mmedpo import schema
from mmedpo.data import loading, shards
from mmedpo.errors import InputError
from mmedpo.report.audit.read import chosen_side

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)


def picture(pixels: np.ndarray = PIXELS, kind: str = "PNG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": f"picture.{kind.lower()}"}


def says(content: str | None, role: str | None = "assistant") -> list[dict[str, str | None]]:
    return [{"role": role, "content": content}]


def row(**changes: Any) -> dict[str, Any]:
    """A good row about an open question, but for `changes`."""
    provenance = dict.fromkeys(schema.FEATURES["provenance"])
    return {
        "id": "r0", "images": [picture()], "rejected_images": None,
        "prompt": says("What is seen?", "user"), "chosen": says("a nodule"), "rejected": says("a mass"),
        "weight": 1.0, "clinical_relevance": 0.5, "dispreference": "hallucinated_response", "task": "open_vqa",
        "source": "here", "license": "cc0-1.0", "provenance": provenance, **changes,
    }  # fmt: skip


def dataset(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(rows), features=schema.FEATURES)


def faults(**changes: Any) -> list[tuple[str, str]]:
    return [(fault.column, fault.sentence) for fault in schema.validate(dataset(row(**changes)))]


VISUAL = {"rejected_images": [picture(PIXELS // 2)], "rejected": says("a nodule"), "dispreference": "lesion_noise"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        VISUAL,
        {"weight": 0.0, "clinical_relevance": 0.0},
        {"weight": 7.5, "clinical_relevance": 1.0},
        {"weight": 1.0, "clinical_relevance": None},  # nobody scored it
        {"images": [picture(kind="JPEG"), picture()]},
        {"task": "closed_vqa", "chosen": says("yes"), "rejected": says("no")},
        # a report may deny in both sides and repeat much of the gold text
        {"task": "report", "chosen": says("There is no mass."), "rejected": says("There is no mass. No effusion.")},
        {**VISUAL, "rejected": says("a mass"), "rejected_images": [picture()]},  # the texts differ
        {"chosen": says("œdème\u2028pulmonaire"), "rejected": says("épanchement")},
    ],
)
def test_good_rows_have_no_fault(changes: dict[str, Any]) -> None:
    assert faults(**changes) == []


@pytest.mark.parametrize(
    ("changes", "column", "sentence"),
    [
        ({"id": None}, "id", "is empty; every row needs a stable, unique id"),
        ({"id": ""}, "id", "is empty"),
        ({"prompt": []}, "prompt", "has no text"),
        ({"prompt": None}, "prompt", "has no text"),
        ({"prompt": says(" \n", "user")}, "prompt", "has no text"),
        (
            {"prompt": says("What?", "assistant")},
            "prompt",
            "must end with a message of the role user",
        ),
        ({"chosen": says("yes", "wizard")}, "chosen", "has another role than system"),
        ({"rejected": says("a mass", None)}, "rejected", "has another role than system"),
        (
            {"rejected": says("a mass", "user")},
            "rejected",
            "must end with a message of the role assistant",
        ),
        ({"images": [None]}, "images", "the image is missing"),
        ({"weight": 1e30}, "weight", "outside [0, 1000]"),
        ({"chosen": says("")}, "chosen", "has no text"),
        ({"chosen": says(None)}, "chosen", "has no text"),
        ({"rejected": says(None)}, "rejected", "has no text"),
        ({"images": []}, "images", "is empty; every row needs an image"),
        ({"images": None}, "images", "is empty"),
        ({"images": [{"bytes": b"no image", "path": None}]}, "images", "has an unknown format"),
        ({"images": [{"bytes": None, "path": "/no/such.png"}]}, "images", "cannot be decoded"),
        ({**VISUAL, "rejected_images": [{"bytes": b"", "path": None}]}, "rejected_images", "has an unknown format"),
        ({"weight": None}, "weight", "is missing; every row needs one"),
        ({"weight": math.nan}, "weight", "is not a number"),
        ({"weight": -0.5}, "weight", "is -0.5, outside [0, 1000]"),
        ({"weight": math.inf}, "weight", "is inf, outside [0, 1000]"),
        ({"clinical_relevance": None, "weight": 1.1}, "clinical_relevance", "is missing; a row without it has"),
        ({"clinical_relevance": math.nan}, "clinical_relevance", "is not a number"),
        ({"clinical_relevance": 1.5}, "clinical_relevance", "is 1.5, outside [0, 1]"),
        *(({column: None}, column, "is missing") for column in ("task", "dispreference", "provenance")),
        ({"rejected": says("A NODULE ")}, "rejected", "are equal on equal images"),
        ({"rejected": says("a\u00a0\u200bnodu\u00adle")}, "rejected", "are equal on equal images"),
        ({"chosen": says("T2-weighted"), "rejected": says("T₂‑weighted")}, "rejected", "are equal on equal images"),
        ({"rejected": says("ａ nodule, left")}, "rejected", "contains the gold answer"),
        ({"chosen": says("No"), "rejected": says("Ｎｏ\u200b, none")}, "rejected", "both sides say the same"),
        ({"chosen": says("\u200b\u00a0")}, "chosen", "has no text"),
        ({**VISUAL, "rejected": says("a\u00a0nodule"), "rejected_images": [picture()]}, "rejected_images", "are equal"),
        ({"rejected": says("there is a nodule here")}, "rejected", "contains the gold answer"),
        ({"chosen": says("No"), "rejected": says("no, none")}, "rejected", "both sides say the same"),
        ({"rejected_images": []}, "rejected_images", "is an empty list; null means the same images"),
        ({**VISUAL, "rejected_images": [picture()]}, "rejected_images", "both sides are equal, images and texts"),
    ],
)
def test_broken_rule_is_one_fault_of_its_column(changes: dict[str, Any], column: str, sentence: str) -> None:
    ((found_column, found_sentence),) = faults(**changes)
    assert found_column == column
    assert sentence in found_sentence


@pytest.mark.parametrize("value", [9, -1, "lesion"])  # Parquet files of others hold any number
@pytest.mark.parametrize("column", ["task", "dispreference"])
def test_a_label_without_a_name_is_a_fault(column: str, value: Any) -> None:
    (found,) = schema.row_faults({**row(), column: value})
    assert found.column == column and found.sentence.startswith("is none of ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_image_is_found_though_its_header_is_whole(kind: str) -> None:
    image = picture(kind=kind)
    half = image["bytes"][: len(image["bytes"]) // 2]
    with Image.open(io.BytesIO(half)) as opened:
        assert opened.size == (32, 32)
    ((column, sentence),) = faults(images=[{"bytes": half, "path": None}])
    assert column == "images" and "cannot be decoded" in sentence


def test_faults_name_no_memory_address() -> None:
    ((_, sentence),) = faults(images=[{"bytes": b"no image", "path": None}])
    assert " at 0x" not in sentence


def test_all_faults_of_all_rows_are_reported_together() -> None:
    rows = [
        row(id="good"),
        row(id="bad", weight=math.nan, clinical_relevance=2.0, prompt=[], images=[{"bytes": b"", "path": None}]),
        row(id="twice"),
        row(id="twice", weight=-1.0),
    ]
    found = {(fault.row, fault.column) for fault in schema.validate(dataset(*rows))}
    bad = {("bad", column) for column in ("weight", "clinical_relevance", "prompt", "images")}
    assert found == bad | {("twice", "weight"), ("twice", "id")}


def test_repeated_id_is_counted_once_with_its_number() -> None:
    (fault,) = schema.validate(dataset(row(), row(), row()))
    assert str(fault) == "r0 [id]: occurs 3 times; ids must be unique"


@pytest.mark.parametrize("column", list(schema.FEATURES))
def test_missing_column_is_named_with_what_was_expected(column: str) -> None:
    (fault,) = schema.validate(dataset(row(weight=None)).remove_columns(column))
    assert (fault.row, fault.column) == ("(all rows)", column)
    assert fault.sentence.startswith("is missing; expected ")


@pytest.mark.parametrize("column", ["weight", "id"])
def test_column_of_another_type_is_named_with_both(column: str) -> None:
    other = Value("float64") if column == "weight" else Value("large_string")
    (fault,) = schema.validate(dataset(row()).cast_column(column, other))
    assert fault.column == column
    assert fault.sentence == f"has type {other}; expected {schema.FEATURES[column]}"


def test_provenance_of_earlier_versions_and_of_chosen_sides() -> None:
    kinds = schema.FEATURES["provenance"]
    for left_out in ("noise_per", "mask_coverage"):
        fewer = {name: kind for name, kind in kinds.items() if name != left_out}
        assert schema.column_faults({**schema.FEATURES, "provenance": fewer}) == []
    more = {**kinds, "gold": Value("string"), "chosen_changes": Value("int32")}
    assert schema.column_faults({**schema.FEATURES, "provenance": more}) == []
    for wrong in ({**kinds, "seed": Value("string")}, {**kinds, "chosen_changes": Value("string")}, {**kinds, "x": 1}):
        (fault,) = schema.column_faults({**schema.FEATURES, "provenance": wrong})
        assert fault.column == "provenance"


@pytest.mark.parametrize(
    ("made", "side"),
    [
        ({}, ""),
        ({"chosen_by": None, "chosen_prompt_version": None}, ""),  # a visual pair
        ({"chosen_by": "gold"}, "gold"),
        ({"chosen_by": "org/chat", "chosen_prompt_version": "correct@1"}, "corrected"),
        ({"chosen_by": "org/vlm", "chosen_prompt_version": "ranked@1:f1:strict@4"}, "ranked"),
    ],
)
def test_chosen_side(made: dict[str, Any], side: str) -> None:
    assert chosen_side(made) == side


def test_further_columns_are_allowed() -> None:
    assert schema.validate(dataset(row()).add_column("note", ["mine"])) == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "task", "expected"),
    [
        ("a nodule", " ", "open_vqa", "is empty"),
        ("a nodule", "A Nodule", "report", "are equal"),
        ("yes", "Yes, indeed", "closed_vqa", "both sides say the same"),
        ("yes", "no", "closed_vqa", None),
        ("yes", "perhaps", "closed_vqa", None),
        ("nodule", "two nodules", "open_vqa", None),
        ("nodule", "no nodule", "open_vqa", "contains the gold answer"),
        ("nodule", "no nodule", "report", None),
    ],
)
def test_text_fault(chosen: str, rejected: str, task: str, expected: str | None) -> None:
    found = schema.text_fault(chosen, rejected, task)
    assert found is None if expected is None else found is not None and expected in found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    colour = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    rows = [
        row(id="grey", **VISUAL),
        row(id="œdème\u2028/1", images=[picture(colour, "JPEG"), picture(colour)], rejected=says("épanchement")),
    ]
    folder = tmp_path_factory.mktemp("written")
    shards.save(iter(rows), folder)
    return folder, rows


def test_saved_images_come_back_byte_by_byte_and_pixel_by_pixel(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, rows = written
    loaded = loading.load(str(folder))
    for before, after in zip(rows, raw(folder), strict=True):
        for column in ("images", "rejected_images"):
            assert bytes_of(after[column]) == bytes_of(before[column])
    assert np.array_equal(np.asarray(loaded[0]["images"][0]), PIXELS)
    assert np.array_equal(np.asarray(loaded[0]["rejected_images"][0]), PIXELS // 2)
    assert loaded[1]["rejected_images"] is None
    assert loaded[1]["id"] == "œdème\u2028/1"
    assert [loaded.features["task"].int2str(task) for task in loaded["task"]] == ["open_vqa", "open_vqa"]


def raw(folder: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet

    (file,) = folder.glob("data/*.parquet")
    return parquet.read_table(file).to_pylist()


def bytes_of(images: list[dict[str, Any]] | None) -> list[bytes] | None:
    return images and [image["bytes"] for image in images]


def test_plain_load_dataset_gives_the_features(written: tuple[Path, list[dict[str, Any]]]) -> None:
    loaded = load_dataset(str(written[0]))
    assert list(loaded) == ["train"]
    assert loaded["train"].features == schema.FEATURES


def test_saving_twice_gives_the_same_bytes(written: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, rows = written
    shards.save(iter(rows), tmp_path)
    (first,), (again,) = folder.glob("data/*"), tmp_path.glob("data/*")
    assert first.name == again.name == "train-00000-of-00001.parquet"
    assert first.read_bytes() == again.read_bytes()


def numbered(count: int) -> list[dict[str, Any]]:
    return [row(id=f"r{number}", images=[picture(PIXELS + np.uint8(number))]) for number in range(count)]


def shard_files(rows: list[dict[str, Any]], folder: Path, size: str = "8KB") -> dict[str, bytes]:
    shards.save(iter(rows), folder, shard_size=size)
    return {file.name: file.read_bytes() for file in sorted(folder.glob("data/*"))}


def test_what_an_interrupted_save_left_is_not_mixed_with_what_is_saved(tmp_path: Path) -> None:
    assert len(shard_files(numbered(8), tmp_path / "again", "1KB")) > 1
    left = tmp_path / "again" / "data" / "train-00009.partial"
    left.write_bytes(b"half")
    left.with_name("test-00000-of-00001.parquet").write_bytes(b"of another split")
    found = shard_files(numbered(2), tmp_path / "again")
    assert found.pop("test-00000-of-00001.parquet") == b"of another split"
    assert found == shard_files(numbered(2), tmp_path / "fresh")


def test_an_image_of_several_rows_is_stored_once(tmp_path: Path) -> None:
    """32 rows at a time; each of them reads it back, plain and streamed."""
    large, noised = picture(np.random.default_rng(1).integers(0, 256, (400, 400), dtype=np.uint8)), picture()
    rows = [
        row(id="text", images=[large]),
        row(**{**VISUAL, "id": "visual", "images": [large], "rejected_images": [noised]}),
    ]
    rows += [row(id=f"more {number}", images=[large]) for number in range(20)]
    (file,) = shard_files(rows, tmp_path, "500MB").values()
    assert len(large["bytes"]) < len(file) < 1.5 * len(large["bytes"])
    for streaming in (False, True):
        loaded = load_dataset(
            "parquet", data_files=str(tmp_path / "data/*.parquet"), split="train", streaming=streaming
        )
        assert loaded.features == schema.FEATURES
        found = list(schema.undecoded(loaded))
        assert [one["images"] for one in found] == [[large]] * 22
        assert [one["rejected_images"] for one in found] == [None, [noised], *[None] * 20]


@pytest.mark.parametrize(("rows", "groups"), [(20, [20, 20, 20]), (6, [18]), (40, [32, 32, 16, 32, 8])])
def test_a_row_group_ends_with_the_rows_of_an_image(rows: int, groups: list[int], tmp_path: Path) -> None:
    rng, made = np.random.default_rng(1), []
    shown = [picture(rng.integers(0, 256, (400, 400), dtype=np.uint8)) for _ in range(3)]
    for number in range(3 * rows):
        about = {**row()["provenance"], "image_id": f"{number // rows}.png"}
        made.append(row(id=f"r{number}", images=[shown[number // rows]], provenance=about))
    (file,) = shard_files(made, tmp_path, "500MB").values()
    found = pq.read_metadata(next(tmp_path.glob("data/*")))
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == groups
    copies = 1 if rows <= schema.ROWS_AT_ONCE else 2
    assert copies <= len(file) / sum(len(image["bytes"]) for image in shown) < copies + 0.2


def test_a_shard_ends_soon_after_its_size(tmp_path: Path) -> None:
    rows = numbered(60)
    sizes = [len(one["images"][0]["bytes"]) for one in rows]
    made = shard_files(rows, tmp_path)
    assert list(made) == [f"train-{number:05d}-of-{len(made):05d}.parquet" for number in range(len(made))]
    # at least 8,000 bytes of images in all but the last, never more than twice that and a row
    assert sum(sizes) // (16_000 + max(sizes)) <= len(made) <= sum(sizes) // 8000 + 1
    assert len(made) > 3 and loading.load(str(tmp_path))["id"] == [one["id"] for one in rows]


def test_a_shard_ends_soon_after_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer and its readers hold of a file grows with its rows, however small their images are."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 10)
    made = shard_files(numbered(60), tmp_path, "500MB")
    held = [pq.read_metadata(tmp_path / "data" / name).num_rows for name in made]
    assert sum(held) == 60 and len(held) >= 3
    assert all(10 < rows <= 21 for rows in held[:-1])


def test_shards_behind_a_changed_or_added_row_stay_as_they_were(tmp_path: Path) -> None:
    rows = numbered(60)
    before = set(shard_files(rows, tmp_path / "a").values())
    changed = [{**one, "images": [picture(PIXELS[:31])]} if one["id"] == "r20" else one for one in rows]
    added = [*rows[:20], {**rows[20], "id": "between"}, *rows[20:]]
    for name, others in {"changed": changed, "added": added}.items():
        after = set(shard_files(others, tmp_path / name).values())
        assert len(after - before) <= 2 and len(after & before) >= 2, name


@pytest.mark.parametrize("size", ["", "many", "0MB", "-3MB"])
def test_a_shard_size_that_is_none_is_bad_input(size: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a size; give one such as 500MB"):
        shards.save(iter([row()]), tmp_path, shard_size=size)


def test_faulty_rows_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 faults in the rows to be written") as raised:
        shards.save([row(), row(id="r1", weight=-1.0), row(id="r2", weight=None)], tmp_path)
    assert [fault.row for fault in raised.value.faults] == ["r1", "r2"]
    assert list(tmp_path.iterdir()) == []


def test_faulty_dataset_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    dataset(row(), row(weight=math.nan)).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match="breaks the preference schema") as raised:
        loading.load(str(tmp_path))
    assert {fault.column for fault in raised.value.faults} == {"weight", "id"}


def nothing(folder: Path) -> None:
    pass


def broken_parquet(folder: Path) -> None:
    (folder / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and then nothing")


@pytest.mark.parametrize("prepare", [nothing, broken_parquet])
def test_unloadable_folder_is_bad_input_that_names_it(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path)
    with pytest.raises(InputError, match=r"cannot be loaded as a dataset.*mmedpo curate") as raised:
        loading.load(str(tmp_path))
    assert str(tmp_path) in str(raised.value)


def test_unknown_split_is_bad_input(written: tuple[Path, list[dict[str, Any]]]) -> None:
    with pytest.raises(InputError, match="split 'test'"):
        loading.load(str(written[0]), "test")
