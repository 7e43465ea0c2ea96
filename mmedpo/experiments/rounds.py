"""Rounds of preference training: curate from the current model, train, evaluate on the validation split, go on or stop.

The rejected responses of a round are sampled from the model that the round before left. The test split is never read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmedpo.data.answers import is_test
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.evaluation import compare as comparing
from mmedpo.experiments.chain import Chain, Step, given, open_chain, refuse_leak, sections
from mmedpo.report import rows as by_metric
from mmedpo.report.tables import DIFFERENCE, VALUE, Sheet, as_markdown, in_brackets
from mmedpo.report.wording import METRICS
from mmedpo.runs import recipes
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.writable import write_whole

RECORD, TABLE = "rounds.json", "rounds.md"
DECIDING = ("overall_accuracy", "rouge_l")  # the first that an evaluation has
RULES = {
    "lower": "stop after a round whose {} on the {} split is below that of the round before",
    "significant": "stop after a round whose {} on the {} split is below that of the round before, with the whole 95 % "
    "interval of the difference over images",
    "never": "run all rounds, whatever {} on the {} split is",
}
REFERENCES = ("round", "first")


@dataclass(frozen=True)
class Settings:
    """What decides the result of rounds, beside the sections of the recipe.

    Attributes:
        model: base model, a folder or Hub id, whose adapter is trained.
        adapter: adapter to start from, such as a supervised one.
        reference: "round": each round's reference is the model at its start; "first": always the base model.
        stop: name in `RULES`.
        metric: metric that decides; None takes the first of `DECIDING` that is there.
        seed: of the first round; each further round has the next one.
    """

    model: str
    source: Path
    adapter: str | None = None
    reference: str = "round"
    stop: str = "lower"
    metric: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("reference", REFERENCES), ("stop", tuple(RULES))):
            if getattr(self, name) not in known:
                raise InputError(f"--{name} is {getattr(self, name)!r}; use one of {', '.join(known)}.")
        if self.metric is not None and not (self.metric in METRICS and METRICS[self.metric].higher_is_better):
            best = ", ".join(name for name, label in METRICS.items() if label.higher_is_better)
            raise InputError(f"--metric is {self.metric!r}; use one whose highest value is the best: {best}.")
        if self.reference == "first" and self.adapter:
            raise InputError(
                "--reference first means the base model: merge the adapter into it first (`mmedpo merge`), and give "
                "the merged model without --adapter."
            )


def run(recipe: Path, output: Path, settings: Settings, most: int, chain: Chain, command: str = "") -> list[list[str]]:
    """Run up to `most` rounds; return the table over rounds, headings first.

    Writes `start/evaluation`; for each round `pairs`, `adapter`, `evaluation` and `comparison.json` (with the round
    before) in `round-N`; `rounds.json` and `rounds.md`.

    Raises:
        InputError: the recipe or an option is wrong, found before anything runs; or as the commands.
        AlreadyFinished: `chain.resume`, and these rounds are finished.
    """
    own = sections(recipe, recipes.load(recipe))
    _refuse_splits(own)
    recorded = {**asdict(settings), "source": str(settings.source), **own}
    used = [own[command]["split"] for command in ("curate", "evaluate")]
    first = _evaluation(own, settings, output / "start", settings.adapter, "start")
    planned = [_steps(own, settings, output, number) for number in range(1, most + 1)]
    steps = [first, *(step for steps in planned for step in steps)]
    open_chain(output, recorded, settings.source, settings.model, chain, used, steps)
    if (output / RECORD).exists():
        before = read_object(output / RECORD)["rounds"]
        if before[-1]["stop"] or len(before) >= most:
            raise AlreadyFinished(f"{output} is finished, with {len(before)} rounds; nothing to resume.")
    evaluated, done = [chain.run(first)], list[dict[str, Any]]()
    _metric(read_object(evaluated[0] / "results.json")["metrics"], settings)  # before hours of work
    for steps in planned:
        evaluated.append([chain.run(step) for step in steps][-1])
        done.append(_decided(evaluated, steps, settings))
        if done[-1]["stop"]:
            break
    comparison = comparing.compare(evaluated, settings.seed)
    return _written(output, comparison, done, settings, own["evaluate"]["split"], command)


def _refuse_splits(own: dict[str, dict[str, Any]]) -> None:
    """Set the default splits; raise InputError where a section uses the test split, or trains no adapter."""
    train, validation = own["curate"].setdefault("split", "train"), own["evaluate"].setdefault("split", "validation")
    if any(not isinstance(one, str) or is_test(one) for one in (train, validation)) or train == validation:
        raise InputError(
            f"Rounds cannot curate from the split {train!r} and evaluate on {validation!r}: give two splits, and keep "
            "the test split for the model that is chosen by them."
        )
    refuse_leak("Rounds", own["curate"], own["evaluate"])
    if "seed" in own["curate"]:
        raise InputError("Each round curates with a seed of its own, from that of --seed. Leave out curate's.")
    if own["train"].get("use_peft") is not True:
        raise InputError("Rounds train an adapter, which later rounds continue. Set use_peft: true in section train.")


def _evaluation(own: Any, settings: Settings, folder: Path, adapter: str | None, name: str) -> Step:
    options = {**own["evaluate"], "model": settings.model, "source": str(settings.source), "name": name}
    return Step("evaluate", given(options, adapter=adapter, output=folder / "evaluation"))


def _steps(own: Any, settings: Settings, output: Path, number: int) -> list[Step]:
    """Return the three steps of a round."""
    folder, seed = output / f"round-{number}", settings.seed + number - 1
    adapter = settings.adapter if number == 1 else str(output / f"round-{number - 1}" / "adapter")
    pairs = {**own["curate"], "model": settings.model, "source": str(settings.source), "seed": seed}
    trained = {
        **own["train"], "dataset_name": str(folder / "pairs"), "model_name_or_path": settings.model, "seed": seed,
    }  # fmt: skip
    if adapter:  # its LoRA settings are its own
        trained |= {"use_peft": False, "reference": "base" if settings.reference == "first" else "start"}
    return [
        Step("curate", given(pairs, adapter=adapter, output=folder / "pairs")),
        Step("train", given(trained, adapter_name_or_path=adapter, output=folder / "adapter")),
        _evaluation(own, settings, folder, str(folder / "adapter"), f"round {number}"),
    ]


def _decided(evaluated: Sequence[Path], steps: Sequence[Step], settings: Settings) -> dict[str, Any]:
    """Compare a round with the one before; return its entry in `rounds.json`, with the decision."""
    pairs, trained, evaluation = steps
    comparison = comparing.compare([*evaluated[-2:]], settings.seed)
    write_json(pairs.output.with_name("comparison.json"), comparison)
    metrics = comparison["metrics"]
    metric = _metric(metrics, settings)
    cell = metrics[metric][str(evaluation.options["name"])]
    fell = cell["difference_high" if settings.stop == "significant" else "difference"] < 0
    return {
        "round": len(evaluated) - 1, "seed": trained.options["seed"],
        "pairs": read_object(pairs.output / "manifest.json")["counts"], "metric": metric,
        **{key: cell[key] for key in (*VALUE, *DIFFERENCE)}, "stop": fell and settings.stop != "never",
    }  # fmt: skip


def _metric(metrics: Mapping[str, Any], settings: Settings) -> str:
    """Return the metric that decides, or raise InputError where the evaluations lack it."""
    metric = next((name for name in (settings.metric, *DECIDING) if name in metrics), None)
    if metric is None or settings.metric not in (None, metric):
        known = ", ".join(name for name in metrics if name in METRICS and METRICS[name].higher_is_better)
        raise InputError(
            f"The evaluations have no {settings.metric or DECIDING[0]}. Start anew, in another --output, with --metric "
            f"and one of {known}."
        )
    return metric


def _written(
    output: Path, comparison: dict[str, Any], done: list[dict[str, Any]], settings: Settings, split: str, command: str
) -> list[list[str]]:
    """Write `rounds.json` and `rounds.md`; return the table."""
    metric = done[0]["metric"]
    cells = comparison["metrics"][metric]
    names = ["start", *(f"round {entry['round']}" for entry in done)]
    best = max(range(len(names)), key=lambda place: (cells[names[place]]["value"], -place))
    rule = RULES[settings.stop].format(metric, split)
    table = [["round", "pairs", f"{metric} [95 % interval]", "difference to the round before", "then"]]
    table.append(["start", "", in_brackets(cells["start"], VALUE), "", "go on"])
    for entry in done:
        then = "stop" if entry["stop"] else "go on" if entry is not done[-1] else "last"
        pairs = ", ".join(f"{count} {kind}" for kind, count in entry["pairs"].items())
        difference = in_brackets(entry, DIFFERENCE, "+")
        table.append([str(entry["round"]), pairs, in_brackets(entry, VALUE), difference, then])
    note = (
        f"Rule: {rule}. Best: {names[best]}. It was chosen by the {split} split; measure it once on the test split. "
        f"Reference of each training: {'its start' if settings.reference == 'round' else 'the first model'}."
    )
    sheets = [
        Sheet("Rounds", table, note),
        Sheet("All metrics", by_metric(comparison), "Differences are to the start."),
    ]
    write_whole(output / TABLE, "\n".join(map(as_markdown, sheets)).encode())
    write_json(output / RECORD, {
        "format": "mmedpo.rounds/1", "command": command, "versions": versions(),
        "model": portable(settings.model), "adapter": settings.adapter and portable(settings.adapter),
        "source": comparison["evaluations"]["start"]["source"], "split": split, "reference": settings.reference,
        "rule": rule, "rounds": done, "best": best, "metrics": comparison["metrics"], "notes": comparison["notes"],
    })  # fmt: skip
    return table
