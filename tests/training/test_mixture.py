"""Several datasets in one training: what is drawn and weighed, what is recorded, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import PartialState
from datasets import ClassLabel, Dataset, List, Value
from launches import Killed, arguments, history, interrupt

from mmedpo import schema
from mmedpo.data.weights import normalize
from mmedpo.errors import InputError
from mmedpo.hub.cards import write_adapter_card
from mmedpo.hub.publish.content import origin
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.training import mixture, run
from mmedpo.training.config import RunArguments
from mmedpo.training.grouping import images_and_questions

SHARD = "train-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def one_process() -> None:
    """accelerate's loggers need a state."""
    PartialState(cpu=True)


@pytest.fixture
def part(preferences: Path, tmp_path: Path) -> Callable[..., Path]:
    """`part(name, rows, split, **manifest)`: a folder with these rows of the preferences, and their manifest."""
    (shard,) = preferences.glob("data/train-*.parquet")
    rows, made = Dataset.from_parquet(str(shard)), read_json(preferences / "manifest.json")

    def write(name: str, own: Sequence[int], split: str = "train", **changes: Any) -> Path:
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True, exist_ok=True)
        rows.select(own).to_parquet(folder / "data" / SHARD.replace("train", split))
        write_json(folder / "manifest.json", {**made, **changes})
        return folder

    return write


def changed(folder: Path, change: Callable[[Dataset], Dataset]) -> Path:
    """The dataset of a folder with other rows."""
    file = folder / "data" / SHARD
    change(Dataset.from_parquet(str(file))).to_parquet(file)
    return folder


def loaded(*folders: Path, **settings: Any) -> tuple[Any, RunArguments, dict[str, str | None]]:
    asked = RunArguments([*map(str, folders)], "out", **settings)
    found = mixture.commits(asked)
    return mixture.pairs(asked, found, "train"), asked, found


def test_a_share_is_that_of_the_pairs_of_an_epoch() -> None:
    numbers = [0] * 8 + [1] * 2
    drawn = mixture._drawn(numbers, ["a", "b"], [1.0, 1.0], 0)
    times = Counter(drawn)
    assert Counter(numbers[row] for row in drawn) == {0: 5, 1: 5}
    assert set(times.values()) == {1, 2, 3} and times[8] + times[9] == 5 and max(times[row] for row in range(8)) == 1
    assert drawn == mixture._drawn(numbers, ["a", "b"], [0.5, 0.5], 0) != mixture._drawn(numbers, ["a", "b"], [1, 1], 1)
    thirds = mixture._drawn([0] * 5 + [1] * 3 + [2] * 2, ["a", "b", "c"], [1, 1, 1], 0)
    assert len(thirds) == 10 and sorted(Counter(([0] * 5 + [1] * 3 + [2] * 2)[row] for row in thirds).values()) == [
        3,
        3,
        4,
    ]
    with pytest.raises(InputError, match=r"dataset_shares: 0.01 for b is no pair of 10"):
        mixture._drawn(numbers, ["a", "b"], [0.99, 0.01], 0)


def test_datasets_with_other_columns_and_earlier_classes_are_mixed_and_shared_ids_are_said(
    part: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    one = changed(part("one", range(6)), lambda rows: rows.add_column("note", ["x"] * 6))
    two = part("two", range(4, 12))
    texts = List(Value("string"))
    earlier = ClassLabel(names=list(schema.DISPREFERENCES[:2]))
    changed(
        two, lambda rows: rows.cast_column("dispreference", earlier).add_column("options", [None] * 8, feature=texts)
    )
    whole, asked, found = loaded(one, two)
    assert len(whole) == 14 and "note" not in whole.column_names and whole[mixture.NUMBER] == [0] * 6 + [1] * 8
    assert whole.features["dispreference"].names == list(schema.DISPREFERENCES)
    assert whole["id"][0].startswith(f"{one}: ") and len(set(whole["id"])) == 14
    assert "2 row ids are in more than one of" in caplog.text
    assert mixture.mixed(whole, asked, found, 0)["id"] == whole["id"]
    shown, _ = images_and_questions(schema.undecoded(whole.select([4, 6, 6])))
    assert shown[0] == shown[1] != shown[2]  # an image of both datasets; a copy of a pair goes to another step
    with pytest.raises(InputError, match="These datasets cannot be mixed") as refused:
        loaded(one, changed(two, lambda rows: rows.remove_columns("weight")))
    assert [fault.row for fault in refused.value.faults] == [f"{two}: (all rows)"]
    with pytest.raises(InputError, match="three has no row of kind 'lesion_noise' in 'train'"):
        other = changed(part("three", range(20)), lambda rows: rows.filter(lambda row: row["dispreference"] == 0))
        loaded(part("two", range(20)), other, dispreference="lesion_noise")


def test_the_kind_asked_for_is_found_by_its_name(part: Callable[..., Path]) -> None:
    """Rows of another's class names are found, so that the check of columns names the fault."""
    folder = part("one", range(20))
    kinds = [
        schema.DISPREFERENCES[kind] for kind in Dataset.from_parquet(str(folder / "data" / SHARD))["dispreference"]
    ]
    backwards = ClassLabel(names=list(reversed(schema.DISPREFERENCES)))
    for feature, values in ((backwards, backwards.str2int(kinds)), (Value("string"), kinds)):
        changed(
            folder,
            lambda rows, given=values, kind=feature: rows.remove_columns("dispreference").add_column(
                "dispreference", given, feature=kind
            ),
        )
        whole, *_ = loaded(folder, dispreference="lesion_noise")
        assert len(whole) == kinds.count("lesion_noise") > 0


def test_weights_anew_are_normalised_over_the_pairs_of_an_epoch(
    part: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = part("one", range(20)), part("two", range(20, 30), judges=["other"])
    changed(two, lambda rows: rows.map(lambda row: {"clinical_relevance": row["clinical_relevance"] / 2}))
    whole, asked, found = loaded(one, two, dataset_shares=[0.4, 0.6], mixture_weights="anew")
    epoch = mixture.mixed(whole, asked, found, 3)
    kinds = [schema.DISPREFERENCES[kind] for kind in epoch["dispreference"]]
    expected, _ = normalize(epoch["clinical_relevance"][:], "rescale", kinds, "kind")
    assert (
        epoch["weight"]
        == expected.tolist()
        != [dict(zip(whole["id"], whole["weight"], strict=True))[id] for id in epoch["id"]]
    )
    assert Counter(epoch[mixture.NUMBER]) == {0: 12, 1: 18}
    assert "other judges scored each dataset" in caplog.text
    own, asked, found = loaded(one, part("raw", range(30, 40), weights={"method": "raw"}), mixture_weights="anew")
    with pytest.raises(InputError, match="weights were made in different ways"):
        mixture.mixed(own, asked, found, 0)


def test_a_mixture_trains_resumes_and_is_recorded_whole(
    part: Callable[..., Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    source = {"name": "ward", "license": "CC0-1.0"}
    one, two = part("one", range(12)), part("two", range(20, 28), source=source)
    part("one", range(40, 46), "validation")
    part("two", range(8, 12), "validation", source=source)  # images of the other's training
    settings = {
        "dataset_name": [one, two], "dataset_shares": [0.25, 0.75], "mixture_weights": "anew", "max_steps": 6,
        "save_strategy": "steps", "save_steps": 2, "eval_split": "validation", "eval_strategy": "steps",
        "eval_steps": 3, "reference_cache": tmp_path / "cache", "pairs_per_image": 4,
    }  # fmt: skip
    run.main(arguments(one, tiny_model, tmp_path / "whole", **settings), card=write_adapter_card)
    assert "images of the evaluation are trained on too" in caplog.text
    record, recipe = (tmp_path / "whole" / name for name in ("training.json", "recipe.yaml"))
    made = json.loads(record.read_text())
    assert made["dataset"] == ["one", "two"] and sum(made["rows"].values()) == 20
    assert [(each["name"], each["share"], sum(each["rows"].values())) for each in made["datasets"]] == [
        ("one", 0.25, 5), ("two", 0.75, 15)
    ]  # fmt: skip
    assert made["weights"]["method"] == "rescale, over the mixture" and "dataset_manifest" not in made
    digests = [made["contents"][f"run.dataset_name.{number}"] for number in (0, 1)]
    assert digests == [each["contents"] for each in made["datasets"]] and len({*digests}) == 2
    assert origin("model", made) == "weights of tiny trained on one (phantom), two (ward)"
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "| dataset | one |" in card and "| its source and licence | ward (CC0-1.0) |" in card
    assert "| its part of an epoch | 75.0 %; " in card and "**Trained on** one, from phantom (" in card
    command = arguments(one, tiny_model, tmp_path / "killed", **settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 5)
        run.main(command)
    shutil.copy(two / "data" / SHARD, tmp_path / "kept")
    changed(two, lambda rows: rows.select(range(7)))
    with pytest.raises(InputError, match=r"run\.dataset_name\.1 \S+/two: \w{8} -> \w{8}"):
        run.main([*command, "--resume"])
    shutil.copy(tmp_path / "kept", two / "data" / SHARD)
    run.main([*command, "--resume"])
    assert history(tmp_path / "killed") == pytest.approx(history(tmp_path / "whole"), abs=1e-6)
    assert yaml.safe_load(recipe.read_text())["dataset_name"] == ["one", "two"]
    monkeypatch.chdir(tmp_path)
    again = ["--config", str(recipe), "--model_name_or_path", str(tiny_model), "--output", str(tmp_path / "again")]
    run.main(again)
    assert history(tmp_path / "again") == pytest.approx(history(tmp_path / "whole"), abs=1e-6)


def test_one_restricted_dataset_makes_the_training_restricted(
    part: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    one, two = part("one", range(8)), part("two", range(8, 16), source={"name": "ward", "credentialed": True})
    settings = {"dataset_name": [one, two], "max_steps": 1, "save_strategy": "no"}
    with pytest.raises(InputError, match="ward is restricted data, whose terms forbid"):
        run.main(arguments(one, tiny_model, tmp_path / "adapter", **settings, push_to_hub="true"))
    run.main(arguments(one, tiny_model, tmp_path / "adapter", **settings), card=write_adapter_card)
    assert read_json(tmp_path / "adapter" / "training.json")["credentialed_source"] == "ward"
    assert "**Trained on restricted data (ward).**" in (tmp_path / "adapter" / "README.md").read_text()


def test_gold_answers_of_a_source_are_mixed_with_pairs_for_supervised_training(
    part: Callable[..., Path], corpus: Path, tiny_model: Path, tmp_path: Path
) -> None:
    sft = {
        "loss_type": "sft",
        "loss_weights": 1.0,
        "max_steps": 1,
        "dataset_split": "preference",
        "save_strategy": "no",
    }
    names = [f"source:{corpus}", part("one", range(8), "preference")]
    run.main(arguments(corpus, tiny_model, tmp_path / "adapter", dataset_name=names, **sft))
    made = read_json(tmp_path / "adapter" / "training.json")
    counts = [each["rows"]["gold_answer"] for each in made["datasets"]]
    assert counts[1] == 8 and made["rows"] == {"gold_answer": sum(counts)} and counts[0] > 20
    with pytest.raises(InputError, match="gold answers of a source have no clinical relevance"):
        anew = {**sft, "dataset_name": names, "mixture_weights": "anew"}
        run.main(arguments(corpus, tiny_model, tmp_path / "other", **anew))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset_name": ["a", "./a"]}, "dataset_name has a dataset twice"),
        ({"dataset_name": ["a", 5]}, r"dataset_name is \['a', 5\]; give texts, one a dataset"),
        ({"dataset_name": 5}, "dataset_name is 5; give texts"),
        ({"dataset_shares": ["half", 0.5]}, r"dataset_shares is \['half', 0.5\]; give numbers"),
        ({"dataset_shares": 0.5}, "dataset_shares has 1 for 2 datasets"),
        ({"dataset_revision": ["main"]}, "dataset_revision has 1 entries for 2 datasets"),
        ({"dataset_shares": [1.0]}, "dataset_shares has 1 for 2 datasets"),
        ({"dataset_shares": [1.0, 0.0]}, r"dataset_shares are \[1.0, 0.0\]; give positive numbers"),
        ({"dataset_shares": [float("inf"), 1.0]}, r"dataset_shares are \[inf, 1.0\]; give positive numbers"),
        ({"mixture_weights": "equal"}, "mixture_weights is 'equal'; use own or anew"),
        ({"streaming": True}, "streaming takes one dataset"),
        ({"dataset_name": "a", "dataset_shares": [1.0]}, "dataset_shares needs several datasets"),
        ({"dataset_name": "a", "mixture_weights": "own"}, "mixture_weights needs several datasets"),
    ],
)
def test_mixtures_that_cannot_be_made_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RunArguments(**{"dataset_name": ["a", "b"], "output": "out", **settings})
