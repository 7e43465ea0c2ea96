"""Losses: against TRL's trainer as it is, against their formulas, and what a pair's weight does in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_trainer import losses, reweighted
from trl import DPOTrainer

from mmedpo import MMedPOConfig, MMedPOTrainer
from mmedpo.errors import InputError
from mmedpo.training.callbacks import RewardShift
from mmedpo.training.losses import desensitised, pair_losses

MPO = {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]}
ALONE = {"per_device_train_batch_size": 1}  # TRL's loss for sorted batches is then that of smoothed labels


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        *(({"loss_type": [name]}, {}) for name in ("sigmoid", "ipo", "hinge", "sigmoid_norm", "bco_pair")),
        ({"loss_type": ["robust"], "label_smoothing": 0.1}, {}),
        ({"loss_type": ["sigmoid"], "label_smoothing": 0.2, **ALONE}, {"loss_type": ["aot_unpaired"]}),
        ({"loss_type": ["sigmoid"], "ld_alpha": 0.3}, {}),
        ({**MPO, "ld_alpha": 0.0}, {}),
        (MPO, {}),
    ],
    ids=str,
)
def test_at_weight_one_and_equal_images_the_loss_is_trls(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer], settings: dict[str, Any], theirs: dict[str, Any]
) -> None:
    rows = reweighted(text_rows, 1.0)
    trainer = make_trainer(rows, **settings)
    ours = losses(trainer)
    assert trainer.data_collator.share
    assert ours == pytest.approx(losses(make_trainer(rows, DPOTrainer, **{**settings, **theirs})), abs=1e-5)
    assert len(ours) == 3 and len(set(ours)) > 1, "the loss must move for the comparison to mean something"


def test_the_default_adds_the_nll_of_the_chosen_side(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    default, named, alone = (
        losses(make_trainer(text_rows, **settings))
        for settings in ({}, {"loss_type": ["sigmoid", "sft"]}, {"loss_type": ["sigmoid"]})
    )
    assert default == named and min(a - b for a, b in zip(default, alone, strict=True)) > 0.1


def soft(x: float) -> float:
    """-log sigmoid(x)"""
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {}, lambda w, l: soft(0.1 * (w - l))),
        ("sigmoid", {"label_smoothing": 0.2}, lambda w, l: 0.8 * soft(0.1 * (w - l)) + 0.2 * soft(0.1 * (l - w))),
        (
            "robust", {"label_smoothing": 0.2},
            lambda w, l: (0.8 * soft(0.1 * (w - l)) - 0.2 * soft(0.1 * (l - w))) / 0.6,
        ),
        ("sigmoid_norm", {}, lambda w, l: soft(0.1 * (w / 4 - l / 2))),
        ("ipo", {}, lambda w, l: (w / 4 - l / 2 - 5) ** 2),
        ("hinge", {}, lambda w, l: max(0, 1 - 0.1 * (w - l))),
        ("bco_pair", {"bco_shift": True}, lambda w, l: soft(0.1 * w - 0.3) + soft(0.3 - 0.1 * l)),
    ],
)  # fmt: skip
def test_each_preference_loss_is_its_formula_times_the_weight_and_an_added_one_is_not(
    name: str, settings: dict[str, Any], expected: Callable[[float, float], float], tmp_path: Path
) -> None:
    ratios, lengths = torch.tensor([2.0, -1.0, -3.0, 0.5]), torch.tensor([4, 4, 2, 2])
    logps, weight = torch.tensor([-8.0, -6.0, -1.0, -1.0]), torch.tensor([0.5, 2.0])
    shared = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "loss_type": [name, "sft", "mdpo_anchor"]}
    config = MMedPOConfig(**shared, loss_weights=[0.7, 0.1, 0.3], **settings)
    for weighted, own in ((True, [0.5, 2.0]), (False, [1.0, 1.0])):
        config.weighted = weighted
        found = pair_losses(config, ratios, logps, lengths, weight, shift=0.3)
        unweighted = [0.1 * nll + 0.3 * soft(0.1 * w) for nll, w in ((2.0, 2.0), (1.5, -1.0))]
        pairs = [0.7 * w * expected(*pair) for w, pair in zip(own, ((2.0, -3.0), (-1.0, 0.5)), strict=True)]
        assert found.tolist() == pytest.approx([a + b for a, b in zip(pairs, unweighted, strict=True)], rel=1e-6)


def test_ld_alpha_scales_what_the_longer_side_says_beyond_the_shorter_one() -> None:
    tokens = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, 0.0, 0.0], [-8.0, 0.0, 0.0], [-1.0, -2.0, 0.0]])
    lengths = torch.tensor([3, 1, 1, 2])
    assert desensitised(tokens, lengths, 0.5).tolist() == [-4.0, -1.0, -8.0, -2.0]
    assert desensitised(tokens, lengths, 0.0).tolist() == [-1.0, -1.0, -8.0, -1.0]
    assert torch.equal(desensitised(tokens, lengths, 1.0), desensitised(tokens, lengths, None))


def test_a_cached_reference_is_that_of_ld_alphas_pair(
    text_rows: Dataset, make_trainer: Callable[..., Any], tmp_path: Path
) -> None:
    """One chosen side is beside shorter rejected ones of two lengths, and the cache is shared with plain DPO."""
    first, *others = text_rows.select(range(8))
    said = first["chosen"][-1]["content"]
    rejected = [" ".join(said.split()[:count]) or "no" for count in (1, 2)]
    rows = Dataset.from_list(
        [{**first, "id": str(i), "chosen": [{"role": "assistant", "content": f"{said} {said}"}],
          "rejected": [{"role": "assistant", "content": text}], "weight": 1.0} for i, text in enumerate(rejected)]
        + others,
        features=text_rows.features,
    )  # fmt: skip
    cached = {"reference_cache": str(tmp_path / "cache")}
    plain, live = (losses(make_trainer(rows, ld_alpha=alpha, learning_rate=1e-2)) for alpha in (None, 0.2))
    for alpha, expected in ((None, plain), (0.2, live)):
        found = losses(make_trainer(rows, ld_alpha=alpha, learning_rate=1e-2, **cached))
        assert found == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(live, plain, strict=True)) > 1e-3


def test_the_reward_shift_is_the_weighted_mean_of_earlier_steps() -> None:
    shift = RewardShift()

    def add(chosen: list[float], rejected: list[float], weight: list[float]) -> None:
        shift.add(*map(torch.tensor, (chosen, rejected, weight)))

    add([1.0, 3.0], [1.0, -1.0], [1.0, 2.0])
    add([math.nan], [1.0], [5.0])  # fp16 leaves such a step out
    assert shift.value == 0  # within the first step
    shift.on_step_end(None, None, None)
    assert shift.value == pytest.approx(1.0)  # (1 * 1 + 2 * 1) / 3
    add([4.0], [2.0], [3.0])
    shift.on_step_end(None, None, None)
    assert shift.value == pytest.approx((3 + 9) / 6)
    twice = RewardShift()  # a pair of weight 2 is that pair twice
    twice.add(torch.tensor([1.0, 3.0, 3.0]), torch.tensor([1.0, -1.0, -1.0]), torch.ones(3))
    twice.on_step_end(None, None, None)
    assert twice.value == pytest.approx(1.0)


def test_accumulation_and_batches_do_not_change_the_shift_or_the_loss(
    text_rows: Dataset, make_trainer: Callable[..., MMedPOTrainer]
) -> None:
    rows = reweighted(text_rows, [0.75 + 0.04 * i for i in range(12)])
    steady = {**MPO, "max_steps": 4, "optim": "sgd", "learning_rate": 1.0}  # Adam scales up rounding
    whole = make_trainer(rows, **steady, bco_shift=True)
    parts = make_trainer(rows, **steady, bco_shift=True, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    for name in ("loss", "rewards/shift"):
        ours, theirs = ([entry[name] for entry in one.state.log_history if name in entry] for one in (parts, whole))
        assert ours == pytest.approx(theirs, abs=1e-5) and len(set(ours)) == 4 - (name != "loss")
    start = make_trainer(rows, **steady, bco_shift=True)  # all rewards are 0
    start._shift._sums = [1.5, 1.0]
    batch = start._prepare_inputs(start.data_collator(list(start.train_dataset)[:4]))
    pair = 0.8 * math.log(2) + 0.2 * (soft(-1.5) + soft(1.5))
    expected = pair * sum(rows["weight"][:4]) / 4
    assert start._compute_loss(start.model, batch, False).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "aot"}, r"\['aot'\] is not supported: it sorts the pairs of a batch"),
        ({"loss_type": "exo_pair"}, r"\['exo_pair'\] is not supported: a clinical weight needs a mean"),
        ({"loss_type": "sft", "ld_alpha": 0.5}, "ld_alpha needs a preference loss"),
        ({"ld_alpha": 1.5}, "ld_alpha is 1.5; it must be at least 0 and at most 1"),
        ({"loss_type": "robust"}, "robust with label_smoothing 0 is sigmoid"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5; a share of wrong labels lies in"),
        ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing needs sigmoid or robust in loss_type"),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.0, 1.0]},
            r"loss_weights are \[0.0, 1.0\]; leave out a loss of weight 0",
        ),
        ({"bco_shift": True}, "bco_shift needs bco_pair in loss_type"),
        ({"use_weighting": True}, "use_weighting: not supported"),
    ],
)
def test_losses_and_settings_that_cannot_carry_a_weight_or_do_nothing_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        MMedPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **settings)
