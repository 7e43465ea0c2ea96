"""A table of methods: what arms share, what is refused before anything runs, and a small table end to end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmedpo.cli import experiments
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.experiments import rounds, table1
from mmedpo.experiments.chain import Chain
from mmedpo.runs import recipes
from mmedpo.runs.json_files import read_json, write_json
from tests.experiments.test_rounds import SECTIONS, asked
from tests.training.launches import Killed

RECIPES = Path(__file__).parents[2] / "recipes" / "experiments"
TABLE: dict[str, Any] = {
    **SECTIONS,
    "evaluate": {**SECTIONS["evaluate"], "split": "validation"},
    "datasets": {"pairs": {}, "from SFT": {"from": "SFT", "localizer": "none"}},
    "arms": {
        "SFT": {"dataset": "source", "loss_type": "sft"},
        "SFT + MMedPO": {"start": "SFT", "dataset": "from SFT"},
    },
}
__all__ = ["asked"]  # a fixture
Steps = dict[str, list[table1.Step]]


def steps_of(recipe: Path, output: Path, seeds: list[int]) -> Steps:
    found: Steps = {"curate": [], "train": [], "evaluate": []}
    for step in table1.planned(table1.read(recipe), table1.Settings("org/model", Path("data"), seeds), output)[0]:
        found[step.command].append(step)
    return found


def written(tmp_path: Path, **changes: Any) -> Path:
    file = tmp_path / "table.yaml"
    file.write_text(yaml.safe_dump({**TABLE, **changes}))
    return file


def test_arms_share_starts_datasets_and_the_reference(tmp_path: Path) -> None:
    steps = steps_of(RECIPES / "table1-phantoms.yaml", tmp_path, [0, 1])
    assert [step.output.name for step in steps["curate"]] == [
        "pairs", "crops", "povid", "ranked", "from-sft-seed-0", "from-sft-seed-1",
    ]  # fmt: skip
    assert len(steps["train"]) == 9 * 2 and len(steps["evaluate"]) == 1 + 9 * 2
    trained = {str(step.output.relative_to(tmp_path)): step.options for step in steps["train"]}
    last = trained["sft-mmedpo/seed-1/adapter"]
    assert last["adapter_name_or_path"] == str(tmp_path / "sft" / "seed-1" / "adapter") and last["use_peft"] is False
    assert steps["curate"][-1].options["adapter"] == last["adapter_name_or_path"]
    assert last["dataset_name"] == str(tmp_path / "datasets" / "from-sft-seed-1") and last["seed"] == 1
    supervised = trained["sft/seed-0/adapter"]
    assert (supervised["dataset_name"], supervised["dataset_split"]) == ("source:data", "preference")
    caches = {options.get("reference_cache") for options in trained.values()}
    assert caches == {str(tmp_path / "reference"), None} and "reference_cache" not in supervised
    assert trained["mmedpo-stage-2/seed-0/adapter"]["dispreference"] == "lesion_noise"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda recipe: recipe.stem)
def test_recipes_are_valid_and_their_headers_are_manuals(recipe: Path, tmp_path: Path) -> None:
    if "rounds" in recipe.stem:
        own = rounds.sections(recipe, recipes.load(recipe))
        rounds._refuse_splits(own)
        steps = rounds._steps(own, rounds.Settings("org/model", Path("data")), tmp_path, 2)
    else:
        plan, settings = table1.read(recipe), table1.Settings("org/model", Path("data"), [0])
        steps = table1.planned(plan, settings, tmp_path)[0]
    here = {"train": {"bf16": False, "use_cpu": True}}  # where there may be no GPU
    Chain(lambda words: None).check(
        [table1.Step(one.command, {**one.options, **here.get(one.command, {})}) for one in steps]
    )
    text = recipe.read_text(encoding="utf-8")
    for word in ("Purpose", "Prerequisites", "Run ", "Limits", f"--config recipes/experiments/{recipe.name}"):
        assert word in text.partition("\n\n")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"A": {"dataset": "other"}}}, "arm A: dataset is 'other'; use source or one of datasets"),
        ({"arms": {"A": {"dataset": "pairs", "start": "B"}}}, "arm A: 'B' is no arm above it"),
        ({"arms": {"A": {"dataset": "from SFT"}}}, "arm A: 'SFT' is no arm above it"),
        ({"arms": {"start": {"dataset": "pairs"}}}, "Give the arm another name"),
        ({"arms": {"Comparison": {"dataset": "pairs"}}}, "own 'Comparison'. Give the arm another name"),
        ({"arms": {"A": {"dataset": "source", "loss_type": 5}}}, "gold answers have no rejected side"),
        ({"arms": {"a b": {"dataset": "pairs"}, "A-B": {"dataset": "pairs"}}}, "would have one folder"),
        ({"arms": {"../x": {"dataset": "pairs"}}}, "is no name"),
        ({"arms": {"A": {"dataset": "pairs", "bta": 1}}}, "arm A: bta: not an option of this command. Write beta"),
        ({"arms": {"A": {"dataset": "source"}}}, "arm A: gold answers have no rejected side"),
        ({"arms": {}}, "needs a section arms"),
        ({"datasets": {"source": {}}}, "names the gold answers"),
        ({"datasets": {"pairs": {"model": "x"}}}, "dataset pairs: sets model, which the chain itself sets"),
        (
            {name: {**TABLE[name], "official_split": True} for name in ("curate", "evaluate")},
            "Leave out official_split",
        ),
        ({"evaluate": {"split": "preference"}}, "curates from the split 'preference' and evaluates on 'preference'"),
        ({"curate": {**SECTIONS["curate"], "split": "test"}}, "curates from the split 'test'"),
        ({"datasets": {"pairs": {"split": "test"}}}, "dataset pairs: curates from the split 'test'"),
        ({"datasets": {"pairs": {"split": "validation"}}}, "dataset pairs: curates from the split 'validation'"),
        ({"datasets": {"pairs": {"official_split": True}}}, "dataset pairs: curation and evaluation split the source"),
        ({"curate": {**SECTIONS["curate"], "split": "Testing"}}, "curates from the split 'Testing'"),
        (
            {"arms": {"A": {"dataset": "source", "loss_type": "sft", "dataset_split": "validation"}}},
            "trains on 'validation', which is evaluated",
        ),
        ({"rounds": 3}, "rounds: no section"),
    ],
)
def test_a_wrong_table_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        table1.read(written(tmp_path, **changes))


def test_a_killed_table_is_finished_and_gets_another_seed(
    asked: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    recipe, settings, seen = written(tmp_path), table1.Settings(str(tiny_model), asked, [0]), list[str]()

    def invoke(words: Sequence[str]) -> None:
        seen.append(words[0])
        if seen.count("train") == 2 and words[0] == "train":
            raise Killed
        experiments.invoke(words)

    with pytest.raises(Killed):
        table1.run(recipe, tmp_path / "out", settings, Chain(invoke))
    table1.run(recipe, tmp_path / "out", settings, Chain(invoke, resume=True))
    assert seen.count("train") == 3 and seen.count("curate") == 1 and seen.count("compare") == 1
    with pytest.raises(AlreadyFinished):
        table1.run(recipe, tmp_path / "out", settings, Chain(invoke, resume=True))
    settings = replace(settings, seeds=[0, 1])
    table = table1.run(recipe, tmp_path / "out", settings, Chain(invoke, resume=True))
    assert seen.count("train") == 5 and seen.count("curate") == 2 and seen.count("compare") == 2
    assert [row[0] for row in table] == ["method", "start", "SFT", "SFT + MMedPO"]
    record = read_json(tmp_path / "out" / "table1.json")
    cell = record["rows"]["SFT + MMedPO"]["open_recall"]
    values = [
        read_json(tmp_path / "out" / "sft-mmedpo" / f"seed-{seed}" / "evaluation" / "results.json")["metrics"]
        for seed in (0, 1)
    ]
    assert cell["values"] == pytest.approx([one["open_recall"] for one in values])
    assert cell["value"] == pytest.approx(sum(cell["values"]) / 2) and cell["low"] <= cell["value"] <= cell["high"]
    assert "| SFT + MMedPO |" in (tmp_path / "out" / "table1.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "table1.json").read_text()
    with pytest.raises(AlreadyFinished):
        table1.run(recipe, tmp_path / "out", settings, Chain(invoke, resume=True))
    with pytest.raises(InputError, match=r"seeds: \[0, 1\] -> \[1\]"):
        table1.run(recipe, tmp_path / "out", replace(settings, seeds=[1, 2]), Chain(invoke, resume=True))


def test_a_table_grows_by_arms_and_keeps_those_that_are_made(tmp_path: Path) -> None:
    def begun(**changes: Any) -> dict[str, Any]:
        plan = table1.read(written(tmp_path, **changes))
        arms = {name: {"dataset": arm.dataset, **arm.options} for name, arm in plan.arms.items()}
        return {"seeds": [0], "datasets": {**plan.datasets}, "arms": arms}

    first = begun()
    write_json(tmp_path / "settings.json", first)
    for made in ("datasets/pairs", "datasets/from-sft-seed-0", "sft/seed-0/adapter", "sft-mmedpo/seed-0/adapter"):
        (tmp_path / made).mkdir(parents=True)
    more = begun(
        datasets={**TABLE["datasets"], "crops": {"noise": "crop"}}, arms={"DPO": {"dataset": "crops"}, **TABLE["arms"]}
    )
    assert more != first == table1._begun(tmp_path, more)
    changed = begun(arms={**TABLE["arms"], "SFT": {**TABLE["arms"]["SFT"], "beta": 0.2}})
    assert table1._begun(tmp_path, changed) == changed  # and `open_chain` refuses it
    fewer = begun(arms={"SFT": TABLE["arms"]["SFT"]})
    assert table1._begun(tmp_path, fewer) == fewer


def test_an_arm_that_failed_is_corrected(
    asked: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    arms, settings = {"SFT": TABLE["arms"]["SFT"]}, table1.Settings(str(tiny_model), asked, [0])
    failing = written(tmp_path, datasets={}, arms={**arms, "Then": {**arms["SFT"], "dataset_split": "none"}})
    chain = Chain(experiments.invoke, resume=True)
    with pytest.raises(InputError, match="'none'"):
        table1.run(failing, tmp_path / "out", settings, chain)
    corrected = written(tmp_path, datasets={}, arms={**arms, "Then": {**arms["SFT"], "beta": 0.2}})
    table = table1.run(corrected, tmp_path / "out", settings, chain)
    assert [row[0] for row in table] == ["method", "start", "SFT", "Then"]
    changed = written(tmp_path, datasets={}, arms={**arms, "Then": {**arms["SFT"], "beta": 0.3}})
    with pytest.raises(InputError, match=r"arms\.Then\.options\.beta: 0\.2 -> 0\.3"):
        table1.run(changed, tmp_path / "out", settings, chain)
