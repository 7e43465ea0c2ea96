"""How answers were read: sentences and tables for terminal, files, page and cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedpo.data.text import number_of
from mmedpo.report.wording import GROUPINGS, amount, change, counted, interval, percent, points, run_name, span

Table = tuple[str, list[list[str]], list[str]]  # title, rows with the headings first, sentences

UNREAD = {
    "both": "names several of the possible answers",
    "neither": "names none of them",
    "refused": "declines to answer",
    "empty": "has no words",
}
KINDS = {"closed": "closed answers", "choice": "multiple-choice answers", "open": "open answers"}
ACCURACY = {"closed": "closed_accuracy", "choice": "choice_accuracy", "open": "open_exact_match"}
SIDE = "An answer on the wrong side names another side than the gold answer (left for right), and scores 0."


def shares(metrics: Mapping[str, Any]) -> list[str]:
    """Return sentences on the answers of one run that could not be read, from the metrics of results.json."""
    said = []
    for kind, answers in KINDS.items():
        counts = {one: metrics[f"n_{kind}_{one}"] for one in UNREAD if f"n_{kind}_{one}" in metrics}
        n = metrics.get(f"n_{kind}")
        if counts and n:
            shown = ", ".join(f"{one} {percent(count / n)}" for one, count in counts.items())
            unread = percent(sum(counts.values()) / n)
            said.append(f"{unread} of {number_of(n, answers)} could not be read, and count as wrong ({shown}).")
    if wrong := metrics.get("n_laterality_conflicts"):
        said.append(
            f"{percent(wrong / metrics['n_open'])} of {number_of(metrics['n_open'], 'open answers')} name the wrong "
            "side, and score 0."
        )
    return said


def meaning(shares: Mapping[str, Any]) -> str:
    """Return what an unread answer is, by the kinds that `shares` tell apart."""
    kinds = "; ".join(f"{one}: it {said}" for one, said in UNREAD.items() if one in shares)
    return f"An answer in which no single yes, no or option could be read counts as wrong ({kinds})."


def warnings(comparison: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each run whose answers could be read more or less often than the baseline's."""
    base, said = comparison["baseline"], []
    for kind, found in comparison.get("reading", {}).items():
        for run in found.get("differing", ()):
            own, other = (percent(found["shares"]["unread"][name]["value"]) for name in (run, base))
            said.append(
                f"{own} of the {KINDS[kind]} of {run_name(run)} could not be read, {other} of those of "
                f"{run_name(base)}. Unread answers count as wrong, so that style alone may change the score: see “How "
                f"{KINDS[kind]} were read”."
            )
    return said


def share(comparison: Mapping[str, Any], metric: str, run: str) -> float | None:
    """Return the share of a run's answers that could not be read, of the questions of an accuracy; None if not known.

    Args:
        metric: name of any metric; those that are no accuracy of `ACCURACY` have no such share.
    """
    found = (one for kind, one in comparison.get("reading", {}).items() if ACCURACY[kind] == metric and "gain" in one)
    return next((one["shares"]["unread"][run]["value"] for one in found), None)


def styled(found: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the accuracies that style alone may change, each with its runs, of a comparison or a group."""
    runs = {ACCURACY[kind]: {*one.get("differing", ())} for kind, one in found.get("reading", {}).items()}
    return {**runs, "overall_accuracy": set().union(*runs.values())}


def gains(comparison: Mapping[str, Any], kind: str) -> list[str]:
    """Return a sentence for each run on the part of unread answers in its difference of accuracy."""
    base, found, said = comparison["baseline"], comparison["reading"][kind], []
    for run, gain in found.get("gain", {}).items():
        parts = [
            f"{_with_ends(gain[part])} from answers that could not be read in {run_name(name)}"
            for part, name in {"unread_before": base, "unread_now": run}.items()
            if found["shares"]["unread"][name]["value"]
        ]
        if not parts:
            continue
        whole, read = comparison["metrics"][ACCURACY[kind]][run]["difference"], gain["read_in_both"]
        of = f"{_with_ends(read)} from the {number_of(read['questions'], 'questions')} whose answers were read in both"
        shown = ", where no difference is shown" if read["low"] <= 0 <= read["high"] else ""
        shown = ", where nothing changed" if read["value"] == read["low"] == read["high"] == 0 else shown
        parts.append(of + shown if read["questions"] else "no question had answers that were read in both")
        said.append(
            f"Of the {points(whole)} points of {kind} accuracy from {run_name(base)} to {run_name(run)}, "
            f"{', '.join(parts[:-1])}, and {parts[-1]}.".replace(" from answers", " come from answers", 1)
        )
    return said


def tables(comparison: Mapping[str, Any], column: str | None = None) -> list[Table]:
    """Return a table for each kind of answers, of which open ones are shown where some are on the wrong side.

    A row is a run, or a group of the grouping `column` and a run.
    """
    known = comparison.get("reading", {})
    kinds = [kind for kind in KINDS if kind in known and (kind != "open" or _is_any_on_wrong_side(known))]
    found = (_table(comparison, kind, column) for kind in kinds)
    return [table for table in found if len(table[1]) > 1]


def _is_any_on_wrong_side(reading: Mapping[str, Any]) -> bool:
    return any(cell["value"] for cell in reading["open"]["shares"]["wrong_side"].values())


def _table(comparison: Mapping[str, Any], kind: str, column: str | None) -> Table:
    known = comparison["reading"][kind]
    title, means = f"How {KINDS[kind]} were read", SIDE if kind == "open" else meaning(known["shares"])
    first = "on the wrong side" if kind == "open" else "could not be read"
    headings = ["run", "right", first, "change", *(one for one in UNREAD if one in known["shares"])]
    if column is None:
        rows = _rows(comparison, comparison, kind)
        return f"{title} ({counted(known['n'])})", [headings, *rows], [*gains(comparison, kind), means]
    by = GROUPINGS.get(column, column)
    rows = [
        [f"{name} ({counted(group['reading'][kind]['n'])})", *row]
        for name, group in comparison["groups"][column].items()
        if kind in group.get("reading", {})
        for row in _rows(comparison, group, kind)
    ]
    return f"{title}, by {by}", [[by, *headings], *rows], [means]


def _rows(comparison: Mapping[str, Any], found: Mapping[str, Any], kind: str) -> list[list[str]]:
    rows, shares = [], found["reading"][kind]["shares"]
    for run in comparison["runs"]:
        right, cell = found["metrics"][ACCURACY[kind]][run]["value"], next(iter(shares.values()))[run]
        value = amount("unread", cell["value"]) + (f" [{ends}]" if (ends := span("unread", cell)) else "")
        moved = f"{change('unread', cell['difference'])} {interval('unread', cell)}" if "difference" in cell else "–"
        unread = [percent(shares[one][run]["value"]) for one in UNREAD if one in shares]
        rows.append([run, percent(right), value, moved, *unread])
    return rows


def _with_ends(cell: Mapping[str, Any]) -> str:
    return f"{points(cell['value'])} [{points(cell['low'])}, {points(cell['high'])}]"
