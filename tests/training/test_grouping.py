"""Order of the pairs by image: whole groups, each pair once, and steps that do not depend on the processes."""

from __future__ import annotations

import random
from itertools import groupby, islice

import pytest

from mmedpo.training.grouping import ImageSampler, filled

CHANCE = random.Random(0)
IMAGES = [image for image in range(60) for _ in range(CHANCE.randrange(1, 14))]
QUESTIONS = [i // 2 for i in range(len(IMAGES))]  # a text pair and a lesion pair a question


def batched(pairs, size):
    pairs = iter(pairs)
    return iter(lambda: list(islice(pairs, size)), [])


def sampler(batch=8, step=32, most=8, seed=3):
    return ImageSampler(IMAGES, QUESTIONS, batch, step, most, seed)


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_each_pair_comes_once(most):
    order = list(sampler(most=most))
    assert sorted(order) == list(range(len(IMAGES))) != order and len(sampler()) == len(IMAGES)


@pytest.mark.parametrize("most", [2, 6])
def test_pairs_of_an_image_come_in_groups_of_at_most_so_many(most):
    order = [IMAGES[pair] for pair in sampler(most=most)]
    runs = [len(list(run)) for _, run in groupby(order)]
    assert max(runs) <= 2 * most  # two groups of an image may meet
    assert sum(run > most for run in runs) < len(runs) / 10
    assert sum(runs) / len(runs) > most / 2


def test_the_pairs_of_a_step_depend_on_its_size_alone():
    def steps(batch):
        return [sorted(step) for step in batched(sampler(batch), 32)]

    assert steps(4) == steps(8) == steps(16) == steps(32)


def test_batches_are_about_few_images():
    assert len(IMAGES) > 300
    shown = [len({IMAGES[pair] for pair in batch}) for batch in batched(sampler(), 8)]
    by_chance = [len({IMAGES[pair] for pair in CHANCE.sample(range(len(IMAGES)), 8)}) for _ in range(100)]
    assert sum(shown) / len(shown) < 2.5 < 7 < sum(by_chance) / 100


def test_orders_change_by_epoch_and_seed_and_are_the_same_again():
    one, again = sampler(), sampler()
    assert list(one) == list(one) == list(again) != list(sampler(seed=4))
    one.set_epoch(1)
    assert list(one) != list(again)
    again.set_epoch(1)
    assert list(one) == list(again)


def test_groups_are_full_and_chunks_are_cut_only_where_none_fits():
    assert filled([[1, 2, 3], [4, 5], [6, 7], [8]], 4) == [[[1, 2, 3], [8]], [[4, 5], [6, 7]]]
    assert filled([[1, 2, 3], [4, 5, 6], [7, 8]], 4) == [[[1, 2, 3], [4]], [[5, 6], [7, 8]]]
    assert filled([], 4) == []
