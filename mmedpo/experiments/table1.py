"""A table of methods as the paper's Table 1: datasets, arms over seeds, evaluations and one comparison, from one YAML.

Arms share what is equal: the start, a dataset, an arm that others start from, and the reference's cached
log-probabilities. Seeds are those of the trainings; a dataset is made once, or once a seed where an arm's model is
sampled.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmedpo.data.answers import PREFIX, TEST
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.experiments.chain import Chain, Step, check_section, given, open_chain, refuse_leak, sections
from mmedpo.report.tables import VALUE, Sheet, as_latex, as_markdown, in_brackets
from mmedpo.report.wording import ordered
from mmedpo.runs import recipes
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.recorded import SETTINGS
from mmedpo.runs.writable import write_whole

RECORD = "table1.json"
START = "start"
OWN = (START, "datasets", "reference", "comparison")  # folders beside those of the arms
SOURCE = "source"  # an arm's dataset: the gold answers of the source
COLUMNS = ("closed_accuracy", "open_recall", "choice_accuracy", "bleu_1", "bleu_4", "rouge_l", "meteor")
NAME = re.compile(r"[^\W_]([\w +()@,.-]{0,60}\w|[\w)])?")


@dataclass(frozen=True)
class Settings:
    """What decides a table, beside its recipe."""

    model: str
    source: Path
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass(frozen=True)
class Arm:
    """A method: what it is trained on and from. `start` names another arm, whose adapter it continues."""

    name: str
    dataset: str
    start: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """The content of a table's recipe, checked.

    Attributes:
        datasets: options of the curation of each, with "from", the arm whose model is sampled, where there is one.
    """

    own: Mapping[str, Mapping[str, Any]]
    datasets: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, Arm]


def read(recipe: Path) -> Plan:
    """Return the plan of a recipe.

    Raises:
        InputError: a section is missing, a key is no option, or a name is unknown or used before it is there.
    """
    found = recipes.load(recipe)
    own = sections(recipe, found, also=("datasets", "arms"))
    own["curate"].setdefault("split", "train")
    own["evaluate"].setdefault("split", TEST)
    refuse_leak(f"Recipe {recipe}", own["curate"], own["evaluate"])
    datasets, arms = dict[str, Mapping[str, Any]](), dict[str, Arm]()
    for name, options in _named(recipe, "datasets", found):
        if name == SOURCE:
            raise InputError(f"Recipe {recipe}: {SOURCE} names the gold answers. Give the dataset another name.")
        own_options = {key: value for key, value in options.items() if key != "from"}
        check_section(f"Recipe {recipe}, dataset {name}", "curate", own_options)
        refuse_leak(f"Recipe {recipe}, dataset {name}", {**own["curate"], **own_options}, own["evaluate"])
        datasets[name] = options
    for name, options in _named(recipe, "arms", found):
        rest = {key: value for key, value in options.items() if key not in ("dataset", "start")}
        check_section(f"Recipe {recipe}, arm {name}", "train", rest)
        arm = Arm(name, str(options.get("dataset")), options.get("start"), rest)
        sampled = datasets.get(arm.dataset, {}).get("from")
        if arm.dataset not in (SOURCE, *datasets):
            raise InputError(
                f"Recipe {recipe}, arm {name}: dataset is {arm.dataset!r}; use {SOURCE} or one of datasets."
            )
        if lost := [one for one in (arm.start, sampled) if one not in (None, *arms)]:
            raise InputError(f"Recipe {recipe}, arm {name}: {lost[0]!r} is no arm above it.")
        if arm.dataset == SOURCE and _losses({**own["train"], **rest}) != ["sft"]:
            raise InputError(f"Recipe {recipe}, arm {name}: gold answers have no rejected side. Set loss_type: [sft].")
        if arm.dataset == SOURCE and rest.get("dataset_split") == own["evaluate"]["split"]:
            raise InputError(f"Recipe {recipe}, arm {name}: trains on {rest['dataset_split']!r}, which is evaluated.")
        if arm.dataset == SOURCE and own["evaluate"].get("official_split"):
            raise InputError(
                f"Recipe {recipe}, arm {name}: gold answers are split anew, so official test questions may be among "
                "them. Leave out official_split."
            )
        arms[name] = arm
    if taken := [name for name in arms if _folder(name) in OWN]:
        raise InputError(f"Recipe {recipe}: the table has its own {taken[0]!r}. Give the arm another name.")
    return Plan(own, datasets, arms)


def _named(recipe: Path, section: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield name and options of the entries of a section."""
    entries = found.get(section) or {}
    if not isinstance(entries, dict) or not (entries or section == "datasets"):
        raise InputError(f"Recipe {recipe}: needs a section {section}:, with an entry a name.")
    folders: dict[str, str] = {}
    for name, options in entries.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise InputError(f"Recipe {recipe}, {section}: {name!r} is no name; use letters, digits and spaces.")
        if (other := folders.setdefault(_folder(name), name)) != name:
            raise InputError(f"Recipe {recipe}, {section}: {name!r} and {other!r} would have one folder.")
        if not isinstance(options or {}, dict):
            raise InputError(f"Recipe {recipe}, {section}: {name} needs options, as in `style: free`.")
        yield name, options or {}


def _folder(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower()).strip("-")


def planned(plan: Plan, settings: Settings, output: Path) -> tuple[list[Step], dict[str, list[Path]]]:
    """Return all steps in their order, and the evaluation folders of each row, the model's first."""
    shared = {"source": str(settings.source), "model": settings.model}
    steps: list[Step] = []
    rows: dict[str, list[Path]] = {}

    def evaluate(name: str, folder: Path, adapter: Path | None) -> None:
        options = {**plan.own["evaluate"], **shared, "name": f"{name} {folder.name}" if adapter else name}
        steps.append(Step("evaluate", given(options, adapter=adapter, output=folder / "evaluation")))
        rows.setdefault(name, []).append(folder / "evaluation")

    def adapter_of(arm: str | None, seed: int) -> Path | None:
        return output / _folder(arm) / f"seed-{seed}" / "adapter" if arm else None

    evaluate(START, output / START, None)
    for arm in plan.arms.values():
        for seed in settings.seeds:
            folder = output / _folder(arm.name) / f"seed-{seed}"
            pairs = plan.datasets.get(arm.dataset, {})
            made = (
                output
                / "datasets"
                / (f"{_folder(arm.dataset)}-seed-{seed}" if pairs.get("from") else _folder(arm.dataset))
            )
            options = {**plan.own["curate"], **pairs, **shared}
            curated = Step("curate", given(options, adapter=adapter_of(options.pop("from", None), seed), output=made))
            if arm.dataset != SOURCE and made not in [step.output for step in steps]:
                steps.append(curated)
            trained = {
                **_cached({**plan.own["train"], **arm.options}, output),
                "model_name_or_path": settings.model,
                "seed": seed,
            }
            trained["dataset_name"] = f"{PREFIX}{settings.source}" if arm.dataset == SOURCE else str(made)
            if arm.dataset == SOURCE:
                trained.setdefault("dataset_split", plan.own["curate"]["split"])
            if arm.start:
                trained["use_peft"] = False  # its LoRA settings are those of the arm
            steps.append(
                Step(
                    "train", given(trained, adapter_name_or_path=adapter_of(arm.start, seed), output=folder / "adapter")
                )
            )
            evaluate(arm.name, folder, folder / "adapter")
    return steps, rows


def _cached(options: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Return the options of a training, with the table's cache of the reference where it can have one."""
    losses = _losses(options)
    idle = losses == ["sft"] or "tdpo_kl" in losses or options.get("sync_ref_model")
    return {**({} if idle else {"reference_cache": str(output / "reference")}), **options}


def _losses(options: Mapping[str, Any]) -> list[str]:
    given = options.get("loss_type", [])
    return given if isinstance(given, list) else [given]


def run(recipe: Path, output: Path, settings: Settings, chain: Chain, command: str = "") -> list[list[str]]:
    """Make the table; return its rows, headings first.

    Writes `datasets/NAME`, `ARM/seed-N/adapter` and `evaluation`, `comparison` (as `mmedpo compare`), `table1.json`,
    `table1.md` and `table1.tex`. A resumed table may have more seeds, arms and datasets than it was begun with, and
    other options of those that failed.

    Raises:
        InputError: the recipe or an option is wrong, found before anything runs; or as the commands.
        AlreadyFinished: `chain.resume`, and the table is there.
    """
    plan = read(recipe)
    for arm in plan.arms.values():
        if {**plan.own["train"], **arm.options}.get("use_peft") is not True:
            raise InputError(f"Recipe {recipe}, arm {arm.name}: the arms are adapters. Set use_peft: true in train.")
    entries = {"datasets": plan.datasets, "arms": {name: asdict(arm) for name, arm in plan.arms.items()}}
    recorded = {**asdict(settings), "source": str(settings.source), **plan.own, **entries}
    begun = _begun(output, recorded)
    steps, rows = planned(plan, settings, output)
    used = {one.get("split", plan.own["curate"]["split"]) for one in ({}, *plan.datasets.values())}
    used |= {plan.own["evaluate"]["split"]}
    open_chain(output, begun, settings.source, settings.model, chain, sorted(used), steps)
    if (output / RECORD).exists() and begun == recorded:
        raise AlreadyFinished(f"{output} is finished; nothing to resume.")
    if begun != recorded:  # the comparison was made without the new rows
        (output / RECORD).unlink(missing_ok=True)
        shutil.rmtree(output / "comparison", ignore_errors=True)
        write_json(output / SETTINGS, recorded)
    for step in steps:
        chain.run(step)
    named = [f"{name}={folder}" for name, folders in rows.items() for folder in folders]
    chain.words("compare", *named, "--output", output / "comparison")
    return _written(output, read_object(output / "comparison" / "comparison.json"), settings, plan, chain, command)


def _begun(output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a table begun before may have them.

    Seeds, arms and datasets that it does not have yet are left out; arms and datasets of which nothing is finished are
    as they were, so that a failed one can be corrected.
    """
    if not (output / SETTINGS).exists():
        return {**settings}
    before = read_object(output / SETTINGS)
    seeds = [seed for seed in before.get("seeds", []) if seed in settings["seeds"]]
    own = {
        entries: {
            name: settings[entries][name] if _is_made(output, entries, name) else options
            for name, options in before.get(entries, {}).items()
            if name in settings[entries] or not _is_made(output, entries, name)
        }
        for entries in ("datasets", "arms")
    }
    return {**settings, **own, "seeds": seeds}


def _is_made(output: Path, entries: str, name: str) -> bool:
    """Return True where a dataset, or an adapter of an arm, is finished."""
    folder = _folder(name)
    if entries == "arms":
        return any((output / folder).glob("seed-*/adapter"))
    made = re.compile(rf"{re.escape(folder)}(-seed-\d+)?")
    return any(made.fullmatch(one.name) for one in (output / entries).glob("*"))


def _written(
    output: Path, comparison: Mapping[str, Any], settings: Settings, plan: Plan, chain: Chain, command: str
) -> list[list[str]]:
    metrics = comparison["metrics"]
    columns = [name for name in ordered(metrics) if name in COLUMNS]
    table = [["method", *columns]]
    for name in comparison["runs"]:
        table.append([name, *(in_brackets(metrics[column][name], VALUE) for column in columns)])
    seeds = len(settings.seeds)
    note = (
        f"Means over {seeds} seeds of the training, with 95 % intervals over seeds and images; those of {START} over "
        "images alone. Differences and tests: comparison."
        if seeds > 1
        else "95 % intervals over images alone: one seed says nothing of another. Differences and tests: comparison."
    )
    sheet = Sheet("Methods", table, note)
    write_whole(output / "table1.md", as_markdown(sheet).encode())
    write_whole(output / "table1.tex", as_latex(sheet, floats=True).encode())
    write_json(output / RECORD, {
        "format": "mmedpo.table1/1", "command": command, "versions": versions(), "model": portable(settings.model),
        "source": comparison["evaluations"][START]["source"], "split": plan.own["evaluate"]["split"],
        "seeds": settings.seeds, "arms": {name: asdict(arm) for name, arm in plan.arms.items()},
        "rows": {name: {column: metrics[column][name] for column in metrics} for name in comparison["runs"]},
        "notes": [note, *comparison["notes"]], "commands": chain.commands,
    })  # fmt: skip
    return table
