"""Read evaluation folders for a comparison, and refuse those that cannot be compared.

The files of a folder are as they were written, by their digests in results.json; their content is not checked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mmedpo.data import credentialed
from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.metrics import judged
from mmedpo.evaluation.metrics.base import Metric
from mmedpo.evaluation.metrics.reports import clinical, severity, variety
from mmedpo.evaluation.score import METRICS, Row, check_digests, first_ids, read_by_id
from mmedpo.runs import formats
from mmedpo.runs.json_files import read_json

FILES = ("questions", "predictions", "scores")
SAME_COLUMNS = ("image_id", "task", "question", "reference", "options", "question_set", "image_digest", "pair_digest")
NOTED = ("seed", "source", "split", "model", "revision", "dtype")  # a difference is a note, not an error
TRAINED = ("model", "model_fingerprint", "adapter_sha256", "predictions_sha256", "seed")  # differ between seeds
WEIGHTS = "model_fingerprint"  # where both runs have it, it replaces names of models
PART_OF = {  # key of a variant or definition -> part, where the key does not name it
    "meteor_variant": "report_generation", **{f"{name}_definition": "report_generation" for name in clinical.NAMES},
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished evaluation folder; lines are keyed by question id.

    Attributes:
        name: name of the run; of several runs of a method, "METHOD #1" and so on.
        method: name of the row that it belongs to; runs of one method differ in their training seed.
    """

    name: str
    method: str
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


def load(folders: Sequence[Path], methods: Sequence[str | None] = ()) -> list[Run]:
    """Read evaluation folders that can be compared with the first one, the runs of a method side by side.

    Args:
        folders: folders, the baseline's first.
        methods: name of each folder's method. Runs with an equal one are its seeds; None is the run's own name.

    Raises:
        InputError: fewer than two methods, unfinished or damaged folders, equal names without a method, a method with
            a run twice, or runs that differ in questions, gold answers, images, protocols or definitions (every
            difference is listed).
    """
    if len(folders) < 2:
        raise InputError(f"A comparison needs at least two runs, the baseline first; given: {len(folders)}.")
    runs = _named([_load(folder) for folder in folders], methods or [None] * len(folders))
    left_out = absent(runs)
    faults = [fault for run in runs[1:] for fault in _differences(runs[0], run, left_out)]
    if faults:
        with credentialed.hiding_cells(credentialed.first(run.results for run in runs) is not None):
            raise InputError(
                "The runs cannot be compared, since they did not answer and score the same questions:", faults
            )
    return runs


def by_method(runs: Sequence[Run]) -> dict[str, list[int]]:
    """Return the places of each method's runs, in their order."""
    places: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        places.setdefault(run.method, []).append(place)
    return places


def first_runs(runs: Sequence[Run]) -> list[Run]:
    """Return the first run of each method, under the method's name."""
    return [replace(runs[places[0]], name=method) for method, places in by_method(runs).items()]


def _named(runs: Sequence[Run], methods: Sequence[str | None]) -> list[Run]:
    """Return the runs in the order of their methods, with the names of their methods."""
    named = [replace(run, name=method or run.name, method=method or run.name)
             for run, method in zip(runs, methods, strict=True)]  # fmt: skip
    places = by_method(named)
    if twice := [name for name, own in places.items() if len(own) > 1 and None in [methods[place] for place in own]]:
        raise InputError(
            f"Several runs are named {', '.join(twice)}. Give each its own name (FIRST=RUN OTHER=RUN), or mark them as "
            f"seeds of one method ({twice[0]}=RUN {twice[0]}=RUN)."
        )
    if len(places) < 2:
        raise InputError(f"All runs are of the method {runs[0].name}; a comparison needs two, the baseline first.")
    found = []
    for name, own in places.items():
        known = Counter(str([named[place].results.get(key) for key in TRAINED]) for place in own)
        if len(known) < len(own):
            raise InputError(
                f"{name}: two of its runs are of the same model and adapter, and no seeds of a training. Leave one out."
            )
        numbered = len(own) > 1
        found += [replace(named[place], name=f"{name} #{n}" if numbered else name) for n, place in enumerate(own, 1)]
    return found


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
    said += templates(runs)
    said += [f"severity: {why} in {run.name!r}" for run in runs if (why := severity.unjudged(run.scores.values()))]
    said += [f"{run.name!r}: {one.rstrip('.')}" for run in runs for one in judged.warnings(run.results)]
    for run in runs[1:]:
        ours, theirs = _settings(run, baseline), _settings(baseline, run)
        said += [
            f"{key} is {ours.get(key)!r} in {run.name!r}, but {theirs.get(key)!r} in {baseline.name!r}"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]
    return said


def templates(runs: Sequence[Run]) -> list[str]:
    """Return how varied the reports of the runs are, where those of some run are few (`variety.are_few`)."""
    found = variety.compared([(run.name, run.results["metrics"]) for run in runs])
    return [found] if found else []


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
        and PART_OF.get(key, key.removesuffix("_definition")) in used
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
            f"{folder / 'results.json'} is not in the format {formats.RESULTS}; run `mmedpo evaluate` again."
        )
    if not isinstance(results.get("name"), str) or not all(
        isinstance(results.get(key), dict) for key in ("protocols", "metrics")
    ):
        raise InputError(f"{folder / 'results.json'} lacks name, protocols or metrics; run `mmedpo evaluate` again.")
    unknown = [part for part in results["protocols"] if part not in METRICS]
    if unknown:
        raise InputError(f"{folder} is scored by {', '.join(unknown)}; this version knows {', '.join(METRICS)}.")
    parts, faults = zip(*(read_by_id(folder / f"{name}.jsonl") for name in FILES), strict=True)
    if any(faults) or any(part.keys() != parts[0].keys() for part in parts):
        raise InputError(
            f"{folder}: {', '.join(FILES)} do not hold the same ids once each; run `mmedpo evaluate` again.",
            [fault for some in faults for fault in some],
        )
    check_digests(folder, results, FILES)
    if not parts[0]:
        raise InputError(f"{folder} has no questions; there is nothing to compare.")
    return Run(results["name"], results["name"], results, *parts)


def _differences(baseline: Run, run: Run, left_out: Collection[str]) -> list[Fault]:
    faults = []
    for one, other in ((baseline, run), (run, baseline)):
        lacking = sorted(one.questions.keys() - other.questions.keys())
        if lacking:
            said = f"lacks {number_of(len(lacking), 'questions')} of {one.name!r}: {first_ids(lacking)}"
            faults.append(Fault(other.name, "id", said))
    ours, theirs = definitions(run, left_out), definitions(baseline, left_out)
    faults += [
        Fault(
            run.name,
            key,
            f"is {ours.get(key)!r}, but {theirs.get(key)!r} in {baseline.name!r}; score both alike",
        )
        for key in {**theirs, **ours}
        if ours.get(key) != theirs.get(key)
    ]
    for id_, question in baseline.questions.items():
        twin = run.questions.get(id_, question)
        faults += [
            Fault(
                id_,
                column,
                f"differs between {run.name!r} and {baseline.name!r}",
                f"{twin[column]!r} and {question[column]!r}",
            )
            for column in SAME_COLUMNS
            if None not in (twin.get(column), question.get(column)) and twin[column] != question[column]
        ]
    return faults or _scored_otherwise(baseline, run, left_out)


def _scored_otherwise(baseline: Run, run: Run, left_out: Collection[str]) -> list[Fault]:
    """Return a fault for each question with other metrics than in the baseline; a comparison would silently skip it."""
    differing = ((id_, sorted((run.about(id_) ^ baseline.about(id_)) - {*left_out})) for id_ in baseline.questions)
    return [
        Fault(
            id_,
            "scores",
            f"have {', '.join(names)} in {run.name!r} or {baseline.name!r} only; score both with one protocol",
        )
        for id_, names in differing
        if names
    ]
