"""The cluster bootstrap: against closed forms, and where resampling images must differ from resampling questions."""

import numpy as np
import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation import statistics
from mmedpo.evaluation.metric import mean
from mmedpo.evaluation.statistics import bootstrap, interval, paired_interval


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
    found = interval(mean(bootstrap(as_statistics(values), clusters=range(n))))
    half = 1.96 * np.sqrt(share * (1 - share) / n)
    assert found.value == pytest.approx(share)
    assert (found.low, found.high) == pytest.approx((share - half, share + half), abs=0.006)


def test_correlated_clusters_widen_the_interval():
    # 40 images with 10 equal answers each: 40 independent values, not 400.
    values = np.repeat(np.random.default_rng(1).integers(0, 2, 40), 10).astype(float)
    by_question = interval(mean(bootstrap(as_statistics(values), clusters=range(400))))
    by_image = interval(mean(bootstrap(as_statistics(values), clusters=np.repeat(range(40), 10).tolist())))
    ratio = (by_image.high - by_image.low) / (by_question.high - by_question.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.1)


def test_identical_runs_differ_by_exactly_nothing():
    values = np.random.default_rng(2).random(77)
    draws = mean(bootstrap(as_statistics(np.stack([values, values])), clusters=[i // 3 for i in range(77)]))
    assert paired_interval(draws[1], draws[0]) == statistics.Interval(0.0, 0.0, 0.0)


def test_a_constant_shift_is_found_and_pairing_narrows_its_interval():
    base = np.random.default_rng(3).random(200)
    shifted = base + 0.1 + np.random.default_rng(4).normal(0, 0.02, 200)
    draws = mean(bootstrap(as_statistics(np.stack([base, shifted])), clusters=range(200)))
    change = paired_interval(draws[1], draws[0])
    assert change.low < 0.1 < change.high
    assert change.low > 0
    alone = interval(draws[1])
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
    found = interval(mean(bootstrap(as_statistics(np.array([0.0, 1.0])), clusters=["a", "a"], resamples=10)))
    assert found == statistics.Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("rows", "clusters", "resamples", "named"),
    [
        (np.zeros((0, 2)), [], 10, "0 rows"),
        (np.zeros((2, 2)), ["a"], 10, "2 rows and 1 cluster labels"),
        (np.zeros((1, 2)), ["a"], 0, "resamples is 0"),
    ],
)
def test_bad_input_is_refused(rows, clusters, resamples, named):
    with pytest.raises(InputError, match=named):
        bootstrap(rows, clusters, resamples=resamples)
