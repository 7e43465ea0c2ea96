"""Visual reliance: the fall of accuracy and likelihood when the image is noised, blanked or swapped.

Each question is asked on the original image ("original"), with noise in its lesion ("lesion_noise"), on its mean colour
("blank") and on another patient's image ("swapped").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import require_known, require_lists
from mmedpo.evaluation.metrics.base import Metric, Scores, mean_of, values
from mmedpo.evaluation.metrics.preference import logp_fault

DEFINITIONS = {"strict": "strict@2"}  # med_vqa protocol that decides correctness -> definition
PROTOCOLS = tuple(DEFINITIONS)
VIEWS = ("original", "lesion_noise", "blank", "swapped")
CHANGED = VIEWS[1:]
CORRECT = tuple(f"correct_{view}" for view in VIEWS)
LOGPS = tuple(f"logps_{view}" for view in VIEWS)
COLUMNS = (*CORRECT, *LOGPS)


def score(columns: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of one question.

    Returns:
        `COLUMNS`, "drop_correct_VIEW" and "drop_logps_VIEW" (original minus view), and "correct" (on the original).
        Where correctness is None, as for reports, keys about it are absent.

    Raises:
        InputError: as `compute`.
    """
    given = {name: [value] for name, value in columns.items()}
    _require(given)
    return _scores(given)[0]


def compute(
    columns: Mapping[str, Sequence[Any]], protocol: str = "strict", return_scores: bool = False
) -> dict[str, Any]:
    """Return the metrics of n questions, as described in `aggregate`.

    Args:
        columns: for each VIEW "correct_VIEW", n of 0, 1 or, for a report, None; and "logps_VIEW", n log-probabilities
            of the gold answer in nats, summed over its tokens, at most 0. Where no lesion is marked, both are None of
            "lesion_noise" alone.
        protocol: protocol of the correctness, "strict".
        return_scores: add "scores", the n `score` results.

    Raises:
        InputError: an unknown protocol; columns missing, surplus or of different length; correctness other than 0 and
            1, or for some views of a question only; invalid log-probabilities (all are listed).
    """
    require_known("protocol", protocol, PROTOCOLS)
    _require(columns)
    scores = _scores(columns)
    return aggregate(scores, protocol) | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "strict") -> tuple[Metric, ...]:
    """Return the metrics of `score` results: a mean for each view, and the mean fall for each changed view."""
    require_known("protocol", protocol, PROTOCOLS)
    return (
        *(mean_of(f"correct_{view}", f"accuracy_{view}") for view in VIEWS),
        *(mean_of(f"drop_correct_{view}", f"accuracy_drop_{view}") for view in CHANGED),
        *(mean_of(f"logps_{view}") for view in VIEWS),
        *(mean_of(f"drop_logps_{view}", f"logps_drop_{view}") for view in CHANGED),
    )


def aggregate(scores: Sequence[Scores], protocol: str = "strict") -> dict[str, Any]:
    """Return means of `score` results; means over no question are absent.

    Returns:
        accuracy_VIEW in [0, 1] and logps_VIEW (mean log-probability of the gold answer, at most 0) of each view;
        accuracy_drop_VIEW in [-1, 1] and logps_drop_VIEW of each changed view, 0 for a model that ignores the image;
        n_samples, n_answers (those with correctness), n_lesion_noise (those with that view, where others lack it);
        visual_reliance_definition.
    """
    noised = sum("logps_lesion_noise" in sample for sample in scores)
    return values(metrics(protocol), scores) | {
        "n_samples": len(scores),
        "n_answers": sum("correct" in sample for sample in scores),
        **({"n_lesion_noise": noised} if noised < len(scores) else {}),
        "visual_reliance_definition": DEFINITIONS[protocol],
    }


def _scores(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, float]]:
    rows = (dict(zip(COLUMNS, row, strict=True)) for row in zip(*(columns[name] for name in COLUMNS), strict=True))
    return [_score({name: float(value) for name, value in row.items() if value is not None}) for row in rows]


def _score(known: dict[str, float]) -> dict[str, float]:
    drops = {
        f"drop_{kind}_{view}": known[f"{kind}_original"] - known[f"{kind}_{view}"]
        for kind in ("correct", "logps")
        for view in CHANGED
        if f"{kind}_{view}" in known
    }
    return known | drops | ({"correct": known["correct_original"]} if "correct_original" in known else {})


def _require(columns: Mapping[str, Sequence[Any]]) -> None:
    if set(columns) != set(COLUMNS):
        lacking = ", ".join(name for name in COLUMNS if name not in columns) or "none"
        surplus = ", ".join(name for name in columns if name not in COLUMNS) or "none"
        raise InputError(f"The columns are {', '.join(COLUMNS)}; missing: {lacking}; unknown: {surplus}.")
    require_lists(columns)
    faults = [
        Fault(f"index {i}", name, sentence, repr(value))
        for name in COLUMNS
        for i, value in enumerate(columns[name])
        if not (name == "logps_lesion_noise" and value is None)
        and (sentence := logp_fault(value) if name in LOGPS else _correct_fault(value))
    ]
    rows = zip(zip(*(columns[name] for name in CORRECT), strict=True), columns["logps_lesion_noise"], strict=True)
    faults += [
        Fault(f"index {i}", "correct_*", "is known for some views only; give all four, or None in all")
        for i, (correct, noised) in enumerate(rows)
        if len({value is not None for value in _shown(correct, noised)}) > 1
    ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'entries')} cannot be used:", faults)


def _shown(correct: Sequence[Any], noised: Any) -> Sequence[Any]:
    """Return the correctness of the views that were shown."""
    return correct if noised is not None or correct[1] is not None else (correct[0], *correct[2:])


def _correct_fault(value: Any) -> str | None:
    return None if value is None or value in (0, 1) else "must be 1 or 0, or None for a report"
