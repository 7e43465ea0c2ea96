"""Compare runs on the same questions: metrics with intervals, differences from the baseline and p-values.

Numbers are over all questions and by task, question type, organ and modality.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmedpo.data import credentialed
from mmedpo.data.samples import Sample
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.evaluation import unread
from mmedpo.evaluation.examples import changes, examples
from mmedpo.evaluation.parts import Cells, Part, about_questions, resampled, values_alone
from mmedpo.evaluation.runs import Run, absent, by_method, definitions, first_runs, load, notes, templates
from mmedpo.evaluation.score import Row, clusters, first_ids, pictures, read_by_id
from mmedpo.evaluation.seen import other_settings, seen_in_training, trained_on
from mmedpo.evaluation.statistics import RESAMPLES, cluster_sums, holm
from mmedpo.runs import formats
from mmedpo.runs.provenance import versions

GROUPINGS = ("task", "question_type", "organ", "modality")  # columns of questions.jsonl
GROUPS = 20  # most groups of one grouping; smaller ones are merged
GROUP_IMAGES = 10  # least images for a test and an interval of a metric in a group
NOT_RECORDED, OTHERS = "(not recorded)", "(others)"
BINS = 10
SEED_KEYS = ("command", "model", "model_fingerprint", "adapter", "adapter_sha256", "predictions_sha256")


@dataclass(frozen=True)
class Group:
    """Questions of one group, the metrics about them, and the parts of `unread.measure`."""

    ids: list[str]
    parts: list[Part]
    read: dict[str, Part]


def compare(
    runs: Sequence[Path], seed: int = 0, resamples: int = RESAMPLES, command: str = "", dataset: str | None = None,
    trainings: Sequence[Path] = (), methods: Sequence[str | None] = (),
) -> Row:  # fmt: skip
    """Compare evaluation folders; the first is the baseline.

    Intervals are 95 % intervals of a bootstrap over images; both runs of a difference share the resamples. p-values
    come from a permutation test that exchanges whole images between a run and the baseline. `p_adjusted` is Holm's
    correction over all metrics and methods of a table; the groups of one grouping are one table. Metrics about no
    question are absent. Several runs of a method are one row, whose numbers cover their seeds too
    (`statistics.over_seeds`).

    Args:
        runs: at least two folders written by `mmedpo evaluate`, with different names in results.json.
        seed: seed of resamples, permutations and examples.
        resamples: number of bootstrap resamples, and of permutations.
        command: command line, recorded unchanged.
        dataset: preference dataset (folder or Hub id) in which test images are searched. By default the dataset that
            the last run was trained on, where it is recorded and can be loaded.
        trainings: training folders that may record that dataset.
        methods: as of `runs.load`: runs with an equal name are seeds of one method.

    Returns:
        The content of comparison.json (docs/files.md).

    Raises:
        InputError: as `runs.load` and `seen.seen_in_training`.
    """
    loaded = load(runs, methods)
    firsts = first_runs(loaded)
    baseline = firsts[0]
    left_out = absent(loaded)
    defined = [metric for metric in baseline.metrics if metric.name not in left_out]
    parts = about_questions(loaded, defined)
    read = unread.measure(loaded)
    divided = {column: _divided(baseline, column, parts, read) for column in GROUPINGS}
    in_groups = [group for found in divided.values() for group in found.values()]
    large = [part for group in in_groups for part in (*group.parts, *group.read.values()) if part.count >= GROUP_IMAGES]
    tested = resampled(loaded, [*parts, *read.values(), *large], seed, resamples)
    metrics, undefined = _measured(loaded, parts, tested)
    reading = _reading(loaded, read, tested)
    groups = {column: _groups(loaded, found, tested) for column, found in divided.items()}
    seeds = {name: len(own) for name, own in by_method(loaded).items() if len(own) > 1}
    tests = {"table": _correct([metrics])}
    tests |= {column: _correct([group["metrics"] for group in found.values()]) for column, found in groups.items()}
    said = [*notes(loaded), *(f"{name} is undefined on these questions" for name in undefined), *_few(parts)]
    said += [*_linked(baseline), *unread.notes(reading), *other_settings(loaded)]
    marked = credentialed.first(run.results for run in loaded)
    listed, outcomes = examples(firsts, defined, seed)
    return {
        "format": formats.COMPARISON,
        "command": command,
        **({"credentialed": True, "source": marked} if marked else {}),
        "versions": versions(),
        "seed": seed,
        "resamples": resamples,
        "unit": "image",
        "baseline": baseline.name,
        "runs": [run.name for run in firsts],
        **({"seeds": seeds} if seeds else {}),
        "evaluations": {run.name: _evaluation(run, loaded) for run in firsts},
        "definitions": definitions(baseline, left_out),
        "notes": said + _too_many(tests, resamples),
        **({"templates": few} if (few := templates(loaded)) else {}),
        "n": _counts(baseline),
        "seen_in_training": _seen(loaded, dataset, trainings),
        "tests": {"correction": "holm", **tests},
        "metrics": metrics,
        "sizes": _sizes(baseline, parts),
        "reading": reading,
        "groups": {column: found for column, found in groups.items() if found},
        "distributions": _distributions(loaded, parts),
        "changes": changes(firsts),
        "outcomes": outcomes,
        "examples": listed,
    }


def method_and_folder(argument: str) -> tuple[str | None, Path]:
    """Return name and folder of NAME=FOLDER; the name is None for a folder alone, also one with = in its path."""
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).exists() or not name or "/" in name:
        return None, Path(argument)
    return name, Path(folder)


def refuse_other_images(run: Path, samples: Iterable[Sample], source: str) -> None:
    """Raise InputError where samples of a source differ in their images from a run's questions of the same id."""
    asked, _ = read_by_id(run / "questions.jsonl")
    known = {id_: row["image_digest"] for id_, row in asked.items() if row.get("image_digest")}
    if other := [one.id for one in samples if known.get(one.id, one.image_digest) != one.image_digest]:
        raise InputError(
            f"{source}: {number_of(len(other), 'questions')} had another image in the runs: {first_ids(other)}. "
            "Restore them, or leave --source out."
        )


def _seen(runs: Sequence[Run], dataset: str | None, trainings: Sequence[Path]) -> Row | None:
    if dataset:
        return seen_in_training(runs[0], dataset)
    found = trained_on(runs[-1], trainings)
    with suppress(InputError):  # the dataset was not named by the user
        return seen_in_training(runs[0], *found) if found else None
    return None


def _counts(run: Run) -> dict[str, int]:
    tasks = Counter(row["task"] for row in run.questions.values())
    images = {image for row in run.questions.values() for image in pictures(row)}
    return {
        "closed": tasks["closed_vqa"], "open": tasks["open_vqa"], "report": tasks["report"], "images": len(images),
        **({"choice": tasks["choice_vqa"]} if tasks["choice_vqa"] else {}),
    }  # fmt: skip


def _too_many(tests: dict[str, int], permutations: int) -> list[str]:
    """Return a note for each table whose smallest possible corrected p, tests / (1 + permutations), exceeds 0.05."""
    return [
        f"{count} tests by {table} are too many for {permutations:,} permutations: no corrected p can be below 0.05"
        for table, count in tests.items()
        if count > 0.05 * (1 + permutations)
    ]


def _few(parts: Sequence[Part]) -> list[str]:
    """Return a note that names the metrics about fewer than `GROUP_IMAGES` images."""
    few = [metric.name for part in parts for metric in part.metrics if part.count < GROUP_IMAGES]
    said = f"fewer than {GROUP_IMAGES} images, too few for a reliable interval or test"
    return [f"{', '.join(few)}: {said}"] if few else []


def _linked(run: Run) -> list[str]:
    """Return a note where questions link images, so that fewer clusters than images are resampled."""
    images, count = _counts(run)["images"], len({*clusters(run.questions.values())})
    said = f"images that questions show together are resampled as one, and so counted: {images} images are {count}"
    return [said] if count < images else []


def _evaluation(first: Run, runs: Sequence[Run]) -> Row:
    """Return results.json of a method's first run without its metrics, and what further runs have otherwise."""
    left_out = ("format", "name", "metrics", "protocols")
    found = {key: value for key, value in first.results.items() if key not in left_out}
    others = [run.results for run in runs if run.method == first.method][1:]
    seeds = [{key: other.get(key) for key in SEED_KEYS if other.get(key) is not None} for other in others]
    return found | ({"further_seeds": seeds} if seeds else {})


def _unit(run: Run) -> str:
    return "pairs" if "preference" in run.results["protocols"] else "questions"


def _sizes(run: Run, parts: Sequence[Part]) -> dict[str, Row]:
    return {
        metric.name: {_unit(run): len(part.images), "images": part.count} for part in parts for metric in part.metrics
    }


def _measured(runs: Sequence[Run], parts: Sequence[Part], tested: Mapping[Part, Cells]) -> tuple[Cells, list[str]]:
    """Return each defined metric's numbers by method, and the names of the undefined metrics.

    Metrics of a part that is not `tested` have values only.
    """
    cells: Cells = {}
    for part in parts:
        cells |= tested[part] if part in tested else dict(values_alone(runs, part))
    undefined = [
        name
        for name, entries in cells.items()
        for entry in entries.values()
        if not np.isfinite(np.hstack([*entry.values()])).all()
    ]
    return {name: entries for name, entries in cells.items() if name not in undefined}, list(dict.fromkeys(undefined))


def _correct(tables: Sequence[Cells]) -> int:
    """Add `p_adjusted` to every tested cell of `tables`, which are one family; return the number of tests."""
    tested = [cell for table in tables for entries in table.values() for cell in entries.values() if "p" in cell]
    for cell, adjusted in zip(tested, holm([cell["p"] for cell in tested]), strict=True):
        cell["p_adjusted"] = adjusted
    return len(tested)


def _reading(runs: Sequence[Run], parts: Mapping[str, Part], tested: Mapping[Part, Cells]) -> dict[str, Row]:
    """Return the entry "reading" of the parts of `unread.measure`."""
    return {kind: unread.record(runs, part, _measured(runs, [part], tested)[0]) for kind, part in parts.items()}


def _divided(run: Run, column: str, whole: Sequence[Part], read: Mapping[str, Part]) -> dict[str, Group]:
    """Return the groups by `column`, the largest first; empty for fewer than two groups.

    A metric whose questions all lie in one group is left to the main table.
    """
    labels = {id_: str(row.get(column) or NOT_RECORDED) for id_, row in run.questions.items()}
    kept = [label for label, _ in Counter(labels.values()).most_common(GROUPS)]
    members: dict[str, list[str]] = {label: [] for label in kept}
    for id_, label in labels.items():
        members.setdefault(label if label in kept else OTHERS, []).append(id_)
    divided = {label: (set(ids), ids) for label, ids in members.items() if len(members) > 1}
    return {
        label: Group(
            ids,
            list(_within(whole, chosen)),
            {kind: part for kind, own in read.items() for part in _within([own], chosen)},
        )
        for label, (chosen, ids) in divided.items()
    }


def _within(whole: Sequence[Part], ids: set[str]) -> Iterator[Part]:
    for part in whole:
        chosen = [place for place, id_ in enumerate(part.ids) if id_ in ids]
        if 0 < len(chosen) < len(part.ids):
            yield part.of(chosen)


def _groups(runs: Sequence[Run], divided: Mapping[str, Group], tested: Mapping[Part, Cells]) -> dict[str, Row]:
    """Return the numbers of each group; empty where no group has a metric."""
    found = {}
    for label, group in divided.items():
        images = {image for id_ in group.ids for image in pictures(runs[0].questions[id_])}
        metrics, _ = _measured(runs, group.parts, tested)
        found[label] = {
            "n": {_unit(runs[0]): len(group.ids), "images": len(images)},
            "sizes": _sizes(runs[0], group.parts), "metrics": metrics,
            "reading": _reading(runs, group.read, tested),
        }  # fmt: skip
    return found if any(group["metrics"] for group in found.values()) else {}


def _distributions(runs: Sequence[Run], parts: Sequence[Part]) -> dict[str, Row]:
    """Return histograms over images of each metric's values by run, over [0, 1] or the range that occurs."""
    found = {}
    for part in parts:
        for metric, values in part.values(cluster_sums(part.statistics, part.images)):
            finite = values[np.isfinite(values)]
            inside = finite.size == 0 or (finite.min() >= 0 and finite.max() <= 1)
            edges = np.histogram_bin_edges(finite, BINS, (0, 1) if inside else None)
            means = {name: values[own].mean(axis=0) for name, own in by_method(runs).items()}
            counts = {name: np.histogram(own[np.isfinite(own)], edges)[0].tolist() for name, own in means.items()}
            found[metric.name] = {"edges": edges.round(6).tolist(), "counts": counts}
    return found
