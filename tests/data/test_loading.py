"""Loading a dataset: what `datasets` is asked for."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset
from pyarrow import Table
from pyarrow.parquet import write_table

from mmedpo import schema
from mmedpo.data import loading, origin
from mmedpo.errors import InputError

ROW = '{"chosen": "a private note", "rejected": "b", "prompt": "q"}\n'


def test_load_splits_reads_no_file_ahead(preferences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's buffers would hold 1.7 GB of a file of 1.5 GB, against 0.4 GB."""
    asked: list[dict[str, Any]] = []
    inner = datasets.load_dataset

    def spy(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return inner(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", spy)
    assert loading.load_splits(str(preferences))["train"].num_rows
    assert [kwargs["fragment_scan_options"].pre_buffer for kwargs in asked] == [False]
    assert [kwargs["batch_size"] for kwargs in asked] == [schema.ROWS_AT_ONCE]  # however large a row group is


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("data/train-00000-of-00001.parquet", lambda rows, file: rows.to_parquet(file)),
        ("train.jsonl", lambda rows, file: rows.to_json(file)),
    ],
    ids=["shards", "another layout"],
)
def test_load_splits_sees_a_file_replaced_by_one_of_the_same_size_and_time(
    name: str, write: Callable[[Dataset, Path], object], tmp_path: Path
) -> None:
    file, states = tmp_path / name, []
    file.parent.mkdir(exist_ok=True)
    for value in (1, 2):
        write(Dataset.from_dict({"a": [value]}), file)
        os.utime(file, (0, 0))  # as an archive with fixed times would
        states.append((file.stat().st_size, file.stat().st_mtime_ns))
        for _ in range(2):
            assert loading.load_splits(str(tmp_path))["train"]["a"][:] == [value]
    assert states[0] == states[1]


def card(folder: Path, **config: str) -> None:
    named = "".join(f"  {name}: {value}\n" for name, value in config.items())
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n{named}---\n")


@pytest.mark.parametrize("door", ["absolute", "upwards", "link", "shard"])
def test_a_dataset_holds_its_rows_itself(tmp_path: Path, preferences: Path, door: str) -> None:
    folder, private = tmp_path / "theirs", tmp_path / "private"
    for made in (folder / "data", private):
        made.mkdir(parents=True)
    (private / "notes.jsonl").write_text(ROW)
    if door == "shard":
        (shard,) = (preferences / "data").glob("train-*.parquet")
        (folder / "data" / "train-00000-of-00001.parquet").symlink_to(shard)
    elif door == "link":
        (folder / "train.jsonl").symlink_to(private / "notes.jsonl")
    else:
        card(folder, data_files=f"{private}/*.jsonl" if door == "absolute" else "../private/notes.jsonl")
    for read in (loading.load_splits, loading.undecoded_splits, origin.credentialed_source):
        with pytest.raises(InputError, match="its card or a link names files outside of the dataset") as caught:
            read(str(folder))
        assert "a private note" not in str(caught.value)


def test_a_card_may_name_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.jsonl").write_text(ROW)
    card(tmp_path, data_files="notes.jsonl")
    assert loading.load_splits(str(tmp_path))["train"].num_rows == 1
    monkeypatch.chdir(tmp_path)  # where a URL read as a path would be inside
    card(tmp_path, data_files="zip://notes.jsonl::notes.zip")
    with pytest.raises(InputError):
        loading.load_splits(".")


def test_a_split_with_a_missing_file_is_refused(tmp_path: Path, preferences: Path) -> None:
    folder = shutil.copytree(preferences, tmp_path / "pairs")
    (shard,) = folder.glob("data/*.parquet")
    first = shard.rename(shard.with_name("train-00000-of-00002.parquet"))
    for read in (loading.load_splits, loading.undecoded_splits):
        with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet .* is missing"):
            read(str(folder))
    shutil.copy(first, first.with_name("train-00001-of-00002.parquet"))
    assert loading.load_splits(str(folder))["train"].num_rows % 2 == 0
    shutil.copy(first, shard)  # of an older upload
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet .* does not belong to the split's 2 files"):
        loading.load_splits(str(folder))


def test_a_manifest_of_other_types_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"source": {}, "weights": 3}')
    with pytest.raises(InputError, match=r"'weights' of its manifest\.json is not a dict"):
        origin.dataset_manifest(str(tmp_path), None)


def test_origins_are_read_few_rows_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    packed = {"source": ["x" * 20_000] * 1999 + ["MIMIC-CXR"]}  # 40 MB of texts in a file of 50 kB; no licences
    write_table(Table.from_pydict(packed), tmp_path / "data" / "train-00000-of-00001.parquet")
    origin.credentialed_source(tmp_path)  # imports what it needs
    tracemalloc.start()
    assert origin.credentialed_source(tmp_path) == "MIMIC-CXR"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6


def test_the_current_folder_is_said_to_hold_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it is empty
    with pytest.raises(InputError) as raised:
        loading.load_splits(".", streaming=True)
    assert "dataset_name" not in str(raised.value) and tmp_path.name in str(raised.value)


def test_a_dataset_without_rows_is_said_to_have_none(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Dataset.from_dict({"a": [1]}).select([]).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(InputError, match=r"' has no rows\."):
        loading.load_splits(str(tmp_path))
