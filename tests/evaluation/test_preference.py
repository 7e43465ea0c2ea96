"""Preference accuracy and margins, against TRL's arithmetic and by hand; golden cases are in eval/preference."""

import math

import pytest
import torch

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import preference

PAIR = {"chosen_logps": -1.0, "rejected_logps": -2.0}
REFERENCE = {"reference_chosen_logps": -2.0, "reference_rejected_logps": -2.0}


def columns(count, **more):
    drawn = torch.Generator().manual_seed(0)
    names = (*preference.LOGPS, *preference.REFERENCE_LOGPS)
    return {name: (-10 * torch.rand(count, generator=drawn, dtype=torch.float64)).tolist() for name in names} | more


def test_rewards_rank_as_trl_ranks_them():
    given = columns(50)
    chosen, rejected, chosen_before, rejected_before = map(torch.tensor, given.values())
    chosen_rewards, rejected_rewards = 0.1 * (chosen - chosen_before), 0.1 * (rejected - rejected_before)
    found = preference.compute(given, "implicit_reward")
    accuracy = (chosen_rewards > rejected_rewards).float().mean().item()
    assert found["preference_accuracy"] == pytest.approx(accuracy)
    assert found["preference_margin"] == pytest.approx((chosen_rewards - rejected_rewards).mean().item(), abs=1e-6)


def test_a_tie_is_not_right_and_is_said():
    tied = {"chosen_logps": -2.0, "rejected_logps": -2.0}
    assert preference.score(tied) == {"margin": 0.0, "correct": 0.0, "tie": 1.0}
    assert preference.score({**PAIR, **REFERENCE}, "implicit_reward")["margin"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("weight", "band"),
    [(0.0, "below_0.9"), (0.75, "below_0.9"), (0.9, "0.9_to_1.1"), (1, "0.9_to_1.1"), (1.1, "0.9_to_1.1"),
     (1.25, "above_1.1"), (7.0, "above_1.1")],
)  # fmt: skip
def test_bands_cover_every_weight_once(weight, band):
    assert preference.band(weight) == band
    assert preference.score({**PAIR, "weight": weight})["weight_band"] == band


def test_parts_add_up_to_all_pairs():
    kinds = ["lesion_noise", "hallucinated_response"] * 10
    weights = [0.8, 1.0, 1.2, 1.2] * 5
    logps = {name: column for name, column in columns(20).items() if name in preference.LOGPS}
    found = preference.compute({**logps, "dispreference": kinds, "weight": weights}, return_scores=True)
    for parts in (["_lesion_noise", "_hallucinated_response"], [f"_weight_{name}" for name in preference.BANDS]):
        sizes = [found[f"n_pairs{part}"] for part in parts]
        assert sum(sizes) == found["n_pairs"] == 20
        for value in ("preference_accuracy", "preference_margin"):
            mean = sum(size * found[f"{value}{part}"] for size, part in zip(sizes, parts, strict=True)) / 20
            assert mean == pytest.approx(found[value])
    assert [score["weight"] for score in found["scores"]] == weights


@pytest.mark.parametrize(
    ("given", "protocol", "named"),
    [
        (PAIR, "reward", "'reward' does not exist; choose one of: log_likelihood, implicit_reward"),
        ({"chosen_logps": -1.0}, "log_likelihood", "missing: rejected_logps"),
        (PAIR, "implicit_reward", "missing: reference_chosen_logps, reference_rejected_logps"),
        (PAIR | REFERENCE, "log_likelihood", "unexpected: reference_chosen_logps, reference_rejected_logps"),
        (PAIR | {"kind": "x"}, "log_likelihood", "unexpected: kind"),
        (PAIR | {"chosen_logps": math.nan}, "log_likelihood", "index 0 [chosen_logps]: is not a finite number"),
        (PAIR | {"rejected_logps": -math.inf}, "log_likelihood", "index 0 [rejected_logps]: is not a finite number"),
        (PAIR | {"rejected_logps": None}, "log_likelihood", "index 0 [rejected_logps]: is not a finite number"),
        (PAIR | {"rejected_logps": "-1"}, "log_likelihood", "index 0 [rejected_logps]: is not a finite number"),
        (
            PAIR | {"rejected_logps": 2.0},
            "log_likelihood",
            "is above 0, the most that a log-probability can be; check its sign, got 2.0",
        ),
        (PAIR | {"weight": -0.5}, "log_likelihood", "index 0 [weight]: must be a number of at least 0, got -0.5"),
        (PAIR | {"weight": math.nan}, "log_likelihood", "index 0 [weight]: must be a number of at least 0, got nan"),
        (PAIR | {"dispreference": "noise"}, "log_likelihood", "is unknown; choose one of: hallucinated_response"),
    ],
)
def test_bad_input_is_refused_by_name(given, protocol, named):
    with pytest.raises(InputError) as refused:
        preference.score(given, protocol)
    assert named in str(refused.value)


def test_all_faults_are_listed_at_once_and_lengths_must_agree():
    with pytest.raises(InputError) as refused:
        preference.compute({"chosen_logps": [math.nan, -1.0], "rejected_logps": [-1.0, 3.0], "weight": [1.0, None]})
    assert [(fault.row, fault.column) for fault in refused.value.faults] == [
        ("index 0", "chosen_logps"), ("index 1", "rejected_logps"), ("index 1", "weight"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="2 chosen_logps, 1 rejected_logps"):
        preference.compute({"chosen_logps": [-1.0, -1.0], "rejected_logps": [-1.0]})
    with pytest.raises(InputError, match="beta is 0"):
        preference.score(PAIR | REFERENCE, "implicit_reward", beta=0)
