"""From clinical relevance scores to the weights that multiply the loss (the paper's section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmedpo.errors import InputError

METHODS = ("rescale", "literal", "raw", "none")
MEAN, VARIANCE, LOW, HIGH = 1.0, 0.1, 0.75, 1.25


@dataclass(frozen=True)
class Normalization:
    """How scores became weights: what a reader needs to judge whether the weighting did anything.

    `mean_before` and `sd_before` are of the pairs that have a score (all but `unscored`), None where none has.
    `low` and `high` are where the method clips (None: it does not), the shares those of the weights that lie there.
    `by_kind` holds the same of each kind where each was normalised alone; it is empty where all were at once.
    """

    method: str
    count: int
    unscored: int
    mean_before: float | None
    sd_before: float | None
    mean_after: float
    sd_after: float
    low: float | None
    high: float | None
    share_at_low: float
    share_at_high: float
    by_kind: Mapping[str, Normalization] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The numbers; `over` what they were normalised ("merged" or "kind"); if by kind, the numbers `by_kind`."""
        if not self.by_kind:
            return {**self._numbers(), "over": "merged"}
        kinds = {kind: found._numbers() for kind, found in self.by_kind.items()}
        return {**self._numbers(), "over": "kind", "by_kind": kinds}

    def _numbers(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "by_kind"}


def normalize(
    scores: Sequence[float | None], method: str = "rescale", groups: Sequence[str] | None = None
) -> tuple[np.ndarray, Normalization]:
    """Turn clinical relevance scores in [0, 1] into weights, over a whole dataset.

    Methods:
        rescale: to mean 1 and variance 0.1, then clipped to [0.75, 1.25]: the reading of the paper that weights
            anything (scores that are all equal become 1).
        literal: (score - 1) / sqrt(0.1), then clipped, as the paper's text reads: every score up to 1 becomes 0.75.
        raw: the score itself, as the authors' released code has it.
        none: 1, which is plain DPO; pairs need no score (None).

    Args:
        groups: the kind of each pair (its dispreference), to normalise each kind alone; None: all pairs at once. Text
            pairs are scored by judges and visual pairs by a localizer's confidence, so that merged, a kind whose
            scores are higher throughout gets the higher weights.

    Returns:
        Weights (float32, one a score, in order) and the statistics before and after (population sd).

    Raises:
        InputError: no scores, a score that is missing or not in [0, 1], an unknown method, or not one group a score.
    """
    if method not in METHODS:
        raise InputError(f"The weight method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    unscored = np.array([score is None for score in scores], dtype=bool)
    if values.size == 0:
        raise InputError("There is no score to normalise: every pair was rejected.")
    if unscored.any() and method != "none":
        raise InputError(
            f"Clinical relevance: {unscored.sum()} of {values.size} pairs have no score to weigh by. Have them judged, "
            "or give the weight method none."
        )
    if not np.all(right := unscored | (values >= 0) & (values <= 1)):
        wrong = values[~right][0]
        raise InputError(f"A clinical relevance score is {wrong}; scores must lie in [0, 1].")
    if groups is None:
        weights = _weigh(values, method)
        return weights.astype(np.float32), _statistics(method, values, weights)
    if len(groups) != values.size:
        raise InputError(f"There are {values.size} scores and {len(groups)} groups; give one group a score.")
    weights, by_kind = np.empty_like(values), {}
    for kind in sorted(set(groups)):
        members = np.array([group == kind for group in groups])
        weights[members] = _weigh(values[members], method)
        by_kind[kind] = _statistics(method, values[members], weights[members])
    return weights.astype(np.float32), _statistics(method, values, weights, by_kind)


def _weigh(scores: np.ndarray, method: str) -> np.ndarray:
    if method == "rescale":
        # A spread of a few rounding errors is no spread.
        spread = (scores - scores.mean()) / scores.std() if scores.std() > 1e-9 else np.zeros_like(scores)
        return np.clip(MEAN + np.sqrt(VARIANCE) * spread, LOW, HIGH)
    if method == "literal":
        return np.clip((scores - MEAN) / np.sqrt(VARIANCE), LOW, HIGH)
    return scores if method == "raw" else np.ones_like(scores)


def _statistics(
    method: str, scores: np.ndarray, weights: np.ndarray, by_kind: Mapping[str, Normalization] | None = None
) -> Normalization:
    clipped, known = method in ("rescale", "literal"), scores[~np.isnan(scores)]
    return Normalization(
        method, scores.size, scores.size - known.size, float(known.mean()) if known.size else None,
        float(known.std()) if known.size else None, float(weights.mean()), float(weights.std()),
        LOW if clipped else None, HIGH if clipped else None,
        float(np.mean(weights == LOW)) if clipped else 0.0, float(np.mean(weights == HIGH)) if clipped else 0.0,
        by_kind or {},
    )  # fmt: skip
