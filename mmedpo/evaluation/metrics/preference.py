"""Preference accuracy and margin: the model's log-probabilities of chosen against rejected responses.

Log-probabilities are in nats, summed over the tokens of a response (`likelihood.answer_logps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import require_known, require_lists
from mmedpo.evaluation.metrics.base import Metric, Scores, mean_of, values
from mmedpo.schema import DISPREFERENCES

DEFINITIONS = {"log_likelihood": "log_likelihood@1", "implicit_reward": "implicit_reward@1"}
PROTOCOLS = tuple(DEFINITIONS)
BETA = 0.1  # of the MMedPO paper
BANDS = ("below_0.9", "0.9_to_1.1", "above_1.1")  # of weights, which the default method clips to [0.75, 1.25]
ROUNDING = 1e-3  # nats by which rounding may lift a log-probability above 0
LOGPS = ("chosen_logps", "rejected_logps")
REFERENCE_LOGPS = tuple(f"reference_{name}" for name in LOGPS)


def band(weight: float) -> str:
    """Return the one of `BANDS` that a weight lies in; 0.9 and 1.1 are in the middle band."""
    return BANDS[0] if weight < 0.9 else BANDS[1] if weight <= 1.1 else BANDS[2]


def score(columns: Mapping[str, Any], protocol: str = "log_likelihood", beta: float = BETA) -> dict[str, Any]:
    """Return the scores of one pair: "margin", "correct", "tie"; "dispreference", "weight", "weight_band" if given.

    "correct" is 1.0 for a margin above 0, else 0.0; "tie" is 1.0 for a margin of 0, which is not correct.

    Raises:
        InputError: as `compute`.
    """
    given = {name: [value] for name, value in columns.items()}
    _require(given, protocol, beta)
    return _scores(given, protocol, beta)[0]


def compute(
    columns: Mapping[str, Sequence[Any]],
    protocol: str = "log_likelihood",
    beta: float = BETA,
    return_scores: bool = False,
) -> dict[str, Any]:
    """Return the metrics of n pairs, as described in `aggregate`.

    Args:
        columns: "chosen_logps" and "rejected_logps", n log-probabilities under the model, at most 0. `implicit_reward`
            also needs "reference_chosen_logps" and "reference_rejected_logps", under the reference model. Optional are
            "dispreference", n names of `schema.DISPREFERENCES`, and "weight", n weights of 0 or more.
        protocol: definition of a pair's margin: `log_likelihood`, chosen - rejected in nats; or `implicit_reward`, the
            difference of TRL's rewards beta * (log-probability - reference log-probability).
        beta: factor of the rewards.
        return_scores: add "scores", the n `score` results.

    Raises:
        InputError: an unknown protocol; columns missing, surplus, or of different length; entries that are not finite
            numbers, positive log-probabilities, negative weights, unknown kinds (all are listed).
    """
    _require(columns, protocol, beta)
    scores = _scores(columns, protocol, beta)
    return aggregate(scores, protocol) | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "log_likelihood") -> tuple[Metric, ...]:
    """Return the metrics of `score` results: over all pairs, by kind of pair and by band of weights."""
    require_known("protocol", protocol, PROTOCOLS)
    return tuple(
        metric
        for name, about in _parts().items()
        for metric in (
            mean_of("correct", f"preference_accuracy{name}", about),
            mean_of("margin", f"preference_margin{name}", about),
        )
    )


def aggregate(scores: Sequence[Scores], protocol: str = "log_likelihood") -> dict[str, Any]:
    """Return the values of `score` results; metrics about no pair are absent.

    Returns:
        preference_accuracy (share of pairs with a positive margin, [0, 1]), preference_margin (mean), n_pairs, n_ties;
        the same with the suffixes `_KIND` and `_weight_BAND`; preference_definition.
    """
    found: dict[str, Any] = values(metrics(protocol), scores)
    for name, about in _parts().items():
        ties = [sample["tie"] for sample in scores if about(sample)]
        if ties or not name:
            found |= {f"n_pairs{name}": len(ties), f"n_ties{name}": int(sum(ties))}
    return found | {"preference_definition": DEFINITIONS[protocol]}


def _parts() -> dict[str, Callable[[Scores], bool]]:
    """Return suffix of a metric's name -> function that is True for the pairs it is about."""
    parts: dict[str, Callable[[Scores], bool]] = {"": _is_pair}
    parts |= {f"_{kind}": partial(_is, "dispreference", kind) for kind in DISPREFERENCES}
    return parts | {f"_weight_{name}": partial(_is, "weight_band", name) for name in BANDS}


def _is_pair(scores: Scores) -> bool:
    return "margin" in scores


def _is(key: str, value: str, scores: Scores) -> bool:
    return scores.get(key) == value


def _scores(columns: Mapping[str, Sequence[Any]], protocol: str, beta: float) -> list[dict[str, Any]]:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [_score(row, protocol, beta) for row in rows]


def _score(row: dict[str, Any], protocol: str, beta: float) -> dict[str, Any]:
    chosen, rejected = (row[name] for name in LOGPS)
    if protocol == "implicit_reward":
        chosen, rejected = (beta * (row[name] - row[f"reference_{name}"]) for name in LOGPS)
    margin = float(chosen - rejected)
    kept = {name: value for name, value in row.items() if name in ("dispreference", "weight")}
    bands = {"weight_band": band(row["weight"])} if "weight" in row else {}
    return {"margin": margin, "correct": float(margin > 0), "tie": float(margin == 0), **kept, **bands}


def _require(columns: Mapping[str, Sequence[Any]], protocol: str, beta: float) -> None:
    require_known("protocol", protocol, PROTOCOLS)
    needed = (*LOGPS, *REFERENCE_LOGPS) if protocol == "implicit_reward" else LOGPS
    missing = [name for name in needed if name not in columns]
    surplus = [name for name in columns if name not in (*needed, "dispreference", "weight")]
    if missing or surplus:
        raise InputError(
            f"Protocol {protocol!r} takes the columns {', '.join(needed)}, optionally dispreference and weight; "
            f"missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(surplus) or 'none'}."
        )
    if not 0 < beta < math.inf:
        raise InputError(f"beta is {beta}; it scales rewards and must be above 0.")
    require_lists(columns)
    checks = {"dispreference": _kind_fault, "weight": _weight_fault}
    faults = [
        Fault(f"index {i}", name, sentence, repr(value))
        for name, column in columns.items()
        for i, value in enumerate(column)
        if (sentence := checks.get(name, logp_fault)(value))
    ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'entries')} cannot be used:", faults)


def is_number(value: Any) -> bool:
    """Return True for a finite number; booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def logp_fault(value: Any) -> str | None:
    """Return the fault of a log-probability, or None."""
    if not is_number(value):
        return "is not a finite number; leave the sample out, or compute it in float32"
    return "is above 0, the most that a log-probability can be; check its sign" if value > ROUNDING else None


def _weight_fault(value: Any) -> str | None:
    return None if is_number(value) and value >= 0 else "must be a number of at least 0"


def _kind_fault(value: Any) -> str | None:
    return None if value in DISPREFERENCES else f"is unknown; choose one of: {', '.join(DISPREFERENCES)}"
