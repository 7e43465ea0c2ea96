"""Read evaluation folders for a comparison, and refuse those that cannot be compared."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmedpo.data import credentialed
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.metrics import med_vqa
from mmedpo.evaluation.metrics.base import Metric
from mmedpo.evaluation.score import METRICS, Row, Scoring, check_digests, first_ids, read_by_id
from mmedpo.runs import formats
from mmedpo.runs.run_folder import read_json
from mmedpo.schema import TASKS

FILES = ("questions", "predictions", "scores")
SAME_COLUMNS = ("image_id", "task", "question", "reference", "image_digest", "pair_digest")
NOTED = ("seed", "source", "split", "model", "revision", "dtype")  # a difference is a note, not an error
WEIGHTS = "model_fingerprint"  # where both runs have it, it replaces names of models
VARIANT_OF = {"meteor_variant": "report_generation"}  # key of a variant -> part
KIND = ("dispreference", "weight_band")  # with the task they decide which metrics are about a line of scores


@dataclass(frozen=True)
class Run:
    """A finished evaluation folder; lines are keyed by question id."""

    name: str
    results: Row
    questions: dict[str, Row]
    predictions: dict[str, Row]
    scores: dict[str, Row]

    @cached_property
    def metrics(self) -> list[Metric]:
        """Metrics of the run's protocols."""
        return [metric for part, protocol in self.results["protocols"].items() for metric in METRICS[part](protocol)]

    def about(self, id_: str) -> set[str]:
        """Return the names of the metrics about a question."""
        return {metric.name for metric in self.metrics if metric.about(self.scores[id_])}


def load(folders: Sequence[Path]) -> list[Run]:
    """Read evaluation folders that can be compared with the first one.

    Raises:
        InputError: fewer than two folders, unfinished or damaged ones, equal names, or runs that differ in questions,
            gold answers, images, protocols or definitions (every difference is listed).
    """
    if len(folders) < 2:
        raise InputError(f"A comparison needs at least two runs, the baseline first; given: {len(folders)}.")
    runs = [_load(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(
            f"The runs are named {', '.join(names)}; give each run its own name, to tell them apart: "
            "`mmedpo score RUN --name NAME --output OTHER` makes a copy with another one."
        )
    left_out = absent(runs)
    faults = [fault for run in runs[1:] for fault in _differences(runs[0], run, left_out)]
    if faults:
        with credentialed.quoting_nothing(credentialed.first(run.results for run in runs) is not None):
            raise InputError(
                "The runs cannot be compared, since they did not answer and score the same questions:", faults
            )
    return runs


def absent(runs: Sequence[Run]) -> dict[str, str]:
    """Return name -> reason of the metrics that some run lacks; they are compared for no run."""
    return {
        key.removesuffix("_absent"): f"not computed for {run.name!r}: {why}"
        for run in reversed(runs)
        for key, why in run.results["metrics"].items()
        if key.endswith("_absent") and why
    }


def notes(runs: Sequence[Run]) -> list[str]:
    """Return notes on recorded facts that may explain or limit a difference between runs."""
    baseline, said = runs[0], [f"{name} is {why.rstrip('.')}" for name, why in absent(runs).items()]
    said += [
        f"{run.results['unanswered']} of {len(run.questions)} questions got no answer in {run.name!r}, and count as ''"
        for run in runs
        if run.results.get("unanswered")
    ]
    said += [
        f"{run.results['cut_off']} of {len(run.questions)} answers were cut off at the longest length in {run.name!r}"
        for run in runs
        if run.results.get("cut_off")
    ]
    for run in runs[1:]:
        ours, theirs = _settings(run, baseline), _settings(baseline, run)
        said += [
            f"{key} is {ours.get(key)!r} in {run.name!r}, but {theirs.get(key)!r} in {baseline.name!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
    return said


def definitions(run: Run, left_out: Collection[str] = ()) -> Row:
    """Return the run's metric definitions: protocols, their versions and METEOR's variant.

    Only parts that have questions are included; variants of metrics in `left_out` are not.
    """
    parts, metrics = run.results["protocols"], run.results["metrics"]
    used = {
        part for part, protocol in parts.items()
        if any(metric.about(line) for metric in METRICS[part](protocol) for line in run.scores.values())
    }  # fmt: skip
    found = {key: value for key, value in metrics.items() if key.endswith(("_definition", "_variant"))}
    return {
        key: value
        for key, value in {**parts, **found}.items()
        if value is not None
        and VARIANT_OF.get(key, key.removesuffix("_definition")) in used
        and key.removesuffix("_variant") not in left_out
    }


def _settings(run: Run, other: Run) -> Row:
    prompt = run.results.get("prompt")
    asked = (
        {f"prompt {key}": value for key, value in prompt.items()} if isinstance(prompt, dict) else {"prompt": prompt}
    )
    given = {key: run.results.get(key) for key in NOTED}
    weights = (run.results.get(WEIGHTS), other.results.get(WEIGHTS))
    if all(weights) and weights[0] == weights[1]:  # the same weights may lie in different folders
        given = {key: value for key, value in given.items() if key not in ("model", "revision")}
    elif all(weights):
        given["model's weights"] = str(weights[0])[:8]
    return given | asked | (run.results.get("settings") or {})


def _load(folder: Path) -> Run:
    results = read_json(folder / "results.json")
    if not isinstance(results, dict) or results.get("format") != formats.RESULTS:
        raise InputError(
            f"{folder / 'results.json'} is not in the format {formats.RESULTS}; run `mmedpo evaluate` anew."
        )
    if not isinstance(results.get("name"), str) or not all(
        isinstance(results.get(key), dict) for key in ("protocols", "metrics")
    ):
        raise InputError(f"{folder / 'results.json'} lacks name, protocols or metrics; run `mmedpo evaluate` anew.")
    unknown = [part for part in results["protocols"] if part not in METRICS]
    if unknown:
        raise InputError(f"{folder} is scored by {', '.join(unknown)}; this version knows {', '.join(METRICS)}.")
    parts, faults = zip(*(read_by_id(folder / f"{name}.jsonl") for name in FILES), strict=True)
    if any(faults) or any(part.keys() != parts[0].keys() for part in parts):
        raise InputError(
            f"{folder}: {', '.join(FILES)} do not hold the same ids once each; run `mmedpo evaluate` anew.",
            [fault for some in faults for fault in some],
        )
    check_digests(folder, results, FILES)
    if not parts[0]:
        raise InputError(f"{folder} has no questions; there is nothing to compare.")
    run = Run(results["name"], results, *parts)
    damaged = list(_damaged(run)) or list(_scored_wrong(run))
    if damaged:
        with credentialed.quoting_nothing(credentialed.first([results]) is not None):
            raise InputError(f"{folder} is damaged; run `mmedpo evaluate` anew:", damaged)
    return run


def _scored_wrong(run: Run) -> Iterator[Fault]:
    """Yield a fault for each short answer whose recorded score differs from a new one; reports would take too long."""
    protocol = run.results["protocols"].get("med_vqa")
    if not protocol or run.results["metrics"].get("med_vqa_definition") != med_vqa.DEFINITIONS.get(protocol):
        return
    scoring = Scoring(vqa_protocol=protocol)
    for id_, question in run.questions.items():
        if question["task"] in med_vqa.ANSWER_TYPES:
            said = run.predictions[id_]["prediction"]
            found, line = scoring.score(question["task"], said, question["reference"]), run.scores[id_]
            if wrong := [key for key, value in found.items() if line.get(key, value) != value]:
                said = ", ".join(f"{key} is {line[key]!r}, not {found[key]!r}" for key in wrong)
                yield Fault(id_, "scores", f"are not those of the prediction and the reference: {said}")


def _damaged(run: Run) -> Iterator[Fault]:
    widths: dict[Metric, int] = {}
    for id_, question in run.questions.items():
        for column in ("image_id", "question", "reference"):
            if not isinstance(question.get(column), str):
                yield Fault(id_, column, f"is {question.get(column)!r}, not a string")
        if question.get("task") not in TASKS:
            yield Fault(id_, "task", f"is {question.get('task')!r}; choose one of: {', '.join(TASKS)}")
        if not isinstance(run.predictions[id_].get("prediction"), str):
            yield Fault(id_, "prediction", f"is {run.predictions[id_].get('prediction')!r}, not a string")
        yield from _damaged_scores(run, id_, widths)
    yield from _lacking(run)


def _damaged_scores(run: Run, id_: str, widths: dict[Metric, int]) -> Iterator[Fault]:
    line = run.scores[id_]
    wrong = [
        key for key, value in line.items() if not all(map(_is_finite, value if isinstance(value, list) else [value]))
    ]
    yield from (Fault(id_, key, f"is {line[key]!r}, no finite number") for key in wrong)
    for metric in run.metrics if not wrong else ():
        try:
            numbers = list(metric.statistics(line)) if metric.about(line) else []
        except (KeyError, TypeError) as error:
            yield Fault(id_, metric.name, f"cannot be made of this line of scores ({type(error).__name__}: {error})")
        else:
            if not all(isinstance(number, int | float) for number in numbers):
                yield Fault(id_, metric.name, f"is made of {numbers!r}, which are no numbers")
            elif numbers and widths.setdefault(metric, len(numbers)) != len(numbers):
                yield Fault(id_, metric.name, f"is made of {len(numbers)} numbers, but of {widths[metric]} before")


def _is_finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _lacking(run: Run) -> Iterator[Fault]:
    """Yield a fault for each line without scores that others of its kind have; a metric would silently skip it."""
    about = {id_: run.about(id_) for id_ in run.questions}
    kinds = {
        id_: str([row.get("task"), *(run.scores[id_].get(key) for key in KIND)]) for id_, row in run.questions.items()
    }
    needed: defaultdict[str, set[str]] = defaultdict(set)
    for id_, kind in kinds.items():
        needed[kind] |= about[id_]
    for id_, kind in kinds.items():
        if not about[id_]:
            yield Fault(id_, "scores", "are about none of the metrics of the run's protocols")
        elif lacking := sorted(needed[kind] - about[id_]):
            yield Fault(id_, "scores", f"lack what {', '.join(lacking)} is made of, which other lines have")


def _differences(baseline: Run, run: Run, left_out: Collection[str]) -> list[Fault]:
    faults = []
    for one, other in ((baseline, run), (run, baseline)):
        lacking = sorted(one.questions.keys() - other.questions.keys())
        if lacking:
            said = f"lacks {len(lacking)} questions of {one.name!r}: {first_ids(lacking)}"
            faults.append(Fault(other.name, "id", said))
    ours, theirs = definitions(run, left_out), definitions(baseline, left_out)
    faults += [
        Fault(run.name, key, f"is {ours.get(key)!r}, but {theirs.get(key)!r} in {baseline.name!r}; score both alike")
        for key in {**theirs, **ours}
        if ours.get(key) != theirs.get(key)
    ]
    for id_, question in baseline.questions.items():
        twin = run.questions.get(id_, question)
        faults += [
            Fault(id_, column, f"is {twin[column]!r} in {run.name!r}, but {question[column]!r} in {baseline.name!r}")
            for column in SAME_COLUMNS
            if None not in (twin.get(column), question.get(column)) and twin[column] != question[column]
        ]
    return faults or _scored_otherwise(baseline, run, left_out)


def _scored_otherwise(baseline: Run, run: Run, left_out: Collection[str]) -> list[Fault]:
    """Return a fault for each question with other metrics than in the baseline; a comparison would silently skip it."""
    differing = ((id_, sorted((run.about(id_) ^ baseline.about(id_)) - {*left_out})) for id_ in baseline.questions)
    return [
        Fault(id_, "scores", f"have {', '.join(names)} in {run.name!r} or {baseline.name!r} only; score both alike")
        for id_, names in differing
        if names
    ]
