"""Errors of reports by clinical severity, found by judges (chat models), and a score in [0, 1] made of them.

Kinds of error are those of ReXVal (Yu et al. 2023), severities and their weights those of CRIMSON (arXiv 2603.06183).
The score has GREEN's form (Ostmeier et al. 2024), weighted: M / (M + E), with M and E the summed weights of matched
findings and of errors. It is neither GREEN nor CRIMSON: compare it with values of the same prompt and judges only.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from mmedpo.evaluation.metrics.base import Metric
from mmedpo.evaluation.metrics.base import mean as ratio

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

PROMPT = "severity@1"
WEIGHTS = {"urgent": 1.0, "actionable": 0.5, "minor": 0.25}  # CRIMSON's
KINDS = ("omission", "invention", "location", "degree", "omitted_comparison", "invented_comparison")
COUNTED = {"urgent": "severity", "actionable": "severity", "minor": "severity", "omission": "kind", "invention": "kind"}
KEY = "severity"  # in scores.jsonl: "score", and errors by `COUNTED`; means over the judges
QUOTES = ("reference_quote", "candidate_quote")
LONGEST = 300  # characters of a finding or quote
MOST = 30  # entries of a list

_TEXT = {"type": "string", "maxLength": LONGEST}
_SEVERITY = {"type": "string", "enum": list(WEIGHTS)}


def _list_of(properties: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    return {"type": "array", "maxItems": MOST, "items": item}


_LISTS = {
    "matched": _list_of({"finding": _TEXT, "severity": _SEVERITY}),
    "errors": _list_of({
        "kind": {"type": "string", "enum": list(KINDS)}, "severity": _SEVERITY, "finding": _TEXT,
        **dict.fromkeys(QUOTES, _TEXT),
    }),
}  # fmt: skip
SCHEMA = {"type": "object", "properties": _LISTS, "required": [*_LISTS], "additionalProperties": False}

Found = dict[str, list[dict[str, Any]]]  # "matched" and "errors"
log = logging.getLogger(__name__)


def score_all(
    ids: Sequence[str], predictions: Sequence[str], references: Sequence[str], judges: Judges
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Let judges compare n pairs of reports.

    An empty prediction scores 0 and is not asked about. A pair that no judge's reply could be read for has no score.

    Returns:
        n of {KEY: {"score", "urgent", ...}} for scores.jsonl; and all errors, each with its "id" and "judge".
    """
    from mmedpo.evaluation.asking import quoted

    items = [
        {"reference": gold, "candidate": said, "case": quoted(reference_report=gold, candidate_report=said)}
        for said, gold in zip(predictions, references, strict=True)
    ]
    asked = [item for item in items if item["candidate"].strip()]
    replies = {name: iter(own) for name, own in judges.ask(PROMPT, SCHEMA, asked, read).items()}
    lines, errors = [], []
    for id_, item in zip(ids, items, strict=True):
        judged = {name: next(own) for name, own in replies.items()} if item["candidate"].strip() else {}
        found = {name: one.found for name, one in judged.items() if one.found is not None}
        lines.append({KEY: _means(list(found.values())) if judged else {"score": 0.0}})
        errors += [{"id": id_, "judge": name, **error} for name, own in found.items() for error in own["errors"]]
    if said := unjudged(lines):
        log.warning("Severity: %s", said)
    return lines, errors


def unjudged(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence on the lines of scores.jsonl whose report no judge's reply could be read for; "" for none."""
    scores = [line[KEY]["score"] for line in lines if KEY in line]
    lacking = sum(score is None for score in scores)
    return f"{lacking} of {len(scores)} reports have no readable judgement, and no score" if lacking else ""


def definition(judges: Sequence[str]) -> str:
    """Return the name of the score: its prompt, version and judges, whose order does not matter."""
    return f"{PROMPT} by {', '.join(sorted(judges))}"


def read(item: Mapping[str, Any], answer: Mapping[str, Any]) -> Found:
    """Return the findings and errors of a reply; `quoted` tells whether an error's quotes occur in the reports.

    Raises:
        ValueError: a list is missing, or an entry is not of the schema.
    """
    found = {}
    for name, schema in _LISTS.items():
        if not isinstance(answer.get(name), list):
            raise ValueError(f"{name} is not a list")
        found[name] = [_entry(one, schema["items"]["properties"], name) for one in answer[name]]
    for error in found["errors"]:
        sides = zip(QUOTES, (item["reference"], item["candidate"]), strict=True)
        error["quoted"] = any(error[quote] for quote in QUOTES) and all(
            _plain(error[quote]) in _plain(text) for quote, text in sides
        )
    return found


def _entry(entry: Any, properties: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{name} holds {entry!r:.40}")
    for key, kind in properties.items():
        value = entry.get(key)
        if not isinstance(value, str) or ("enum" in kind and value not in kind["enum"]):
            raise ValueError(f"{key} is {value!r:.40}")
    # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
    return {key: entry[key][:LONGEST].encode("utf-8", "replace").decode() for key in properties}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .")


def score(found: Found) -> float:
    """Return M / (M + E) in [0, 1]: 1 without errors, 0 where nothing is matched beside errors."""
    right, wrong = (sum(WEIGHTS[one["severity"]] for one in found[name]) for name in ("matched", "errors"))
    return right / (right + wrong) if wrong else 1.0


def _means(found: Sequence[Found]) -> dict[str, Any]:
    """Return score and error counts, as means over the judges; {"score": None} for none."""
    if not found:
        return {"score": None}
    counts = [Counter(error[side] for error in one["errors"] for side in ("severity", "kind")) for one in found]
    return {"score": mean(map(score, found))} | {name: mean(one[name] for one in counts) for name in COUNTED}


def _statistics(key: str, scores: Mapping[str, Any]) -> tuple[float, float]:
    value = scores[KEY].get(key)
    return (0.0, 0.0) if value is None else (value, 1.0)


METRICS = tuple(
    Metric(name, lambda scores: KEY in scores, partial(_statistics, key), ratio)
    for key, name in [("score", "severity_score"), *((one, f"severity_{one}_errors") for one in COUNTED)]
)
