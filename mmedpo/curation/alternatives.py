"""Gold answers of other samples, offered to offline stand-ins as rejected responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest

from mmedpo.data.samples import Sample
from mmedpo.data.text import folded, unit_interval, words

SHOWN = 12
COMPARED = 512  # most answers of one length; more would make the work quadratic in the size of the source


@dataclass(frozen=True)
class Alternatives:
    """Lazy list of a few gold answers other than the sample's; most samples never read it."""

    pool: Pool
    sample: Sample

    def __iter__(self) -> Iterator[str]:
        return iter(self.pool.nearest(self.sample))


class Pool:
    """Gold answers of one task, indexed by their number of words.

    Args:
        answers: gold answers of all samples of the task; duplicates count once.
        seed: orders answers whose lengths are equally near.
    """

    def __init__(self, answers: Iterable[str], seed: int) -> None:
        self.seed = seed
        self._by_length: dict[int, list[tuple[str, str]]] = {}
        for answer in sorted(set(answers)):
            self._by_length.setdefault(len(words(answer)), []).append((answer, folded(answer)))

    def nearest(self, sample: Sample) -> list[str]:
        """Return at most `SHOWN` other answers, nearest length first and ties in seeded order."""
        length, gold = len(words(sample.answer)), folded(sample.answer)

        def rank(answer: str) -> float:
            return unit_interval("alternative", self.seed, sample.id, answer)

        distances: dict[int, list[int]] = {}
        for other in self._by_length:
            distances.setdefault(abs(other - length), []).append(other)
        found: list[str] = []
        for distance in sorted(distances):
            others = (answer for other in distances[distance] for answer in self._of(other, sample, gold))
            found += nsmallest(SHOWN, others, key=rank)
            if len(found) >= SHOWN:
                break
        return found[:SHOWN]

    def _of(self, length: int, sample: Sample, gold: str) -> Iterator[str]:
        """Yield answers of `length` words that differ from `gold`; start at a seeded place if there are many."""
        known = self._by_length[length]
        begin = int(unit_interval("place", self.seed, sample.id) * len(known)) if len(known) > COMPARED else 0
        for number in range(begin, begin + min(len(known), COMPARED)):
            answer, plain = known[number % len(known)]
            if plain != gold:
                yield answer
