"""Strict metrics, their uncertainty, and comparisons of runs; in this file what all metrics ask of their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmedpo.errors import Fault, InputError
from mmedpo.models import thoughts


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise InputError listing `known` unless it holds `name`; `kind` is the option's name."""
    if name not in known:
        raise InputError(f"{kind} {name!r} does not exist; choose one of: {', '.join(known)}.")


def require_lists(columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise InputError unless the columns are lists of one length."""
    for name, column in columns.items():
        if isinstance(column, str):
            raise InputError(f"{name} is one string ({column[:40]!r}); give a list of strings, one a question.")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise InputError(f"The columns differ in length ({lengths}); give one entry a question in each.")


def group_faults(groups: Sequence[Any] | None) -> list[Fault]:
    """A fault for each entry of `groups` that is no string."""
    return [
        Fault(f"index {i}", "groups", f"is {group!r}, not a string; name the group of every question or report")
        for i, group in enumerate(groups or ())
        if not isinstance(group, str)
    ]


def answers_in(predictions: Sequence[str]) -> list[str]:
    """The answers in what a model said, without thoughts (`mmedpo.models.thoughts`); "" where a thought is not
    finished."""
    return [thoughts.strip(text) or "" for text in predictions]


def by_group(
    groups: Sequence[str], scores: Sequence[Mapping[str, Any]], aggregate: Callable[[list[Mapping[str, Any]]], Any]
) -> dict[str, Any]:
    """What `aggregate` says of the scores of each group, by its name, in alphabetical order; groups: one a score."""
    members: dict[str, list[Mapping[str, Any]]] = {group: [] for group in sorted(set(groups))}
    for group, sample in zip(groups, scores, strict=True):
        members[group].append(sample)
    return {group: aggregate(found) for group, found in members.items()}


def require_texts(
    predictions: Sequence[str], references: Sequence[str], tokens: Callable[[str], list[str]], **others: Sequence[Any]
) -> None:
    """Raise one InputError unless the columns are equally long lists of strings, every reference with words.

    Args:
        predictions: answers of the model, n strings; they may be empty.
        references: gold answers, n strings.
        tokens: how the metric splits a text into words.
        others: further columns of length n, whose content the caller checks.
    """
    columns = {"predictions": predictions, "references": references, **others}
    require_lists(columns)
    faults = [
        Fault(f"index {i}", name, f"is {text!r}, not a string; an unanswered question has the prediction ''")
        for name in ("predictions", "references")
        for i, text in enumerate(columns[name])
        if not isinstance(text, str)
    ]
    faults += [
        Fault(f"index {i}", "references", f"is {text!r}, which has no words to compare with; drop the question")
        for i, text in enumerate(references)
        if isinstance(text, str) and not tokens(text)
    ]
    if faults:
        raise InputError(f"{len(faults)} of the texts cannot be scored:", faults)
