"""Folders whose names a library could read as a pattern, and names of datasets that nothing has."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from datasets import Dataset
from standins import WORDS

from mmedpo import cli
from mmedpo.data import loading
from mmedpo.errors import InputError
from mmedpo.runs import writable
from mmedpo.runs.run_folder import output_folder, short_folder

NAMES = ("a[x]", "b*", "c?", "d{1,2}", "e{", "f[", "$a%20 #b", "*?[a]{b,c}")


def exit_code(words: list[str]) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
        raise SystemExit(0)
    return ended.value.code or 0


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_no_pattern(tmp_path: Path, name: str, streaming: bool) -> None:
    for number, folder in enumerate((name, "ax", "bb", "cc", "d1")):
        (tmp_path / folder / "data").mkdir(parents=True)
        with (tmp_path / folder / "data" / "train-00000.parquet").open("wb") as file:
            Dataset.from_dict({"number": [number]}).to_parquet(file)
    found = loading.load_split(str(tmp_path / name), "train", streaming)
    assert [row["number"] for row in found] == [0]


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "[x]" / "data").mkdir(parents=True)
    for number in range(2):
        Dataset.from_dict({"number": [number]}).to_parquet(tmp_path / "[x]" / "data" / "train-00000.parquet")
        assert loading.load_split(str(tmp_path / "[x]"), "train")["number"] == [number]


def test_another_layout_below_a_pattern_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a[x]").mkdir()
    (tmp_path / "a[x]" / "rows.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"\[ \] in its path would be read as a pattern.* Rename the folder"):
        loading.load_splits(str(tmp_path / "a[x]"))


def test_commands_write_into_such_a_folder_and_read_from_it(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "*?[a]{b,c}"
    pairs, model = str(home / "pairs"), str(tiny_model)
    monkeypatch.chdir(tmp_path)
    for words in (
        ["curate", "--source", str(corpus), "--split", "preference", "--limit", "6", "--model", model, *WORDS,
         "--output", pairs],
        ["audit", pairs, "--output", str(home / "audit")],
        ["train", "--dataset-name", pairs, "--model-name-or-path", model, "--max-steps", "1", "--output",
         str(home / "adapter"), "--use-peft", "--use-cpu", "--bf16=false", "--report-to", "none"],
        ["evaluate", "--dataset", pairs, "--model", model, "--name", "start", "--output", str(home / "start")],
        ["evaluate", "--dataset", pairs, "--model", model, "--adapter", str(home / "adapter"), "--name", "after",
         "--output", str(home / "after")],
        ["compare", str(home / "start"), str(home / "after"), "--dataset", pairs, "--output", str(home / "report")],
    ):  # fmt: skip
        assert exit_code(words) == 0, words
    typo = ["compare", str(home / "start"), str(home / "after"), "--dataset", "runs/typo/data", "--output", "out"]
    assert exit_code(typo) == 2
    comparison = json.loads((home / "report" / "comparison.json").read_text())
    assert comparison["seen_in_training"]["images"] == comparison["n"]["images"] > 0


@pytest.mark.parametrize(
    "name", ["runs/typo/dataset", "./typo", "no..such", "ty po", "a--b", "x" * 120, "x" * 300, "", "a\nb"]
)
def test_a_dataset_that_is_nowhere_is_one_sentence(
    tiny_model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    model = str(tiny_model)
    (tmp_path / "run").mkdir()
    for words in (
        [
            "train",
            f"--dataset-name={name}",
            "--model-name-or-path",
            model,
            "--output",
            "out",
            "--use-cpu",
            "--bf16=false",
        ],
        ["evaluate", f"--dataset={name}", "--model", model, "--output", "out"],
        ["score", f"--dataset={name}", "--predictions", "none.jsonl", "--output", "out"],
        ["audit", "--output", "out", "--", name],
        ["publish", "--", name, "a/b"],
        ["rejoin", name, "--source", "run", "--output", "out"],
    ):
        code, said = exit_code(words), capsys.readouterr().err
        assert code == 2 and "Traceback" not in said and name.strip("./").split("\n")[0] in said.replace("\n", ""), (
            words
        )
        assert not list(tmp_path.glob("out*"))


def test_an_output_that_is_a_chain_of_files_to_a_writer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'::' in a path"):
        writable.check(tmp_path / "a::b" / "pairs")


@pytest.mark.parametrize("output", ["/", "~/runs/x", "~", "~user/x"])
def test_an_output_that_is_the_root_or_a_home_is_one_sentence(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for begin in (short_folder, lambda path: output_folder(path, {}), lambda path: output_folder(path, {}, True)):
        with pytest.raises(InputError, match=r"exists already|Write the whole path"), begin(Path(output)):
            pytest.fail("the block must not run")
    with pytest.raises(InputError, match=r"exists already|Write the whole path"):
        writable.check(Path(output))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [errno.EACCES, errno.ENAMETOOLONG, errno.EISDIR])
def test_a_path_that_cannot_be_used_is_one_sentence_wherever_it_is_met(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(path: Path) -> bool:
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(Path, "is_file", fails)
    assert exit_code(["audit", str(tmp_path / "locked" / "pairs")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("Error: ") and said.endswith("Check the path and its permissions.")
