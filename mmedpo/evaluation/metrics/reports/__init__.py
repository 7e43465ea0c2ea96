"""Parts of `report_generation`: a file for each protocol, METEOR's variants and clinical scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmedpo.evaluation.metrics.base import Metric


class Text(NamedTuple):
    """A raw report and its words by a protocol."""

    raw: str
    words: list[str]


@dataclass(frozen=True)
class Protocol:
    """A definition of the report metrics.

    Attributes:
        definition: name and version; the version rises whenever a value changes.
        words: function that returns the words of a report, which METEOR compares.
        score: function of (prediction, reference) that returns one report's summands, fit for JSON, without METEOR.
        metrics: metrics made of the summands, without METEOR.
        meteor_variant: default METEOR of the definition.
    """

    definition: str
    words: Callable[[str], list[str]]
    score: Callable[[Text, Text], dict[str, Any]]
    metrics: Sequence[Metric]
    meteor_variant: str
