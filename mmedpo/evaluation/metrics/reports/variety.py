"""Number of distinct reports of a model beside that of the references, since one template can have a high BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.evaluation.metrics.base import Scores

REPORTS = 20  # least number of reports for a warning
FEW = 0.1  # a warning below this ratio of distinct predictions to distinct references
TEMPLATES = "are templates: their BLEU, ROUGE and METEOR say little about the images"
MANY = 0.5  # a warning above this share of one report, if it is also twice the references' share


def keys(prediction: Sequence[str], reference: Sequence[str]) -> dict[str, str]:
    """Return a key of each report, equal for the same words."""
    return {"prediction_key": _key(prediction), "reference_key": _key(reference)}


def counts(scores: Sequence[Scores]) -> dict[str, Any]:
    """Return n_distinct, most_frequent_share, n_distinct_references, most_frequent_reference_share of n > 0 reports."""
    said, gold = (Counter(score[side] for score in scores) for side in ("prediction_key", "reference_key"))
    return {
        "n_distinct": len(said),
        "most_frequent_share": max(said.values()) / len(scores),
        "n_distinct_references": len(gold),
        "most_frequent_reference_share": max(gold.values()) / len(scores),
    }


def described(metrics: Mapping[str, Any]) -> str | None:
    """Return `counts` in words, from the metrics of results.json; None where they are not known."""
    if "n_distinct" not in metrics:
        return None
    shares = [f"{100 * metrics[f'most_frequent_{which}']:.1f} %" for which in ("share", "reference_share")]
    found = (
        f"{number_of(metrics['n_distinct'], 'distinct reports')} in {metrics['n_report']:,} (the references: "
        f"{metrics['n_distinct_references']:,}); the most frequent is {shares[0]} of them ({shares[1]})"
    )
    return f"{found}. Reports that repeat so much {TEMPLATES}" if are_few(metrics) else found


def compared(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str | None:
    """Return `counts` of several runs on the same questions in words, by name; None where none has too few."""
    known = [(name, metrics) for name, metrics in runs if "n_distinct" in metrics]
    few = [repr(name) for name, metrics in known if are_few(metrics)]
    if not few:
        return None
    _, first = known[0]
    counted = [("the references", first["n_distinct_references"], first["most_frequent_reference_share"])]
    counted += [(repr(name), metrics["n_distinct"], metrics["most_frequent_share"]) for name, metrics in known]
    each = ", ".join(f"{name} {distinct:,} ({100 * share:.1f} %)" for name, distinct, share in counted)
    return (
        f"Distinct reports in {first['n_report']:,}, and the share of the most frequent one: {each}. "
        f"Those of {', '.join(few)} {TEMPLATES}"
    )


def are_few(metrics: Mapping[str, Any]) -> bool:
    """Return True where at least `REPORTS` reports are much less varied than their references.

    That is: fewer than a tenth of the references' distinct reports, or one report for more than half of the images and
    for twice as many as the references' most frequent one.
    """
    if metrics.get("n_report", 0) < REPORTS or "n_distinct" not in metrics:
        return False
    return bool(
        metrics["n_distinct"] < FEW * metrics["n_distinct_references"]
        or metrics["most_frequent_share"] > max(MANY, 2 * metrics["most_frequent_reference_share"])
    )


def _key(words: Sequence[str]) -> str:
    return blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
