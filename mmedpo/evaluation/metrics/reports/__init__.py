"""What `report_generation` is made of: a file for each protocol, METEOR in its variants, and clinical scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmedpo.evaluation.metrics.base import Metric


class Text(NamedTuple):
    """A report as it was given, and its words by a protocol."""

    raw: str
    words: list[str]


@dataclass(frozen=True)
class Protocol:
    """One definition of the report metrics.

    Args:
        definition: name and version; the version goes up whenever a value changes.
        words: the words of a report, which METEOR compares.
        score: (prediction, reference) -> the JSON-able summands of one report, without METEOR.
        metrics: what the summands make, without METEOR.
        meteor_variant: the METEOR that belongs to the definition.
    """

    definition: str
    words: Callable[[str], list[str]]
    score: Callable[[Text, Text], dict[str, Any]]
    metrics: Sequence[Metric]
    meteor_variant: str
