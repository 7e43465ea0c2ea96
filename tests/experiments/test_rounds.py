"""Rounds of training: what each starts from and is compared with, when they stop, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mmedpo.cli import experiments
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.experiments import rounds
from mmedpo.experiments.chain import Chain
from mmedpo.runs.json_files import read_json
from tests.training.launches import Killed, interrupt

SECTIONS: dict[str, dict[str, Any]] = {
    "curate": {
        "split": "preference", "limit": 6, "chat": "standin:rules", "localizer": "boxes", "samples": 2,
        "judges": ["standin:strict", "standin:lenient"],
    },
    "train": {
        "use_peft": True, "lora_r": 4, "dtype": "float32", "use_cpu": True, "bf16": False, "max_steps": 3,
        "save_steps": 1, "save_strategy": "steps", "learning_rate": 0.05, "per_device_train_batch_size": 4,
        "gradient_checkpointing": False, "disable_tqdm": True,
    },
    "evaluate": {"max_new_tokens": 4, "limit": 8},
}  # fmt: skip
Started = Callable[..., list[list[str]]]


@pytest.fixture(scope="module")
def asked(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus without reports, whose METEOR would start a Java for each evaluation."""
    folder = shutil.copytree(corpus, tmp_path_factory.mktemp("questions") / "corpus")
    (table,) = folder.glob("*.jsonl")
    rows = [line for line in table.read_text().splitlines(keepends=True) if json.loads(line)["task"] != "report"]
    table.write_text("".join(rows))
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "rounds.yaml"
    file.write_text(yaml.safe_dump(SECTIONS))
    return file


@pytest.fixture
def start(recipe: Path, asked: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Run rounds in this process."""
    monkeypatch.setattr(sys, "argv", ["mmedpo"])

    def start(output: Path, most: int = 2, resume: bool = False, invoke: Any = None, **changes: Any) -> list[list[str]]:
        settings = rounds.Settings(str(tiny_model), asked, **{"stop": "never", **changes})
        return rounds.run(recipe, output, settings, most, Chain(invoke or experiments.invoke, resume))

    return start


def killing(command: str, number: int, inside: bool) -> Callable[[Sequence[str]], None]:
    """Run commands, and die before the `number`th of this name, or inside a training, after two of its steps."""
    seen: list[str] = []

    def invoke(words: Sequence[str]) -> None:
        seen.append(words[0])
        last = words[0] == command and seen.count(command) == number
        if last and not inside:
            raise Killed
        with pytest.MonkeyPatch.context() as patch:
            if last:
                interrupt(patch, 2)
            experiments.invoke(words)

    return invoke


def _die(words: Sequence[str]) -> None:
    raise Killed


def same(one: Path, other: Path) -> None:
    """Assert that two chains wrote the same datasets, adapters (1e-6), answers and table."""
    files = {file.relative_to(one) for pattern in ("**/*.parquet", "**/*.jsonl", "*.md") for file in one.glob(pattern)}
    assert len(files) > 6
    assert [file for file in files if (one / file).read_bytes() != (other / file).read_bytes()] == []
    for file in one.glob("*/adapter/adapter_model.safetensors"):
        ours, theirs = load_file(file), load_file(other / file.relative_to(one))
        assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) <= 1e-6
    ours, theirs = (read_json(folder / "rounds.json") for folder in (one, other))
    assert ours == theirs
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())


@pytest.fixture(scope="module")
def unbroken(asked: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "rounds.yaml").write_text(yaml.safe_dump(SECTIONS))
    settings = rounds.Settings(str(tiny_model), asked, stop="never")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mmedpo"])
        rounds.run(folder / "rounds.yaml", folder / "out", settings, 2, Chain(experiments.invoke))
    return folder / "out"


def test_each_round_starts_from_the_one_before(unbroken: Path, tiny_model: Path) -> None:
    first, second = (read_json(unbroken / f"round-{number}" / "pairs" / "manifest.json") for number in (1, 2))
    assert (first["settings"]["adapter"], first["seed"], second["seed"]) == (None, 0, 1)
    assert second["settings"]["adapter"] == "adapter"  # its last part, outside of the current folder
    trained = [read_json(unbroken / f"round-{number}" / "adapter" / "training.json") for number in (1, 2)]
    assert trained[0]["adapter"] is None and trained[1]["adapter"] == "adapter"
    assert trained[1]["adapter_checked_by"] == "fingerprint" and trained[1]["lora"]["lora_r"] == 4
    weights = [load_file(unbroken / f"round-{number}" / "adapter" / "adapter_model.safetensors") for number in (1, 2)]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    record = read_json(unbroken / "rounds.json")
    assert [entry["round"] for entry in record["rounds"]] == [1, 2] and record["split"] == "validation"
    values = [read_json(unbroken / place / "evaluation" / "results.json") for place in ("start", "round-1", "round-2")]
    assert {results["split"] for results in values} == {"validation"}
    scores = [results["metrics"]["overall_accuracy"] for results in values]
    assert [entry["difference"] for entry in record["rounds"]] == pytest.approx(
        [scores[1] - scores[0], scores[2] - scores[1]]
    )
    assert record["best"] == max(range(3), key=lambda place: (scores[place], -place))
    assert str(tiny_model.parent) not in json.dumps(record) + (unbroken / "rounds.md").read_text()


@pytest.mark.parametrize(
    "kills",
    [
        [("train", 1, True), ("curate", 1, False)],  # of each start: in training 1, then before curation 2
        pytest.param([("evaluate", 1, False), ("train", 2, True), ("evaluate", 1, False)], marks=pytest.mark.slow),
    ],
)
def test_killed_rounds_go_on_to_the_same_result(
    kills: list[tuple[str, int, bool]], start: Started, unbroken: Path, tmp_path: Path
) -> None:
    for resume, kill in enumerate(kills):
        with pytest.raises(Killed):
            start(tmp_path / "out", resume=bool(resume), invoke=killing(*kill))
    assert not (tmp_path / "out" / "rounds.json").exists()
    start(tmp_path / "out", resume=True)
    same(unbroken, tmp_path / "out")


@pytest.mark.slow
def test_finished_rounds_are_left_and_more_can_be_asked_for(start: Started, tmp_path: Path) -> None:
    start(tmp_path / "out", most=1)
    with pytest.raises(InputError, match="exists already; continue with --resume"):
        start(tmp_path / "out", most=1)
    with pytest.raises(AlreadyFinished, match="with 1 rounds"):
        start(tmp_path / "out", most=1, resume=True)
    with pytest.raises(InputError, match="seed: 0 -> 3"):
        start(tmp_path / "out", most=2, resume=True, seed=3)
    asked: list[str] = []

    def invoke(words: Sequence[str]) -> None:
        asked.append(words[0])
        experiments.invoke(words)

    start(tmp_path / "out", most=2, resume=True, invoke=invoke)
    assert asked == ["curate", "train", "evaluate"] and len(read_json(tmp_path / "out" / "rounds.json")["rounds"]) == 2


@pytest.mark.parametrize(
    ("stop", "cells", "expected"),
    [
        ("lower", (-0.01, -0.1, 0.08), True),
        ("lower", (0.0, -0.1, 0.1), False),
        ("significant", (-0.01, -0.1, 0.08), False),
        ("significant", (-0.2, -0.3, -0.1), True),
        ("never", (-0.2, -0.3, -0.1), False),
    ],
)
def test_rounds_stop_by_the_rule(
    stop: str, cells: tuple[float, ...], expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell = dict(zip(("difference", "difference_low", "difference_high"), cells, strict=True))
    numbers = {"value": 0.5, "low": 0.4, "high": 0.6, **cell}
    monkeypatch.setattr(rounds.comparing, "compare", lambda *_: {"metrics": {"rouge_l": {"round 1": numbers}}})
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "manifest.json").write_text('{"counts": {}}')
    settings = rounds.Settings("model", tmp_path, stop=stop)
    steps = [rounds.Step(name, {"output": tmp_path / "pairs", "seed": 0, "name": "round 1"}) for name in "abc"]
    entry = rounds._decided([tmp_path, tmp_path], steps, settings)
    assert entry["stop"] is expected and entry["metric"] == "rouge_l"


def test_the_first_model_can_stay_the_reference(start: Started, tmp_path: Path) -> None:
    start(tmp_path / "out", reference="first")
    recipe = yaml.safe_load((tmp_path / "out" / "round-2" / "adapter.yaml").read_text())
    assert recipe["reference"] == "base" and recipe["adapter_name_or_path"].endswith("round-1/adapter")
    logs = read_json(tmp_path / "out" / "round-2" / "adapter" / "trainer_state.json")["log_history"]
    assert abs(logs[0]["rewards/chosen"]) > 1e-3  # the reference is not the model at the round's start


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluate": {"split": "test"}}, "evaluate on 'test'"),
        ({"curate": {"split": "validation"}}, "curate from the split 'validation' and evaluate on 'validation'"),
        ({"curate": {"split": None}}, "curate from the split None"),
        ({"train": {"use_peft": False}}, "Set use_peft: true"),
        (
            {"train": {"learnin_rate": 1}},
            "section train: learnin_rate: not an option of this command. Write learning_ra",
        ),
        ({"train": {"output": "x"}}, "section train: sets output, which the chain itself sets"),
        ({"curate": {"third_parties": True}}, "third_parties"),
        ({"curate": {"seed": 1}}, "a seed of its own"),
        ({"train": {"seed": 1}}, "sets seed"),
        ({"curate": {"samples": 0}}, "samples is 0"),
        ({"curate": {"chat": None}}, "--chat: required"),
        ({"evaluate": {"vqa_protocol": "lenient"}}, "lenient"),
        ({"train": None}, "needs a section train"),
        ({"evaluate": {"split": "Test"}}, "evaluate on 'Test'"),
        ({"evaluate": {"official_split": True}}, "split the source in different ways"),
        ({"evaluate": {"split": "dev"}}, "no split 'dev'; it has preference, supervised, test, validation"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(
    changes: dict[str, Any], message: str, start: Started, recipe: Path, tmp_path: Path
) -> None:
    wrong = {name: own and {**SECTIONS[name], **own} for name, own in changes.items()}
    recipe.write_text(yaml.safe_dump({name: own for name, own in {**SECTIONS, **wrong}.items() if own is not None}))
    with pytest.raises(InputError, match=message):
        start(tmp_path / "out", invoke=_die)
    assert not (tmp_path / "out").exists()  # so that the corrected recipe can be started


def test_a_metric_that_the_evaluations_lack_is_refused_before_the_first_round(start: Started, tmp_path: Path) -> None:
    seen: list[str] = []

    def invoke(words: Sequence[str]) -> None:
        seen.append(words[0])
        experiments.invoke(words)

    with pytest.raises(InputError, match=r"have no rouge_l.*one of overall_accuracy"):
        start(tmp_path / "out", metric="rouge_l", invoke=invoke)
    assert seen == ["evaluate"]


def test_a_launcher_starts_trainings_and_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "launcher.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(3 if sys.argv[3] == 'train' else 0)")
    with pytest.raises(SystemExit) as ended:
        experiments.invoker(f"{sys.executable} {script}")(["train", "--config", "a.yaml"])
    assert ended.value.code == 3
    for wrong, message in ((" ", "--launch is empty"), ("./nowhere launch", "no command './nowhere'")):
        with pytest.raises(InputError, match=message):
            experiments.invoker(wrong)


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    for changes, message in [
        ({"reference": "first", "adapter": "x"}, "mmedpo merge"),
        ({"reference": "last"}, "use one of round, first"),
        ({"stop": "falls"}, "use one of lower, significant, never"),
        ({"metric": "n_closed"}, "highest value is the best"),
    ]:
        with pytest.raises(InputError, match=message):
            rounds.Settings("model", tmp_path, **changes)
