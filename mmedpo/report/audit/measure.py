"""Counts, flaws, leakage between splits, distributions and agreement of judges over rows."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

from mmedpo import schema
from mmedpo.data.gold import DECLINES, REPEATS, doubts
from mmedpo.data.text import carries, folded, polarity, words
from mmedpo.errors import Fault
from mmedpo.report.audit.read import Row
from mmedpo.runs.formats import STANDIN

BINS = 20
RELEVANCE_EDGES = [round(-0.05 + 0.1 * i, 2) for i in range(12)]  # a bin for each multiple of 0.1, as released scores
SHARE_EDGES = [i / BINS for i in range(BINS + 1)]


def counts(labels: Sequence[str], order: Sequence[str]) -> dict[str, int]:
    """Return the count of each label, those of `order` first."""
    found = Counter(labels)
    return {label: found[label] for label in [*order, *sorted(found.keys() - set(order))] if found[label]}


def flaws(found: Sequence[Row]) -> dict[str, Any]:
    """Return the rows with each flaw of `show.FLAWS`, and under "checked" the number of rows checked for it."""
    equal = [row for row in found if row.same_images and row.gold and row.wrong]
    differing = [row for row in equal if folded(row.gold) != folded(row.wrong)]
    answers = [(polarity(row.gold), row) for row in differing if not row.is_report]
    free = [row for said, row in answers if said is None]
    asked = ((row.images, tuple(words(row.question)), row.kind) for row in found if row.images and row.question)
    whole = (
        (row.images, row.rejected_images, *map(folded, (row.question, row.chosen, row.rejected)), row.kind)
        for row in found
        if row.chosen or row.rejected
    )
    doubtful = doubts((row.question, row.gold) for row in found if row.gold)
    return {
        "identical_pairs": len(equal) - len(differing),
        "gold_in_rejected": sum(carries(row.wrong, row.gold) for row in free),
        "same_polarity": sum(said is not None and said == polarity(row.wrong) for said, row in answers),
        "zero_weights": sum(row.weight == 0 for row in found),
        "gold_repeats_question": doubtful.get(REPEATS, 0),
        "gold_declines": doubtful.get(DECLINES, 0),
        "repeated_questions": _repeats(asked),
        "repeated_rows": _repeats(whole),
        "checked": {"open": len(free), "closed": len(answers) - len(free)},
        "by_letters": _by_letters(equal),
    }


def _repeats(keys: Iterable[Hashable]) -> int:
    """Return how many keys equal an earlier one, by their 64-bit hashes, since texts would fill the memory."""
    hashes = [hash(key) for key in keys]
    return len(hashes) - len(set(hashes))


def _by_letters(equal: Sequence[Row]) -> dict[str, int]:
    """Return the two contradictions by comparing strings.

    Identical pairs are included; closed rows are those whose chosen text is exactly "yes" or "no".
    """
    texts = [row for row in equal if row.task != "report"]
    sides = [(row.gold.strip().casefold(), row.wrong.strip().casefold()) for row in texts]
    closed = [(gold, wrong) for gold, wrong in sides if gold.rstrip(".") in ("yes", "no")]
    inside = sum(bool(gold) and gold in wrong for gold, wrong in sides if gold.rstrip(".") not in ("yes", "no"))
    return {
        "open": len(sides) - len(closed),
        "gold_in_rejected": inside,
        "closed": len(closed),
        "same_polarity": sum(wrong.startswith(gold.rstrip(".")) for gold, wrong in closed),
    }


@dataclass
class Homes:
    """Images and patients by split."""

    faults: list[Fault] = field(default_factory=list)  # images and patients in several splits
    names: dict[str, str] = field(default_factory=dict)  # digest of an image -> name
    splits: dict[str, set[str]] = field(default_factory=dict)  # digest of an image -> splits


def homes(splits: Mapping[str, Iterable[Row]]) -> Homes:
    """Return images and patients by split; images are equal by pixels or by id in the provenance."""
    first: dict[tuple[str, str], str] = {}
    found = Homes()
    for split, rows in splits.items():
        here: dict[tuple[str, str], str] = {}  # (kind, identity) -> name for the reader
        for row in rows:
            name = row.name if row.image_id is None else row.image_id
            if row.image_id is not None:
                here.setdefault(("image_id", row.image_id), name)
            if row.patient_id is not None:
                here.setdefault(("patient_id", row.patient_id), row.patient_id)
            for digest in () if row.kind in schema.REVERSED else row.images:  # images of reversed pairs are noised
                here.setdefault(("images", digest), name)
                found.names.setdefault(digest, name)
                found.splits.setdefault(digest, set()).add(split)
        said = set()
        for (column, key), name in here.items():
            if first.setdefault((column, key), split) != split and ("image_id", name) not in said:
                said.add((column, name))
                sentence = f"occurs in the splits {first[column, key]!r} and {split!r}"
                found.faults.append(Fault(name, column, sentence))
    return found


def distributions(
    by_kind: Mapping[str, Sequence[float | None]], edges: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """Return mean, population sd, min, max and histogram of all numbers, and by kind under "by_dispreference".

    Histograms share their edges, by default 20 bins from minimum to maximum; numbers beyond the outer edges count in
    the outer bins. None values are ignored; the result is None without any number.
    """
    numbers = {kind: [value for value in values if value is not None] for kind, values in by_kind.items()}
    everything = [value for values in numbers.values() for value in values]
    if not everything:
        return None
    if edges is None:
        low, high = min(everything), max(everything)
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        edges = [low + (high - low) * i / BINS for i in range(BINS + 1)]
    parts = {kind: distribution(values, edges) for kind, values in numbers.items() if values}
    return {**distribution(everything, edges), "by_dispreference": parts}


def distribution(values: Sequence[float], edges: Sequence[float]) -> dict[str, Any]:
    """Return mean, population sd, min, max and histogram of at least one number."""
    bars = [0] * (len(edges) - 1)
    for value in values:
        bars[min(max(bisect_right(edges, value) - 1, 0), len(bars) - 1)] += 1
    return {
        "mean": round(fmean(values), 6),
        "sd": round(pstdev(values), 6),
        "min": round(min(values), 6),
        "max": round(max(values), 6),
        "histogram": {"edges": [round(edge, 6) for edge in edges], "counts": bars},
    }


def standins(found: Sequence[Row]) -> dict[str, int]:
    """Return the number of rows that each stand-in made or scored, by its name."""
    named = [{*row.makers, *(judge for _, judge, _ in row.judgements)} for row in found]
    counted = Counter(name for names in named for name in names if name.startswith(STANDIN))
    return dict(sorted(counted.items()))


def judges(found: Sequence[Row]) -> dict[str, Any]:
    """Return numbers of judged rows and unreadable judgements, and the agreement of the judges."""
    judged = [row for row in found if row.judgements]
    verdicts = [row.agreed for row in judged if row.agreed is not None]
    scores = [score for row in judged for *_, score in row.judgements]
    last = [max(number for number, *_ in row.judgements) for row in judged]
    return {
        "rows": len(judged),
        "agreed_share": round(fmean(verdicts), 4) if verdicts else None,
        "judgements": len(scores),
        "unreadable": sum(score is None for score in scores),
        "first_round": _alpha(judged, [1] * len(judged)),
        "last_round": _alpha(judged, last),
    }


def _alpha(judged: Sequence[Row], rounds: Sequence[int]) -> dict[str, Any]:
    """Return Krippendorff's alpha (interval level) over each row's given round, scores rounded to hundredths.

    "units" counts rows with at least two scores; "alpha" is None, with a "reason", where it is undefined.
    """
    import krippendorff
    import numpy as np

    names = sorted({judge for row in judged for _, judge, _ in row.judgements})
    table = np.full((len(names), len(judged)), np.nan)
    for place, (row, wanted) in enumerate(zip(judged, rounds, strict=True)):
        for number, judge, score in row.judgements:
            if number == wanted and score is not None:
                table[names.index(judge), place] = round(score, 2)
    table = table[:, np.sum(~np.isnan(table), axis=0) >= 2]
    found = {"units": table.shape[1], "judges": len(names)}
    if not table.size:
        return {**found, "alpha": None, "reason": "no row has the scores of two judges"}
    if np.nanmin(table) == np.nanmax(table):
        return {**found, "alpha": None, "reason": "all scores are equal; without variation alpha is not defined"}
    alpha = krippendorff.alpha(table, level_of_measurement="interval")
    return {**found, "alpha": round(float(alpha), 4), "reason": None}
