"""Strict metrics, their uncertainty and comparisons of runs. This file validates the inputs of all metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.models import thoughts


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise InputError, which lists `known`, unless `known` holds `name`.

    Args:
        kind: name of the option, for the message.
    """
    if name not in known:
        raise InputError(f"{kind} {name!r} does not exist; choose one of: {', '.join(known)}.")


def require_lists(columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise InputError unless all columns are lists of equal length."""
    for name, column in columns.items():
        if isinstance(column, str):
            raise InputError(f"{name} is one string ({column[:40]!r}); give a list of strings, one a question.")
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise InputError(f"The columns differ in length ({lengths}); give one entry a question in each.")


def require_groups(groups: Sequence[Any], predictions: Sequence[str]) -> None:
    """Raise InputError unless `groups` names the group of each prediction."""
    require_lists({"predictions": predictions, "groups": groups})
    faults = [
        Fault(f"index {i}", "groups", "is not a string; name the group of every question or report", repr(group))
        for i, group in enumerate(groups)
        if not isinstance(group, str)
    ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'groups')} without a name:", faults)


def answers_in(predictions: Sequence[str]) -> list[str]:
    """Return the predictions without thoughts (`mmedpo.models.thoughts`); "" for an unfinished thought."""
    return [thoughts.strip(text) or "" for text in predictions]


def by_group(
    groups: Sequence[str], scores: Sequence[Mapping[str, Any]], aggregate: Callable[[list[Mapping[str, Any]]], Any]
) -> dict[str, Any]:
    """Return `aggregate` of each group's scores, by group name in alphabetical order.

    Args:
        groups: n names, one a score.
        scores: n results of a metric's `score`.
        aggregate: function of the scores of one group.
    """
    members: dict[str, list[Mapping[str, Any]]] = {group: [] for group in sorted(set(groups))}
    for group, sample in zip(groups, scores, strict=True):
        members[group].append(sample)
    return {group: aggregate(found) for group, found in members.items()}


def require_texts(
    predictions: Sequence[str], references: Sequence[str], tokens: Callable[[str], list[str]], **others: Sequence[Any]
) -> None:
    """Raise one InputError unless all columns are lists of n strings and every reference has words.

    Args:
        predictions: n answers of the model; they may be empty.
        references: n gold answers.
        tokens: function that splits a text into the metric's words.
        others: further columns of length n; the caller validates their content.
    """
    columns = {"predictions": predictions, "references": references, **others}
    require_lists(columns)
    faults = [
        Fault(f"index {i}", name, "is not a string; an unanswered question has the prediction ''", repr(text))
        for name in ("predictions", "references")
        for i, text in enumerate(columns[name])
        if not isinstance(text, str)
    ]
    faults += [
        Fault(f"index {i}", "references", "has no words to compare with; drop the question", repr(text))
        for i, text in enumerate(references)
        if isinstance(text, str) and not tokens(text)
    ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'texts')} cannot be scored:", faults)
