"""Pairs of a training: of one dataset, or a mixture of several."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from accelerate import PartialState
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset, Value, concatenate_datasets

from mmedpo import schema
from mmedpo.data import answers, loading, origin, weights
from mmedpo.data.images import file_digest
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.runs.terminal import say
from mmedpo.training.config import RunArguments

NUMBER = "dataset"  # column of a mixture: number of the pair's dataset, from 0

Commits = Mapping[str, str | None]  # of each dataset by name, in the order given; None for a folder

logger = get_logger(__name__)


def commits(run: RunArguments) -> dict[str, str | None]:
    """Return the commit of each dataset of a run, as `origin.dataset_commit`."""
    revisions = zip_longest(run.dataset_name, run.dataset_revision or [])
    return {name: origin.dataset_commit(name, revision) for name, revision in revisions}


def pairs(run: RunArguments, found: Commits, split: str, streaming: bool = False) -> Dataset | IterableDataset:
    """Return the pairs of one split of a run's datasets, before their rows are checked.

    Of several datasets the rows follow each other, with ids that begin with the dataset's name and a column `NUMBER`.

    Raises:
        InputError: as `loading.load_split`; no pairs of the kind asked for; or columns of a mixture are not the
            schema's.
    """
    parts = {name: loading.load_split(name, split, streaming, commit) for name, commit in found.items()}
    dataset = next(iter(parts.values())) if len(parts) == 1 else _joined(parts)
    if run.dispreference != "all" and "dispreference" in dataset.column_names:
        names = getattr((dataset.features or {}).get("dispreference"), "names", schema.DISPREFERENCES)
        dataset = dataset.filter(
            lambda kind: schema.label(kind, names) == run.dispreference, input_columns="dispreference"
        )
    if len(parts) > 1:
        empty = [name for number, name in enumerate(parts) if number not in set(dataset[NUMBER])]
    else:
        empty = [] if next(iter(schema.undecoded(dataset).take(1)), None) else [*parts]
    if empty:
        raise InputError(
            f"{empty[0]} has no row of kind {run.dispreference!r} in {split!r}; give another kind or split."
        )
    return dataset


def mixed(dataset: Any, run: RunArguments, found: Commits, seed: int, evaluated: bool = False) -> Any:
    """Return the pairs of an epoch: of a mixture with its shares and weights, of one dataset all.

    The pairs drawn are the same in each epoch. Evaluation takes each pair once.

    Raises:
        InputError: a share is too small for a pair; or weights cannot be normalised anew.
    """
    if len(found) == 1:
        return dataset
    numbers = dataset[NUMBER][:]
    rows = [*range(len(numbers))]
    if run.dataset_shares and not evaluated:
        rows = _drawn(numbers, [*found], run.dataset_shares, seed)
    if not evaluated and PartialState().is_main_process:
        held, taken = Counter(numbers), Counter(numbers[row] for row in rows)
        parts = (f"{name} {taken[number]:,} (it has {held[number]:,})" for number, name in enumerate(found))
        say(f"Pairs of an epoch: {', '.join(parts)}.")
    if run.mixture_weights == "anew":
        dataset = _reweighed(dataset, rows, found, warn=not evaluated)
    return dataset.select(rows)


def warn_of_trained_images(dataset: Dataset, evaluated: Dataset) -> None:
    """Warn where images of the evaluation are in the training pairs of a mixture, by their files."""

    def files(pairs: Dataset) -> set[str]:
        return {
            file_digest(image) for row in schema.undecoded(pairs.select_columns("images")) for image in row["images"]
        }

    trained, tested = files(dataset), files(evaluated)
    if both := trained & tested:
        logger.warning(
            f"{len(both):,} of {number_of(len(tested), 'images')} of the evaluation are trained on too, so that its "
            "losses are too low. Datasets about the same images must be split alike."
        )


def _joined(parts: Mapping[str, Dataset]) -> Dataset:
    """Return the rows of all datasets, with the columns of the schema."""
    kinded = not any(map(answers.named, parts))  # gold answers of a source have no kind
    faults = [
        replace(fault, row=f"{name}: {fault.row}")
        for name, part in parts.items()
        for fault in schema.column_faults(part.features)
        if kinded or fault.column != "dispreference"
    ]
    if faults:
        raise InputError("These datasets cannot be mixed:", faults)
    ids: Counter[str] = Counter()
    found = []
    for number, (name, part) in enumerate(parts.items()):
        kinds = {
            name: kind for name, kind in schema.features_of(part.features).items() if kinded or name != "dispreference"
        }
        part = part.select_columns([column for column in part.column_names if column in kinds])
        own = part["id"][:]
        ids.update(set(own))
        columns = {"id": ([f"{name}: {id}" for id in own], kinds["id"]), NUMBER: ([number] * len(own), Value("int64"))}
        for column, kind in kinds.items():  # datasets of earlier versions have fewer class names
            if part.features[column] != kind:
                columns[column] = part[column][:], kind
        for column, (values, kind) in columns.items():
            part = part.remove_columns([column] if column in part.column_names else [])
            part = part.add_column(column, values, feature=kind)
        found.append(part)
    if repeated := sum(count > 1 for count in ids.values()):
        logger.warning(
            f"{number_of(repeated, 'row ids')} are in more than one of {', '.join(parts)}: pairs about the same "
            "samples, all of which are trained on."
        )
    return concatenate_datasets(found)


def _drawn(numbers: Sequence[int], names: Sequence[str], shares: Sequence[float], seed: int) -> list[int]:
    """Return rows so that each dataset has its share of as many pairs as there are.

    A dataset's rows are taken as many whole times as fit, and the rest drawn without repetition.
    """
    ends = [round(len(numbers) * sum(shares[: i + 1]) / math.fsum(shares)) for i in range(len(shares))]
    drawn: list[int] = []
    for number, (name, begin, end) in enumerate(zip(names, [0, *ends], ends, strict=False)):
        own = [row for row, of in enumerate(numbers) if of == number]
        if begin == end:
            raise InputError(
                f"dataset_shares: {shares[number]:g} for {name} is no pair of {len(numbers):,}; give a larger share."
            )
        whole, rest = divmod(end - begin, len(own))
        drawn += own * whole + sorted(random.Random(f"{seed} {number}").sample(own, rest))
    return drawn


def _reweighed(dataset: Dataset, rows: Sequence[int], found: Commits, warn: bool) -> Dataset:
    """Return the dataset with the weights of these rows normalised together, each kind as the datasets were."""
    if "dispreference" not in dataset.column_names:
        raise InputError("mixture_weights anew: gold answers of a source have no clinical relevance. Use own.")
    made = {name: origin.dataset_manifest(name, commit) for name, commit in found.items()}
    scored = {name: own.get("weights", {}) for name, own in made.items()}
    ways = {name: (own.get("method", "rescale"), own.get("over", "kind")) for name, own in scored.items()}
    if len({*ways.values()}) > 1:
        said = "; ".join(f"{name}: {method} over {over}" for name, (method, over) in ways.items())
        raise InputError(f"mixture_weights anew: weights were made in different ways ({said}). Use own.")
    if warn and len({str(own.get("judges")) for own in made.values()}) > 1:
        logger.warning("mixture_weights anew: other judges scored each dataset, whose scores may not be comparable.")
    kinds, scores = dataset["dispreference"][:], dataset["clinical_relevance"][:]
    groups = [schema.DISPREFERENCES[kinds[row]] for row in rows]
    method, over = next(iter(ways.values()))
    anew, _ = weights.normalize([scores[row] for row in rows], method, groups, over)
    whole = dataset["weight"][:]
    for row, weight in zip(rows, anew.tolist(), strict=True):
        whole[row] = weight
    return dataset.remove_columns("weight").add_column("weight", whole, feature=Value("float32"))
