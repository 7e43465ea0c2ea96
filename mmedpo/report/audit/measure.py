"""Counts, flaws, leakage between splits, distributions and agreement of judges, each added up row by row.

No row is kept: a number a row at most, so that the memory of a large dataset stays small.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from statistics import fmean, pstdev
from typing import Any

from mmedpo import schema
from mmedpo.data import shards
from mmedpo.data.gold import DECLINES, REPEATS, doubt
from mmedpo.data.text import carries, folded, polarity, words
from mmedpo.errors import Fault
from mmedpo.report.audit.read import Row
from mmedpo.runs.formats import STANDIN

BINS = 20
FLAWS = (
    "identical_pairs", "gold_in_rejected", "same_polarity", "zero_weights", "gold_repeats_question", "gold_declines",
)  # fmt: skip
MILLION = 10**6  # alpha does not depend on the scale
RELEVANCE_EDGES = [round(-0.05 + 0.1 * i, 2) for i in range(12)]  # a bin for each multiple of 0.1, as released scores
SHARE_EDGES = [i / BINS for i in range(BINS + 1)]


class Counts:
    """Rows by kind, task and stand-in, and their numbers by kind."""

    def __init__(self) -> None:
        self.rows = 0
        self.unscored = 0
        self._kinds: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._standins: Counter[str] = Counter()
        self._numbers: dict[str, dict[str, array[float]]] = {"weight": {}, "relevance": {}, "mask_coverage": {}}

    def add(self, row: Row) -> None:
        self.rows += 1
        self.unscored += row.relevance is None
        self._kinds[row.kind] += 1
        self._tasks[row.task] += 1
        named = {*row.makers, *(judge for _, judge, *_ in row.judgements)}
        self._standins.update(name for name in named if name.startswith(STANDIN))
        for field, by_kind in self._numbers.items():
            if (value := getattr(row, field)) is not None:
                by_kind.setdefault(row.kind, array("d")).append(value)

    def labels(self) -> dict[str, dict[str, int]]:
        """Return the count of each label, the schema's first."""
        ordered = {
            "dispreference": (self._kinds, schema.DISPREFERENCES),
            "task": (self._tasks, schema.TASKS),
        }
        return {
            name: {label: found[label] for label in [*first, *sorted(found.keys() - set(first))] if found[label]}
            for name, (found, first) in ordered.items()
        }

    def standins(self) -> dict[str, int]:
        """Return the number of rows that each stand-in made or scored, by its name."""
        return dict(sorted(self._standins.items()))

    def spread(self, field: str, edges: Sequence[float] | None = None) -> dict[str, Any] | None:
        """Return the `distributions` of "weight", "relevance" or "mask_coverage"."""
        held = self._numbers[field]
        return distributions({kind: held[kind] for kind in self.labels()["dispreference"] if kind in held}, edges)


def checked(row: Row) -> str | None:
    """Return which contradiction a row is checked for: "open" for gold in rejected, "closed" for the same polarity."""
    if not (row.same_images and row.gold and row.wrong) or folded(row.gold) == folded(row.wrong):
        return None
    if row.is_report or row.task == "choice_vqa":  # another option is wrong, whatever its words
        return None
    return "open" if polarity(row.gold) is None else "closed"


def flaws_of(row: Row) -> list[str]:
    """Return which of `FLAWS` a row has."""
    said = doubt(row.question, row.gold) if row.gold else None
    found = {
        "identical_pairs": row.same_images and row.gold and folded(row.gold) == folded(row.wrong),
        "gold_in_rejected": checked(row) == "open" and carries(row.wrong, row.gold),
        "same_polarity": checked(row) == "closed" and polarity(row.gold) == polarity(row.wrong),
        "zero_weights": row.weight == 0,
        "gold_repeats_question": said == REPEATS,
        "gold_declines": said == DECLINES,
    }
    return [name for name in FLAWS if found[name]]


class Flaws:
    """Rows with each flaw of `show.FLAWS`."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()
        self._by_letters: Counter[str] = Counter()
        self._asked, self._whole = shards.Hashes(), shards.Hashes()

    def add(self, row: Row) -> None:
        if row.same_images and row.gold and row.wrong and row.task not in ("report", "choice_vqa"):
            self._compare_letters(row.gold.strip().casefold(), row.wrong.strip().casefold())
        self._found.update(filter(None, (*flaws_of(row), checked(row))))
        if row.images and row.question:
            self._asked.add((row.images, tuple(words(row.question)), row.kind))
        if row.chosen or row.rejected:
            texts = map(folded, (row.question, row.chosen, row.rejected))
            self._whole.add((row.images, row.rejected_images, *texts, row.kind))

    def _compare_letters(self, gold: str, wrong: str) -> None:
        """Count the two contradictions by comparing strings, identical pairs included."""
        if (answer := gold.rstrip(".")) in ("yes", "no"):
            self._by_letters["closed"] += 1
            self._by_letters["same_polarity"] += wrong.startswith(answer)
        else:
            self._by_letters["open"] += 1
            self._by_letters["gold_in_rejected"] += bool(gold) and gold in wrong

    def result(self) -> dict[str, Any]:
        """Return the count of each flaw, and under "checked" the number of rows checked for it."""
        return {
            **{name: self._found[name] for name in FLAWS},
            "repeated_questions": _repeats(self._asked),
            "repeated_rows": _repeats(self._whole),
            "checked": {name: self._found[name] for name in ("open", "closed")},
            "by_letters": {
                name: self._by_letters[name] for name in ("open", "gold_in_rejected", "closed", "same_polarity")
            },
        }


def _repeats(held: shards.Hashes) -> int:
    """Return how many values equal an earlier one."""
    return sum(count - 1 for count in held.repeated().values())


class Homes:
    """Images and patients by split; images are equal by pixels or by id in the provenance."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []  # images and patients in several splits
        self.names: dict[bytes, str] = {}  # digest of an image -> name
        self.splits: dict[bytes, tuple[str, ...]] = {}  # digest of an image -> splits
        self._first: dict[str, dict[str, str]] = {"image_id": {}, "patient_id": {}}  # column -> identity -> split
        self._again: dict[tuple[str, str | bytes], tuple[str, str]] = {}  # seen in an earlier split: name, that split

    def add(self, split: str, row: Row) -> None:
        name = row.name if row.image_id is None else row.image_id
        for column, identity, said in (
            ("image_id", row.image_id, name),
            ("patient_id", row.patient_id, row.patient_id),
        ):
            if identity is not None and (home := self._first[column].setdefault(identity, split)) != split:
                self._again.setdefault((column, identity), (said or "", home))
        names = name.split("|") if len(row.images) == name.count("|") + 1 else [name] * len(row.images)
        for digest, name in () if row.prefers_noised else zip(row.images, names, strict=True):
            self.names.setdefault(digest, name)
            homes = self.splits.setdefault(digest, (split,))
            if split not in homes:
                self.splits[digest] = (*homes, split)
            if homes[0] != split:
                self._again.setdefault(("images", digest), (name, homes[0]))

    def end(self, split: str) -> None:
        """Name what this split shares with earlier ones, images that go by one name once."""
        said = set()
        for (column, _), (name, home) in self._again.items():
            if ("image_id", name) not in said:
                said.add((column, name))
                self.faults.append(Fault(name, column, f"occurs in the splits {home!r} and {split!r}"))
        self._again = {}


def distributions(
    by_kind: Mapping[str, Sequence[float | None]], edges: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """Return mean, population sd, min, max and histogram of all numbers, and by kind under "by_dispreference".

    Histograms share their edges, by default 20 bins from minimum to maximum; numbers beyond the outer edges count in
    the outer bins. None values are ignored; the result is None without any number.
    """
    numbers = {kind: array("d", (x for x in values if x is not None)) for kind, values in by_kind.items()}
    everything = array("d", chain.from_iterable(numbers.values()))
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


class Agreement:
    """Krippendorff's alpha (interval level) of scores in millionths, by sums over units with at least two scores.

    Its two disagreements are mean squared differences, which follow from sums and sums of squares (Krippendorff 2011,
    "Computing Krippendorff's alpha-reliability"). Whole numbers keep them exact.
    """

    def __init__(self) -> None:
        self._units = self._scores = self._sum = self._squares = 0
        self._observed: Counter[int] = Counter()  # scores of a unit, less one -> sum of its squared differences

    def add(self, scores: Collection[int]) -> None:
        """Add the scores of a unit."""
        if len(scores) < 2:
            return
        total, squares = sum(scores), sum(score * score for score in scores)
        self._units += 1
        self._scores += len(scores)
        self._sum += total
        self._squares += squares
        self._observed[len(scores) - 1] += len(scores) * squares - total * total

    def result(self, judges: int) -> dict[str, Any]:
        """Return the number of units; "alpha" is None, with a "reason", where it is undefined."""
        found = {"units": self._units, "judges": judges}
        if not self._units:
            return {**found, "alpha": None, "reason": "no row has the scores of two judges"}
        expected = Fraction(self._scores * self._squares - self._sum**2, self._scores - 1)
        if not expected:
            return {**found, "alpha": None, "reason": "all scores are equal; without variation alpha is not defined"}
        observed = sum(Fraction(differences, others) for others, differences in self._observed.items())
        return {**found, "alpha": round(float(1 - observed / expected), 4), "reason": None}


class Judges:
    """Judged rows, judgements without a score, and agreement of the judges."""

    def __init__(self) -> None:
        self._rows = self._decided = self._agreed = self._judgements = self._unreadable = self._not_wrong = 0
        self._names: set[str] = set()
        self._first, self._last = Agreement(), Agreement()

    def add(self, row: Row) -> None:
        if not row.judgements:
            return
        self._rows += 1
        self._decided += row.agreed is not None
        self._agreed += bool(row.agreed)
        self._judgements += len(row.judgements)
        self._not_wrong += sum(right and score is None for *_, score, right in row.judgements)
        self._unreadable += sum(not right and score is None for *_, score, right in row.judgements)
        self._names.update(judge for _, judge, *_ in row.judgements)
        last = max(number for number, *_ in row.judgements)
        for agreement, wanted in ((self._first, 1), (self._last, last)):
            scores = {
                judge: round(MILLION * Decimal(score))  # float32's 0.9 is 900,000
                for number, judge, score, _ in row.judgements
                if number == wanted and score is not None
            }
            agreement.add(scores.values())

    def result(self) -> dict[str, Any]:
        return {
            "rows": self._rows,
            "agreed_share": round(self._agreed / self._decided, 4) if self._decided else None,
            "judgements": self._judgements,
            "unreadable": self._unreadable,
            "not_wrong": self._not_wrong,
            "first_round": self._first.result(len(self._names)),
            "last_round": self._last.result(len(self._names)),
        }
