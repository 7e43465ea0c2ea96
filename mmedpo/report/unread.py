"""Closed answers that could not be read: sentences and table for terminal, tables, page and cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.report.wording import GROUPINGS, amount, change, counted, interval, percent, points, run_name, span

KINDS = {
    "both": "names both of the possible answers",
    "neither": "names none of them",
    "refused": "declines to answer",
    "empty": "has no words",
}


def shares(metrics: Mapping[str, Any]) -> str | None:
    """Return a sentence on the unread answers of one run, from the metrics of results.json; None where not counted."""
    counts = {kind: metrics[f"n_closed_{kind}"] for kind in KINDS if f"n_closed_{kind}" in metrics}
    n = metrics.get("n_closed")
    if not counts or not n:
        return None
    kinds = ", ".join(f"{kind} {percent(count / n)}" for kind, count in counts.items())
    return (
        f"{percent(sum(counts.values()) / n)} of the answers to {number_of(n, 'closed questions')} could not be read, "
        f"and count as wrong ({kinds})."
    )


def meaning(comparison: Mapping[str, Any]) -> str:
    """Return what an unread answer is, by the kinds that the comparison tells apart."""
    kinds = "; ".join(f"{kind}: it {said}" for kind, said in KINDS.items() if kind in comparison["unread"]["shares"])
    return f"A closed answer in which no single yes, no or choice could be read counts as wrong ({kinds})."


def warnings(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each run whose closed answers could be read more or less often than the baseline's."""
    base, found = comparison["baseline"], comparison.get("unread") or {"differing": ()}
    return [
        f"Of the closed answers of {run_name(run)} {percent(found['shares']['unread'][run]['value'])} could not be "
        f"read, of those of {run_name(base)} {percent(found['shares']['unread'][base]['value'])}. Unread answers count "
        "as wrong, so that style alone may change the score: see “How closed answers were read”."
        for run in found["differing"]
    ]


def gains(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each run on the part of unread answers in its difference of closed accuracy."""
    base, found, said = comparison["baseline"], comparison.get("unread") or {"gain": {}}, []
    for run, gain in found["gain"].items():
        parts = [
            f"{_with_ends(gain[part])} from answers that could not be read in {run_name(name)}"
            for part, name in {"unread_before": base, "unread_now": run}.items()
            if found["shares"]["unread"][name]["value"]
        ]
        if not parts:
            continue
        whole, read = comparison["metrics"]["closed_accuracy"][run]["difference"], gain["read_in_both"]
        of = f"{_with_ends(read)} from the {number_of(read['questions'], 'questions')} whose answers were read in both"
        shown = ", which shows no difference" if read["low"] <= 0 <= read["high"] else ""
        parts.append(of + shown if read["questions"] else "no question had answers that were read in both")
        said.append(
            f"Of the {points(whole)} points of closed accuracy from {run_name(base)} to {run_name(run)}, "
            f"{', '.join(parts[:-1])}, and {parts[-1]}.".replace(" from answers", " come from answers", 1)
        )
    return said


def table(comparison: Mapping[str, Any], column: str | None = None) -> tuple[str, list[list[str]], str] | None:
    """Return title, rows (headings first) and note of the table of unread answers; None where they are not known.

    A row is a run, or a group of the grouping `column` and a run.
    """
    if "unread" not in comparison:
        return None
    known = comparison["unread"]
    headings = ["run", "right", "could not be read", "change", *(kind for kind in KINDS if kind in known["shares"])]
    title, note = "How closed answers were read", meaning(comparison)
    if column is None:
        rows = [headings, *_rows(comparison, comparison)]
        return f"{title} ({counted(known['n'])})", rows, " ".join([note, *gains(comparison)])
    by = GROUPINGS.get(column, column)
    rows = [
        [f"{group} ({counted(found['unread']['n'])})", *row]
        for group, found in comparison["groups"][column].items()
        if "unread" in found
        for row in _rows(comparison, found)
    ]
    return (f"{title}, by {by}", [[by, *headings], *rows], note) if rows else None


def _rows(comparison: Mapping[str, Any], found: Mapping[str, Any]) -> list[list[str]]:
    rows, shares = [], found["unread"]["shares"]
    for run in comparison["runs"]:
        cell, right = shares["unread"][run], found["metrics"]["closed_accuracy"][run]["value"]
        value = amount("unread", cell["value"]) + (f" [{ends}]" if (ends := span("unread", cell)) else "")
        moved = f"{change('unread', cell['difference'])} {interval('unread', cell)}" if "difference" in cell else ""
        kinds = [percent(shares[kind][run]["value"]) for kind in KINDS if kind in shares]
        rows.append([run, percent(right), value, moved, *kinds])
    return rows


def _with_ends(cell: Mapping[str, Any]) -> str:
    return f"{points(cell['value'])} [{points(cell['low'])}, {points(cell['high'])}]"
