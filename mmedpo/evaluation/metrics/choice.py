"""Multiple choice by likelihood: the option that a model finds likeliest as the answer, beside the one it says.

Log-probabilities are in nats, summed over the tokens of an option and the end of turn. Divided by the option's bytes in
UTF-8, as lm-evaluation-harness does for `acc_norm`, they do not favour short options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmedpo.data.text import folded
from mmedpo.evaluation.metrics.base import Scores, mean_of
from mmedpo.evaluation.metrics.preference import logp_fault

METRICS = (
    mean_of("likelihood_correct", "choice_likelihood_accuracy"),
    mean_of("likelihood_per_byte_correct", "choice_likelihood_per_byte_accuracy"),
)


def score(logps: Sequence[float], options: Sequence[str], reference: str) -> dict[str, float]:
    """Return whether the gold option is the likeliest, 1.0 or 0.0, of the plain sums and per byte; ties are wrong."""
    gold = [folded(option) for option in options].index(folded(reference))
    per_byte = [logp / len(option.encode()) for logp, option in zip(logps, options, strict=True)]
    return {
        "likelihood_correct": _leads(logps, gold), "likelihood_per_byte_correct": _leads(per_byte, gold),
    }  # fmt: skip


def of_line(question: Scores, line: Scores) -> dict[str, float]:
    """Return the `score` of a line of predictions; {} for another task, or where nothing was measured."""
    if question["task"] != "choice_vqa" or "option_logps" not in line:
        return {}
    return score(line["option_logps"], question["options"], question["reference"])


def fault(logps: Any, options: Sequence[str] | None) -> str | None:
    """Return why values of a line of predictions are not the log-probabilities of these options, or None."""
    if logps is None:
        return None
    if not isinstance(logps, list) or len(logps) != len(options or ()):
        return f"is not a list with one log-probability for each of {len(options or ())} options"
    return next(filter(None, map(logp_fault, logps)), None)


def _leads(values: Sequence[float], gold: int) -> float:
    return float(all(values[gold] > value for place, value in enumerate(values) if place != gold))
