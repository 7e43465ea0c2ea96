"""Clinical relevance scores become loss weights: four readings of the paper's section 3.2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmedpo.curation.weights import METHODS, normalize
from mmedpo.errors import InputError

SCORES = [0.0, 0.4, 0.5, 0.6, 1.0]  # mean 0.5, variance (2 * 0.5^2 + 2 * 0.1^2) / 5 = 0.104


def test_rescale_moves_to_mean_1_and_variance_a_tenth_then_clips() -> None:
    weights, _ = normalize(SCORES)
    slope = math.sqrt(0.1 / 0.104)
    assert weights == pytest.approx([0.75, 1 - 0.1 * slope, 1, 1 + 0.1 * slope, 1.25])
    unclipped = 1 + (weights[3] - weights[1]) / 0.2 * (np.array(SCORES) - 0.5)  # the line the inner weights lie on
    assert unclipped.mean() == pytest.approx(1)
    assert unclipped.var() == pytest.approx(0.1)


def test_literal_gives_every_score_the_floor() -> None:
    # (s - 1) / sqrt(0.1) is at most 0
    assert normalize(SCORES, "literal")[0] == pytest.approx([0.75] * 5)


def test_raw_is_the_score_and_none_is_one() -> None:
    assert normalize(SCORES, "raw")[0] == pytest.approx(SCORES)
    assert normalize(SCORES, "none")[0] == pytest.approx([1] * 5)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_float32_one_a_score(method: str) -> None:
    weights, found = normalize(SCORES, method)
    assert weights.dtype == np.float32 and weights.shape == (5,)
    assert (found.method, found.count) == (method, 5)


@pytest.mark.parametrize("scores", [[0.0] * 3, [0.7] * 1000, [1.0], [0.1 + 0.2, 0.3]])
def test_scores_without_spread_become_1(scores: list[float]) -> None:
    assert list(normalize(scores)[0]) == [1.0] * len(scores)


def test_statistics_before_and_after() -> None:
    weights, found = normalize(SCORES)
    assert (found.mean_before, found.sd_before) == pytest.approx((0.5, math.sqrt(0.104)))
    assert (found.mean_after, found.sd_after) == pytest.approx((1.0, weights.std()))
    assert (found.low, found.high, found.share_at_low, found.share_at_high) == (0.75, 1.25, 0.2, 0.2)
    unclipped = normalize(SCORES, "raw")[1]
    assert (unclipped.low, unclipped.high, unclipped.share_at_low, unclipped.share_at_high) == (None, None, 0, 0)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["count"] == 5


KINDS = ["text", "image", "text", "text", "image"]


@pytest.mark.parametrize("method", METHODS)
def test_a_kind_normalised_alone_is_what_its_own_scores_give(method: str) -> None:
    weights, found = normalize(SCORES, method, KINDS)
    for kind in ("text", "image"):
        own, statistics = normalize([s for s, k in zip(SCORES, KINDS, strict=True) if k == kind], method)
        assert list(weights[[k == kind for k in KINDS]]) == list(own)
        assert found.by_kind[kind] == statistics
    assert weights.dtype == np.float32
    assert (found.count, found.mean_before) == (5, pytest.approx(0.5))
    assert found.mean_after == pytest.approx(weights.mean())


def test_merged_a_kind_of_higher_scores_gets_the_higher_weights_and_by_kind_it_does_not() -> None:
    scores, kinds = [0.2, 0.4, 0.8, 1.0], ["text", "text", "image", "image"]
    merged, alone = normalize(scores)[0], normalize(scores, groups=kinds)[0]
    assert merged[:2].mean() < 1 < merged[2:].mean()
    # Two scores lie one standard deviation from their mean: 1 -+ sqrt(0.1), clipped.
    assert list(alone) == [0.75, 1.25, 0.75, 1.25]


def test_the_record_says_over_what_was_normalised() -> None:
    merged = normalize(SCORES)[1].record()
    by_kind = json.loads(json.dumps(normalize(SCORES, groups=KINDS)[1].record(), allow_nan=False))
    assert merged["over"] == "merged" and "by_kind" not in merged
    assert by_kind["over"] == "kind" and list(by_kind["by_kind"]) == ["image", "text"]
    assert by_kind["by_kind"]["text"].keys() == merged.keys() - {"over"}
    assert [by_kind["by_kind"][kind]["count"] for kind in ("image", "text")] == [2, 3]


def test_groups_are_one_a_score() -> None:
    with pytest.raises(InputError, match="5 scores and 4 groups"):
        normalize(SCORES, groups=KINDS[:4])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "every pair was rejected"),
        ([0.5, math.nan], r"is nan; scores must lie in \[0, 1\]"),
        ([0.5, math.inf], "is inf"),
        ([-0.1], r"is -0\.1"),
        ([0.5, 1.001], r"is 1\.001"),
    ],
)
def test_scores_that_cannot_be_weights_are_refused(method: str, scores: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalize(scores, method)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="'zscore' is unknown; use one of rescale, literal, raw, none"):
        normalize(SCORES, "zscore")


@pytest.mark.parametrize(
    ("name", "rows", "at_low", "at_high"),
    [
        ("slake", 4919, 0.25, 0.33),
        ("iuxray", 2069, 0.06, 0.26),
        # All 1,797 rows of the whole file give 17 and 0 %: its ceiling starts at .781 + .25 * .278 / sqrt(.1) = 1.0008,
        # above every score. Of the 1,327 rows here it starts at .996, below the 480 scores of 1.
        ("vqa-rad", 1327, 0.17, 480 / 1327),
    ],
)
def test_shares_of_the_released_scores_at_floor_and_ceiling(
    shared_data: Path, name: str, rows: int, at_low: float, at_high: float
) -> None:
    """The known shares of the released files, to the nearest per cent."""
    released = json.loads((shared_data / "released" / f"{name}_dpo_weighted.json").read_text(encoding="utf-8"))
    scores = [row["weighted_score"] for row in released]
    rescaled, literal = normalize(scores)[1], normalize(scores, "literal")[1]
    assert rescaled.count == rows
    assert (rescaled.share_at_low, rescaled.share_at_high) == pytest.approx((at_low, at_high), abs=0.01)
    assert (literal.share_at_low, literal.sd_after) == (1.0, 0.0)
