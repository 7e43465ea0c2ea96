"""Gold answers of other questions, from which an offline stand-in takes a wrong one where its rules give none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import nsmallest

from mmedpo.data.samples import Sample
from mmedpo.data.text import folded, unit_interval, words

SHOWN = 12
COMPARED = 512  # answers of one length, at most: with all of them the work would grow with the square of the source


@dataclass(frozen=True)
class Alternatives:
    """A few answers other than the sample's, looked for when they are read: most questions do without."""

    pool: Pool
    sample: Sample

    def __iter__(self) -> Iterator[str]:
        return iter(self.pool.nearest(self.sample))


class Pool:
    """The gold answers of one task, by their number of words.

    Args:
        answers: of all questions of the task; equal ones count once.
        seed: of the order among answers of equally near lengths.
    """

    def __init__(self, answers: Iterable[str], seed: int) -> None:
        self.seed = seed
        self._by_length: dict[int, list[tuple[str, str]]] = {}
        for answer in sorted(set(answers)):
            self._by_length.setdefault(len(words(answer)), []).append((answer, folded(answer)))

    def nearest(self, sample: Sample) -> list[str]:
        """Return a few answers other than the sample's, those of the nearest length first, ties in a seeded order."""
        length, gold = len(words(sample.answer)), folded(sample.answer)

        def turn(answer: str) -> float:
            return unit_interval("alternative", self.seed, sample.id, answer)

        distances: dict[int, list[int]] = {}
        for other in self._by_length:
            distances.setdefault(abs(other - length), []).append(other)
        found: list[str] = []
        for distance in sorted(distances):
            others = (answer for other in distances[distance] for answer in self._of(other, sample, gold))
            found += nsmallest(SHOWN, others, key=turn)
            if len(found) >= SHOWN:
                break
        return found[:SHOWN]

    def _of(self, length: int, sample: Sample, gold: str) -> Iterator[str]:
        """Answers of a length that no reader takes for `gold`; of very many those from a seeded place on."""
        known = self._by_length[length]
        begin = int(unit_interval("place", self.seed, sample.id) * len(known)) if len(known) > COMPARED else 0
        for number in range(begin, begin + min(len(known), COMPARED)):
            answer, plain = known[number % len(known)]
            if plain != gold:
                yield answer
