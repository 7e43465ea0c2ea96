"""Turn clinical relevance scores into the weights that multiply the loss (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mmedpo.errors import InputError

METHODS = ("rescale", "literal", "raw", "none")
OVER = ("kind", "merged")
MEAN, VARIANCE, LOW, HIGH = 1.0, 0.1, 0.75, 1.25
NO_SPREAD = 1e-9  # standard deviation of equal scores, rounding errors included
MOSTLY = 0.5  # share of weights at the clip limits that gives a note


@dataclass(frozen=True)
class Normalization:
    """Statistics of a normalisation, from which a reader can judge its effect.

    Attributes:
        count, unscored: all pairs, and those without a score.
        mean_before, sd_before: of the scores; None if there are none.
        mean_after, sd_after: of the weights.
        low, high: clip limits; None if the method does not clip.
        share_at_low, share_at_high: shares of the weights at the limits.
        merged_by_clip: different scores have the same weight at a limit.
        over: what "rescale" normalised.
        by_kind: the same for each kind of pair, if kinds were given.
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
    merged_by_clip: bool = False
    over: str = "merged"
    by_kind: Mapping[str, Normalization] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return the numbers, `over`, the numbers of each kind (`by_kind`) and `notes`, as JSON."""
        kinds = {kind: found._numbers() for kind, found in self.by_kind.items()}
        return {**self._numbers(), "over": self.over, "by_kind": kinds, "notes": self.notes()}

    def _numbers(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("over", "by_kind")}

    def notes(self) -> list[str]:
        """Return notes on weights without effect: no scores, equal scores, or most weights at a clip limit."""
        parts = self.by_kind or {"all pairs": self}
        found = [note for kind, part in parts.items() for note in part._notes(kind, alone=len(parts) == 1)]
        if self.unscored:
            scored = f"for {self.unscored:,} of {self.count:,} pairs"
            found.append(f"No clinical relevance was scored {scored}: every weight is 1, which is plain DPO.")
        if self.method == "rescale" and len(parts) > 1 and all(part._is_flat for part in parts.values()):
            found.append("No score differs within its kind: every weight is 1, which is plain DPO.")
        return found

    @property
    def _is_flat(self) -> bool:
        return self.sd_before is not None and self.sd_before <= NO_SPREAD

    def _notes(self, kind: str, alone: bool) -> Iterator[str]:
        if self._is_flat and self.method != "none":
            scores = f"all {self.count} scores are" if self.count > 1 else "its only score is"
            weight = {"rescale": "1", "literal": f"{LOW}", "raw": "that score"}[self.method]
            apart = " (normalised apart from the other kinds)" if self.method == "rescale" and not alone else ""
            plain = ", which is plain DPO" if self.method == "rescale" and alone else ""
            yield f"{kind}: {scores} {self.mean_before:.3g}, so each weight is {weight}{apart}{plain}."
        elif self.share_at_low + self.share_at_high > MOSTLY:
            merged = "; among them, scores that differ weigh the same" * self.merged_by_clip
            yield (
                f"{kind}: {100 * (self.share_at_low + self.share_at_high):.0f} % of the weights lie at a clip limit "
                f"({100 * self.share_at_low:.0f} % at {self.low}, {100 * self.share_at_high:.0f} % at {self.high})"
                f"{merged}."
            )


def normalize(
    scores: Sequence[float | None], method: str = "rescale", groups: Sequence[str] | None = None, over: str = "kind"
) -> tuple[np.ndarray, Normalization]:
    """Turn clinical relevance scores in [0, 1] into weights, over a whole dataset.

    Methods:
        rescale: to mean 1 and variance 0.1, then clipped to [0.75, 1.25]; equal scores become 1.
        literal: (score - 1) / sqrt(0.1), then clipped, as the paper's text reads: every score up to 1 becomes 0.75.
        raw: the score itself, as in the authors' released code.
        none: 1, which is plain DPO; pairs need no score (None).

    Args:
        scores: clinical relevance of each pair, or None.
        groups: the kind of each pair; None if all are of one kind.
        over: unit of "rescale": each "kind" alone, or all pairs at once ("merged"), which gives the kind with higher
            scores higher weights. A kind with equal scores is always normalised apart.

    Returns:
        Weights (float32, one per score, in order) and the statistics before and after (population sd).

    Raises:
        InputError: there are no scores, a score is missing or not in [0, 1], the method is unknown, or `groups` does
            not match.
    """
    values = _checked(scores, method, over)
    if groups is not None and len(groups) != values.size:
        raise InputError(f"There are {values.size} scores and {len(groups)} groups; give one group a score.")
    kinds = np.array([""] * values.size if groups is None else groups, dtype=object)
    weights = np.empty_like(values)
    for members in _together(values, kinds, over):
        weights[members] = _weigh(values[members], method)
    by_kind = {} if groups is None else {
        kind: _statistics(method, values[kinds == kind], weights[kinds == kind]) for kind in sorted(set(groups))
    }  # fmt: skip
    found = _statistics(method, values, weights)
    return weights.astype(np.float32), replace(found, over="merged" if groups is None else over, by_kind=by_kind)


def _checked(scores: Sequence[float | None], method: str, over: str) -> np.ndarray:
    """Return the scores as float64, NaN for None; raise as `normalize`."""
    for name, known, given in (("method", METHODS, method), ("range", OVER, over)):
        if given not in known:
            raise InputError(f"The weight {name} {given!r} is unknown; use one of {', '.join(known)}.")
    values = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    unscored = np.array([score is None for score in scores], dtype=bool)
    if values.size == 0:
        raise InputError("No scores to normalise: every pair was rejected.")
    if unscored.any() and method != "none":
        raise InputError(
            f"Clinical relevance: {unscored.sum()} of {values.size} pairs have no score. Score them, "
            "or give the weight method none."
        )
    if not np.all(right := unscored | (values >= 0) & (values <= 1)):
        raise InputError(f"A clinical relevance score is {values[~right][0]}; scores must lie in [0, 1].")
    return values


def _together(scores: np.ndarray, kinds: np.ndarray, over: str) -> Iterator[np.ndarray]:
    """Yield masks of the scores that are normalised together."""
    shared = np.zeros(scores.size, dtype=bool)
    for kind in set(kinds):
        members = kinds == kind
        if over == "kind" or scores[members].std() <= NO_SPREAD:
            yield members
        else:
            shared |= members
    if shared.any():
        yield shared


def _weigh(scores: np.ndarray, method: str) -> np.ndarray:
    if method == "rescale":
        spread = (scores - scores.mean()) / scores.std() if scores.std() > NO_SPREAD else np.zeros_like(scores)
        return np.clip(MEAN + np.sqrt(VARIANCE) * spread, LOW, HIGH)
    if method == "literal":
        return np.clip((scores - MEAN) / np.sqrt(VARIANCE), LOW, HIGH)
    return scores if method == "raw" else np.ones_like(scores)


def _statistics(method: str, scores: np.ndarray, weights: np.ndarray) -> Normalization:
    clipped, known = method in ("rescale", "literal"), scores[~np.isnan(scores)]
    at_limits = [scores[weights == limit] for limit in (LOW, HIGH)] if clipped else []
    return Normalization(
        method, scores.size, scores.size - known.size, float(known.mean()) if known.size else None,
        float(known.std()) if known.size else None, float(weights.mean()), float(weights.std()),
        LOW if clipped else None, HIGH if clipped else None,
        float(np.mean(weights == LOW)) if clipped else 0.0, float(np.mean(weights == HIGH)) if clipped else 0.0,
        any(alike.size > 0 and bool(np.ptp(alike) > NO_SPREAD) for alike in at_limits),
    )  # fmt: skip
