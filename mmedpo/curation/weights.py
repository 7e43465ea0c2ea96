"""From clinical relevance scores to the weights that multiply the loss (the paper's section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmedpo.errors import InputError

METHODS = ("rescale", "literal", "raw", "none")
MEAN, VARIANCE, LOW, HIGH = 1.0, 0.1, 0.75, 1.25


@dataclass(frozen=True)
class Normalization:
    """How scores became weights: what a reader needs to judge whether the weighting did anything."""

    method: str
    count: int
    mean_before: float
    sd_before: float
    mean_after: float
    sd_after: float
    low: float | None
    high: float | None
    share_at_low: float
    share_at_high: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def normalize(scores: Sequence[float], method: str = "rescale") -> tuple[np.ndarray, Normalization]:
    """Turn clinical relevance scores in [0, 1] into weights, once over a whole dataset.

    Methods:
        rescale: to mean 1 and variance 0.1, then clipped to [0.75, 1.25]: the reading of the paper that weights
            anything (scores that are all equal become 1).
        literal: (score - 1) / sqrt(0.1), then clipped, as the paper's text reads: every score up to 1 becomes 0.75.
        raw: the score itself, as the authors' released code has it.
        none: 1, which is plain DPO.

    Returns:
        Weights (float32, one a score) and the statistics before and after (population sd).

    Raises:
        InputError: no scores, a score that is not in [0, 1], or an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"The weight method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        raise InputError("There is no score to normalise: every pair was rejected.")
    if not np.all((values >= 0) & (values <= 1)):
        wrong = values[~((values >= 0) & (values <= 1))][0]
        raise InputError(f"A clinical relevance score is {wrong}; scores must lie in [0, 1].")
    sd = values.std()
    clipped = method in ("rescale", "literal")
    if method == "rescale":
        # A spread of a few rounding errors is no spread.
        spread = (values - values.mean()) / sd if sd > 1e-9 else np.zeros_like(values)
        weights = np.clip(MEAN + np.sqrt(VARIANCE) * spread, LOW, HIGH)
    elif method == "literal":
        weights = np.clip((values - MEAN) / np.sqrt(VARIANCE), LOW, HIGH)
    else:
        weights = values if method == "raw" else np.ones_like(values)
    return weights.astype(np.float32), Normalization(
        method, values.size, float(values.mean()), float(sd), float(weights.mean()), float(weights.std()),
        LOW if clipped else None, HIGH if clipped else None,
        float(np.mean(weights == LOW)) if clipped else 0.0, float(np.mean(weights == HIGH)) if clipped else 0.0,
    )  # fmt: skip
