"""Bootstrap, permutation test and correction: against closed forms and scipy, and by coverage in simulations."""

from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy import stats

from mmedpo.errors import InputError
from mmedpo.evaluation import statistics
from mmedpo.evaluation.metrics import report_generation
from mmedpo.evaluation.metrics.base import mean
from mmedpo.evaluation.metrics.reports.coco import bleu, bleu_statistics
from mmedpo.evaluation.statistics import bootstrap, exchanges, holm, interval, over_seeds, p_value, spread, tail


def as_statistics(values):
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_first_row_is_the_data_and_every_resample_has_as_many_clusters():
    values = np.arange(12.0)
    sums = bootstrap(as_statistics(values), clusters=range(12), resamples=50)
    assert sums.shape == (51, 2)
    assert tuple(sums[0]) == (values.sum(), 12)
    assert (sums[:, 1] == 12).all()


def test_interval_of_a_share_has_the_width_of_the_normal_approximation():
    n, share = 400, 0.3
    values = np.repeat([1.0, 0.0], [int(n * share), n - int(n * share)])
    found = interval(mean(bootstrap(as_statistics(values), clusters=range(n))), tail(range(n)))
    half = 1.96 * np.sqrt(share * (1 - share) / n)
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.006)


def test_correlated_clusters_widen_the_interval():
    # 40 images with 10 equal answers each: 40 independent values, not 400.
    values = np.repeat(np.random.default_rng(1).integers(0, 2, 40), 10).astype(float)
    images = np.repeat(range(40), 10).tolist()
    by_question = interval(mean(bootstrap(as_statistics(values), clusters=range(400))), 0.025)
    by_image = interval(mean(bootstrap(as_statistics(values), clusters=images)), 0.025)
    ratio = (by_image.high - by_image.low) / (by_question.high - by_question.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_identical_runs_differ_by_exactly_nothing():
    values = np.random.default_rng(2).random(77)
    draws = mean(bootstrap(as_statistics(np.stack([values, values])), clusters=[i // 3 for i in range(77)]))
    assert interval(draws[1] - draws[0], 0.025) == statistics.Interval(0.0, 0.0, 0.0)


def test_a_constant_shift_is_found_and_pairing_narrows_its_interval():
    base = np.random.default_rng(3).random(200)
    shifted = base + 0.1 + np.random.default_rng(4).normal(0, 0.02, 200)
    draws = mean(bootstrap(as_statistics(np.stack([base, shifted])), clusters=range(200)))
    change = interval(draws[1] - draws[0], tail(range(200)))
    assert change.low < 0.1 < change.high
    assert change.low > 0
    alone = interval(draws[1], tail(range(200)))
    assert change.high - change.low < (alone.high - alone.low) / 5


def test_chunks_bound_memory_and_change_nothing(monkeypatch):
    rows = as_statistics(np.random.default_rng(5).random(30))
    at_once = bootstrap(rows, clusters=range(30), seed=7, resamples=100)
    monkeypatch.setattr(statistics, "CELLS_AT_ONCE", 30 * 7)
    np.testing.assert_allclose(bootstrap(rows, clusters=range(30), seed=7, resamples=100), at_once, rtol=1e-12)


def test_the_seed_decides():
    rows = as_statistics(np.random.default_rng(6).random(30))
    first, again, other = (bootstrap(rows, range(30), seed=seed, resamples=20) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first[1:] != other[1:]).any()


def test_one_cluster_has_an_interval_without_width():
    draws = mean(bootstrap(as_statistics(np.array([0.0, 1.0])), clusters=["a", "a"], resamples=10))
    found = interval(draws, tail(["a", "a"]))
    assert found == statistics.Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("rows", "clusters", "resamples", "named"),
    [
        (np.zeros((0, 2)), [], 10, "0 rows"),
        (np.zeros((2, 2)), ["a"], 10, "2 rows and 1 cluster labels"),
        (np.zeros((1, 2)), ["a"], 0, "0 resamples were asked for"),
    ],
)
def test_bad_input_is_refused(rows, clusters, resamples, named):
    with pytest.raises(InputError, match=named):
        bootstrap(rows, clusters, resamples=resamples)


def test_resamples_without_a_value_are_left_out():
    assert interval(np.array([0.5, np.nan, 0.25, 0.75]), 0.0) == statistics.Interval(0.5, 0.25, 0.75)


def test_the_tail_is_that_of_a_t_interval_and_shrinks_to_the_normal_one():
    # 10 equal clusters: the normal quantile of a t interval with 9 degrees of freedom, times sqrt(10 / 9).
    assert stats.norm.isf(tail(range(10))) == pytest.approx(2.2622 * np.sqrt(10 / 9), abs=1e-3)
    assert tail(range(100_000)) == pytest.approx(0.025, abs=1e-4)
    unequal = ["a"] * 9 + list("bcdefghij")  # 18 ** 2 / (81 + 9) = 3.6 effective clusters
    assert stats.norm.isf(tail(unequal)) == pytest.approx(stats.t.isf(0.025, 2.6) * np.sqrt(10 / 9))
    assert tail(["a", "a"]) == pytest.approx(0.025)


def test_exchanges_swap_whole_clusters_between_the_two_runs():
    rows = np.random.default_rng(7).integers(1, 100, (3, 4, 2)).astype(float)
    own, other = exchanges(rows, clusters=["a", "a", "b", "c"], permutations=200)
    assert own.shape == other.shape == (2, 201, 2)
    assert (own[:, 0] == rows[1:].sum(axis=1)).all() and (other[:, 0] == rows[0].sum(axis=0)).all()
    clusters = np.stack([rows[:, :2].sum(axis=1), rows[:, 2], rows[:, 3]], axis=1)
    possible = {
        tuple(np.where(np.array(sides)[:, None], clusters[0], clusters[1]).sum(axis=0))
        for sides in product([False, True], repeat=3)
    }
    assert {tuple(sums) for sums in own[0]} == possible  # all 8 of them in 200
    np.testing.assert_allclose(own + other, np.broadcast_to((rows[1:] + rows[:1]).sum(axis=1)[:, None], own.shape))


def test_p_of_a_mean_is_that_of_scipy():
    rng = np.random.default_rng(8)
    start, run = rng.random(60), rng.random(60) + 0.03
    own, other = exchanges(as_statistics(np.stack([start, run])), range(60), permutations=20_000)
    theirs = stats.permutation_test(
        (run, start), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=20_000, rng=1,
    )  # fmt: skip
    assert 0.01 < theirs.pvalue < 0.5
    assert p_value(mean(own[0]) - mean(other[0])) == pytest.approx(theirs.pvalue, abs=0.012)  # 4 standard errors


def test_p_of_a_corpus_metric_is_that_of_scoring_each_exchange_anew():
    gold = ["the heart is normal", "no pleural effusion is seen", "clear lungs"]
    start = ["the heart", "effusion is seen", "clear lungs"]
    run = ["the heart is normal", "no effusion is seen", "lungs"]
    score = partial(report_generation.score, meteor_variant="nltk_exact_stem")
    sums = np.array([[bleu_statistics(score(said, true)) for said, true in zip(side, gold, strict=True)]
                     for side in (start, run)])  # fmt: skip
    own, other = exchanges(sums, range(3), permutations=4000)
    observed = None
    count = 0
    for sides in product([False, True], repeat=3):
        mixed = [[bleu_statistics(score((b if swap else a), true)) for a, b, true, swap in zip(*pair, gold, sides,
                 strict=True)] for pair in ((run, start), (start, run))]  # fmt: skip
        left, right = (bleu(np.sum(side, axis=0))[1] for side in mixed)
        observed = left - right if observed is None else observed
        count += abs(left - right) >= abs(observed) - 1e-12
    assert p_value(bleu(own)[0, :, 1] - bleu(other)[0, :, 1]) == pytest.approx(count / 8, abs=0.03)


def test_equal_runs_have_p_one_and_undefined_exchanges_count_as_large():
    values = np.random.default_rng(9).random(30)
    own, other = exchanges(as_statistics(np.stack([values, values])), range(30), permutations=99)
    assert p_value(mean(own[0]) - mean(other[0])) == 1.0
    assert p_value(np.array([0.5, np.nan, 0.1, 0.6])) == 3 / 4
    assert p_value(np.array([0.5, 0.1, 0.2, 0.3])) == 1 / 4  # never 0


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, never falling again.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_alone_have_the_t_interval_of_their_mean():
    draws = np.array([[0.5], [0.6], [0.8]]) * np.ones(1 + 4000)  # images that never vary
    found = spread(over_seeds(draws), tail(range(400)))
    expected = stats.t.interval(0.95, 2, np.mean([0.5, 0.6, 0.8]), stats.sem([0.5, 0.6, 0.8]))
    assert (found.low, found.high) == pytest.approx(expected, abs=0.005)


def test_a_difference_of_two_methods_with_seeds_has_the_interval_of_welch():
    start, run = [0.5, 0.6, 0.8], [0.7, 0.71, 0.72, 0.75]
    means = [over_seeds(np.array(values)[:, None] * np.ones(1 + 4000)) for values in (run, start)]
    found = spread(means[0] - means[1], 0.025)
    expected = stats.ttest_ind(run, start, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)


@pytest.mark.parametrize("runs", [1, 3])
def test_runs_that_never_vary_have_the_interval_of_images(runs):
    draws = np.random.default_rng(0).random(401) * np.ones((runs, 1))
    assert spread(over_seeds(draws), 0.02) == interval(draws[0], 0.02)


# Simulations: test sets of images with 1 to 12 questions each, drawn from a population whose value is known.

SIZES, SHARES = [1, 2, 3, 5, 8, 12], [0.3, 0.25, 0.2, 0.12, 0.08, 0.05]


def population(kind, images, rng):
    """Sums and counts by image, [images, 2]; an image's questions share its difficulty."""
    counts = rng.choice(SIZES, p=SHARES, size=images)
    of = np.repeat(np.arange(images), counts)
    hard, noise = rng.normal(0, 1, images)[of], rng.normal(0, 1, len(of))
    if kind == "share":
        values = hard + noise > 0.4
    elif kind == "mean":
        values = np.clip(0.5 + 0.2 * hard + 0.25 * noise, 0, 1)
    else:
        luck = 0.8 * noise + 0.6 * rng.normal(0, 1, len(of)) + rng.normal(0, 0.3, images)[of]
        values = (hard + luck > 0.1).astype(float) - (hard + noise > 0.4)
    return np.stack([np.bincount(of, values), counts], axis=1), counts


@pytest.mark.slow
@pytest.mark.parametrize("images", [20, 60, 120])
@pytest.mark.parametrize("kind", ["share", "mean", "difference"])
def test_intervals_cover_the_truth(kind, images):
    rng = np.random.default_rng(0)
    sums, _ = population(kind, 400_000, rng)
    truth = mean(sums.sum(axis=0))
    sets, hits = 1500, 0
    for seed in range(sets):
        sums, counts = population(kind, images, rng)
        found = interval(
            mean(bootstrap(sums, range(images), seed, 1000)), tail(np.repeat(range(images), counts).tolist())
        )
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / sets <= 0.97


@pytest.mark.slow
def test_the_permutation_test_keeps_its_level():
    rng = np.random.default_rng(1)
    sets, false = 1500, 0
    for seed in range(sets):
        sums, counts = population("mean", 40, rng)
        signs = rng.choice([-1.0, 1.0], 40)  # no difference but chance: each image's could as well be the other way
        rows = np.stack([np.zeros(40), (sums[:, 0] - 0.5 * counts) * signs])
        own, other = exchanges(np.stack([rows, np.stack([counts, counts])], axis=-1), range(40), seed, 499)
        false += p_value(mean(own[0]) - mean(other[0])) <= 0.05
    assert 0.035 <= false / sets <= 0.065


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_over_seeds_and_images_cover_the_truth(seeds):
    rng, sets, hits, images, between = np.random.default_rng(2), 600, 0, 100, 0.05
    for _ in range(sets):
        own, of_image = rng.normal(0, between, seeds)[:, None], rng.normal(0, 0.3, images)
        values = own + of_image + rng.normal(0, 0.3, (seeds, images))
        draws = mean(bootstrap(as_statistics(values), range(images), resamples=500))
        found = spread(over_seeds(draws), tail(range(images)))
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / sets <= 0.985
