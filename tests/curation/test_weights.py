"""Clinical relevance scores become loss weights: four readings of the paper's section 3.2."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

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
    merged, alone = normalize(scores, groups=kinds, over="merged")[0], normalize(scores, groups=kinds)[0]
    assert list(merged) == list(normalize(scores)[0])
    assert merged[:2].mean() < 1 < merged[2:].mean()
    # Two scores lie one standard deviation from their mean: 1 -+ sqrt(0.1), clipped.
    assert list(alone) == [0.75, 1.25, 0.75, 1.25]


@pytest.mark.parametrize("over", ["kind", "merged"])
def test_a_kind_without_spread_has_the_weight_1_and_moves_no_other(over: str) -> None:
    """Boxes and masks are all sure: merged with judges' scores they were all at the ceiling, and the others below 1."""
    scores, kinds = [*SCORES, 1.0, 1.0, 1.0], ["text"] * 5 + ["lesion"] * 3
    assert list(normalize(scores)[0][5:]) == [1.25] * 3  # of one kind: above the others' mean of 0.5
    weights, found = normalize(scores, groups=kinds, over=over)
    assert list(weights[5:]) == [1.0] * 3 and list(weights[:5]) == list(normalize(SCORES)[0])
    assert (found.by_kind["lesion"].mean_after, found.by_kind["lesion"].share_at_high) == (1.0, 0.0)
    assert found.notes() == ["lesion: all 3 scores are 1, so each weight is 1 (normalised apart from the other kinds)."]


def test_merged_kinds_with_spread_share_what_a_kind_without_has_no_part_in() -> None:
    scores, kinds = [0.0, 0.2, 0.8, 1.0, 0.9, 0.9, 0.3], ["a", "a", "b", "b", "flat", "flat", "single"]
    weights, found = normalize(scores, groups=kinds, over="merged")
    assert list(weights[:4]) == list(normalize(scores[:4])[0]) and list(weights[4:]) == [1.0] * 3
    assert (found.over, found.by_kind["single"].count) == ("merged", 1)
    assert found.notes()[-1] == (
        "single: its only score is 0.3, so each weight is 1 (normalised apart from the other kinds)."
    )


@pytest.mark.parametrize(
    ("scores", "kinds", "method", "notes"),
    [
        # One standard deviation is sqrt(0.1) = 0.316 of weight, so that what lies 0.79 of it from the mean is clipped.
        ([0.0, 0.5, 0.5, 1.0], None, "rescale", []),  # z = -+1.41: a half, and no more
        ([0.0, 0.5, 1.0], None, "rescale", ["all pairs: 67 % of the weights lie at a clip limit (33 % at 0.75, 33 %"]),
        ([0.0, 1.0], ["a", "a"], "rescale", ["a: 100 % of the weights lie at a clip limit (50 % at 0.75, 50 % at 1."]),
        ([0.0, 0.5], None, "literal", ["all pairs: 100 % of the weights lie at a clip limit (100 % at 0.75, 0 % at 1"]),
        ([0.6, 0.6], None, "rescale", ["all pairs: all 2 scores are 0.6, so each weight is 1, which is plain DPO."]),
        ([0.6, 0.6], None, "literal", ["all pairs: all 2 scores are 0.6, so each weight is 0.75."]),
        ([0.6, 0.6], None, "raw", ["all pairs: all 2 scores are 0.6, so each weight is that score."]),
        ([0.0, 0.5, 1.0], None, "raw", []),
        ([0.6, 0.6], None, "none", []),
        ([None, 0.6], None, "none", ["No clinical relevance was scored for 1 of 2 pairs: every weight is 1, "]),
        (
            [0.5, 0.5, 1.0], ["text", "text", "lesion"], "rescale",
            [
                "lesion: its only score is 1, so each weight is 1 (normalised apart from the other kinds).",
                "text: all 2 scores are 0.5, so each weight is 1 (normalised apart from the other kinds).",
                "No score differs within its kind: every weight is 1, which is plain DPO.",
            ],
        ),
    ],
)  # fmt: skip
def test_notes_say_where_weights_weigh_nothing_or_are_mostly_clipped(
    scores: list[float | None], kinds: list[str] | None, method: str, notes: list[str]
) -> None:
    found = normalize(scores, method, kinds)[1].notes()
    assert [note[: len(said)] for note, said in zip(found, notes, strict=True)] == notes


@pytest.mark.parametrize(
    ("scores", "method", "said"),
    [
        ([0.0, 1.0], "rescale", False),  # one at each limit
        ([0.0, 0.0, 1.0, 1.0], "rescale", False),
        ([0.0, 0.1, 0.9, 0.9], "rescale", True),  # z = -+1.11, -0.89
        ([0.1, 0.1, 0.9, 1.0], "rescale", True),
        ([0.0, 0.5], "literal", True),
    ],
)
def test_the_clip_note_says_that_scores_weigh_the_same_where_they_do(
    scores: list[float], method: str, said: bool
) -> None:
    found = normalize(scores, method)[1]
    (note,) = found.notes()
    assert note.startswith("all pairs: 100 % of the weights lie at a clip limit")
    assert note.endswith("); among them, scores that differ weigh the same.") is said
    assert found.merged_by_clip is said is found.record()["merged_by_clip"]


@pytest.mark.parametrize(
    ("name", "share"),
    [("normal", 0.429), ("uniform", 0.544)],  # P(|z| > 0.7906); 1 - 2 * 0.7906 * sqrt(1 / 12)
)
def test_shares_at_the_clip_limits_of_known_distributions(name: str, share: float) -> None:
    ranks = np.linspace(0.0005, 0.9995, 1000)
    scores = ranks if name == "uniform" else 0.5 + 0.1 * np.array([NormalDist().inv_cdf(rank) for rank in ranks])
    found = normalize(scores.tolist())[1]
    assert found.share_at_low + found.share_at_high == pytest.approx(share, abs=0.002)
    assert bool(found.notes()) is (name == "uniform")


def test_without_scores_there_are_no_weights_but_1() -> None:
    weights, found = normalize([None, 0.4, None], "none", ["text", "lesion", "text"])
    assert list(weights) == [1.0] * 3
    assert (found.unscored, found.mean_before, found.by_kind["text"].mean_before) == (2, pytest.approx(0.4), None)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["by_kind"]["text"]["unscored"] == 2
    for method in ("rescale", "literal", "raw"):
        with pytest.raises(InputError, match="2 of 3 pairs have no score"):
            normalize([None, 0.4, None], method)


def test_the_record_says_over_what_was_normalised() -> None:
    merged = normalize(SCORES, groups=KINDS, over="merged")[1].record()
    by_kind = json.loads(json.dumps(normalize(SCORES, groups=KINDS)[1].record(), allow_nan=False))
    assert (merged["over"], by_kind["over"], normalize(SCORES)[1].record()["over"]) == ("merged", "kind", "merged")
    assert list(by_kind["by_kind"]) == list(merged["by_kind"]) == ["image", "text"]
    assert by_kind["by_kind"]["text"].keys() == merged.keys() - {"over", "by_kind", "notes"}
    assert [by_kind["by_kind"][kind]["count"] for kind in ("image", "text")] == [2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": KINDS[:4]}, "5 scores and 4 groups"),
        ({"groups": KINDS, "over": "task"}, "range 'task' is unknown; use one of kind, merged"),
        ({"method": "zscore"}, "'zscore' is unknown; use one of rescale, literal, raw, none"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        normalize(SCORES, **options)


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
