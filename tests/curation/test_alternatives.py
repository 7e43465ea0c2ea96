"""Answers that the offline stand-in falls back on: which ones, and how much is compared for them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mmedpo.curation import standins
from mmedpo.curation.hallucinate import Item, Writer
from mmedpo.curation.standins import COMPARED, Pool, StandInChat
from mmedpo.data.samples import Sample, SampleImage
from mmedpo.data.text import folded, unit_interval, words

IMAGES = (SampleImage(Path("7.png"), "7.png"),)
ASKED = Sample("7", IMAGES, "What is seen?", "Two clips", "open_vqa", None, "train", "s", "l")


def by_definition(answers: list[str], sample: Sample, seed: int) -> list[str]:
    length = len(words(sample.answer))
    others = (answer for answer in set(answers) if folded(answer) != folded(sample.answer))
    return sorted(
        others,
        key=lambda answer: (abs(len(words(answer)) - length), unit_interval("alternative", seed, sample.id, answer)),
    )[:12]


def test_alternatives_are_the_nearest_in_length_in_a_seeded_order() -> None:
    answers = [f"{'clip ' * (number % 7)}{number}" for number in range(60)] + ["two CLIPS", "Two clips", "", "?"]
    for id, gold in (("1", "Two clips"), ("2", "clip " * 6 + "6"), ("3", "wire"), ("4", "w " * 40), ("5", "")):
        asked = replace(ASKED, id=id, answer=gold)
        for seed in (0, 1):
            assert Pool(answers, seed).nearest(asked) == by_definition(answers, asked, seed)
    assert Pool(["Two clips", "two  clips"], 0).nearest(ASKED) == []


def test_the_answers_compared_for_a_question_do_not_grow_with_the_source(compared: list[object]) -> None:
    found = {}
    for size in (COMPARED, 4 * COMPARED):
        compared.clear()
        pool = Pool((f"wire {number}" for number in range(size)), 0)
        found[size] = pool.nearest(ASKED)
        assert len(compared) <= COMPARED + 1, size  # one more for the place where a long list is begun
        assert len(set(found[size])) == 12
    # another question is shown others
    assert pool.nearest(ASKED) == found[size] != pool.nearest(replace(ASKED, id="8"))


def test_nothing_is_compared_for_a_question_that_has_a_rule(compared: list[object]) -> None:
    pool = Pool((f"wire {number}" for number in range(20)), 0)
    asked = [replace(ASKED, id=gold, answer=gold) for gold in ("yes", "left lung", "Two clips")]
    items = [Item(one.question, one.answer, one.task, alternatives=partial(pool.nearest, one)) for one in asked]
    made = Writer(StandInChat()).choose(items)
    assert [choice.text for choice in made[:2]] == ["no", "right lung"] and made[2].text.startswith("Wire ")
    assert {id for _, _, id, _ in compared} == {"Two clips"}


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Each number drawn for an answer, by what it was drawn from."""
    drawn: list[object] = []

    def draw(*key: object) -> float:
        drawn.append(key)
        return unit_interval(*key)

    monkeypatch.setattr(standins, "unit_interval", draw)
    return drawn
