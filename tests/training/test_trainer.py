"""The weighted multimodal objective, against TRL, against its formula, and against wrong input."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from transformers import AttentionInterface, AutoProcessor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from trl import DPOTrainer

from mmedpo import MMedPOTrainer
from mmedpo.errors import InputError
from mmedpo.training.collator import PreferenceCollator


def losses(trainer: DPOTrainer) -> list[float]:
    """Train, and return the loss of every step, unrounded."""
    seen: list[float] = []
    original = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = original(*args, **kwargs)
        seen.append(loss.item())
        return loss

    trainer.compute_loss = compute_loss
    trainer.train()
    return seen


def reweighted(dataset: Dataset, weight: float | list[float]) -> Dataset:
    weights = weight if isinstance(weight, list) else [weight] * len(dataset)
    return dataset.remove_columns("weight").add_column("weight", weights)


def test_plain_trl_takes_a_step_on_the_dataset_unchanged(
    rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    trainer = make_trainer(rows, DPOTrainer, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_gradient_accumulation_does_not_change_the_training(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    rows = reweighted(text_rows, [0.75 + 0.04 * i for i in range(12)])
    whole = make_trainer(rows, per_device_train_batch_size=4, max_steps=3)
    parts = make_trainer(rows, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=3)
    whole.train()
    parts.train()
    assert [entry["loss"] for entry in parts.state.log_history if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in whole.state.log_history if "loss" in entry], abs=1e-5
    )


@pytest.mark.parametrize("lora", [True, False], ids=["adapter as reference", "separate reference"])
def test_sharing_prefixes_does_not_change_the_training(
    rows: Dataset, text_rows: Dataset, make_trainer: Callable[..., DPOTrainer], lora: bool
) -> None:
    visual = rows.filter(lambda kind: kind == 1, input_columns="dispreference").select(range(5))
    mixed = concatenate_datasets([text_rows.select(range(7)), visual])
    steady = {"lora": lora, "optim": "sgd", "learning_rate": 0.1}  # Adam scales up gradients that are rounding only
    shared, apart = (make_trainer(mixed, prefix_sharing=share, **steady) for share in (True, False))
    assert losses(shared) == pytest.approx(losses(apart), abs=1e-5)
    assert shared.data_collator.share and not apart.data_collator.share
    theirs = dict(apart.model.named_parameters())
    for name, value in shared.model.named_parameters():
        assert torch.allclose(value, theirs[name], atol=1e-5), name


class ByPlace(torch.nn.Module):
    """Rotary embeddings that ignore the positions they are given, so that shared rows come out wrong."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return self.rotary(hidden, torch.arange(hidden.shape[1]).expand_as(position_ids))


@pytest.mark.parametrize("fault", ["positions ignored", "attention without masks"])
def test_where_sharing_would_change_results_training_says_so_and_goes_on_without(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer], fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = losses(make_trainer(text_rows, prefix_sharing=False))
    trainer = make_trainer(text_rows)
    if fault == "positions ignored":
        decoder = trainer.model.get_base_model().get_decoder()
        decoder.rotary_emb = ByPlace(decoder.rotary_emb)  # the same as before where each side has its own row
        reason = r"log-probabilities differ by \S+ relative, more than 1e-04"
    else:
        AttentionInterface.register("unmaskable", sdpa_attention_forward)
        trainer.model.set_attn_implementation("unmaskable")
        reason = "attention 'unmaskable' takes no mask"
    assert losses(trainer) == pytest.approx(plain, abs=1e-5 if fault == "positions ignored" else 1)
    assert not trainer.data_collator.share
    assert re.search(f"prefix_sharing is not used; results are the same, but slower: {reason}", caplog.text)


def test_margins_are_logged_by_kind_and_the_weights_effective_mass(
    text_rows: Dataset, visual_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    rows = concatenate_datasets([text_rows.select(range(2)), visual_rows.select(range(2))])
    trainer = make_trainer(reweighted(rows, [1.0, 3.0, 1.0, 1.0]), max_steps=2)
    trainer.train()
    log = trainer.state.log_history[1]  # of the second step: the first has no margin yet
    kinds = [log["rewards/margins_hallucinated_response"], log["rewards/margins_lesion_noise"]]
    assert sum(kinds) / 2 == pytest.approx(log["rewards/margins"], abs=1e-6) and kinds[0] != kinds[1]
    assert "rewards/margins_image_noise" not in log
    assert log["weights/mass"] == pytest.approx((1 + 3 + 1 + 1) ** 2 / (1 + 9 + 1 + 1) / 4)


def test_tdpos_kl_is_that_of_whole_distributions_and_is_added_unweighted(
    rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    settings = {"loss_type": ["sigmoid", "tdpo_kl"], "loss_weights": [1.0, 0.3]}
    trainer = make_trainer(rows.select(range(6)), lora=False, learning_rate=1e-3, max_steps=2, **settings)
    trainer.train()  # so that policy and reference differ
    trainer.model.eval()
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    with torch.no_grad():
        own, reference = trainer.answers(trainer.model, batch), trainer.reference_answers(batch)
        found = trainer._compute_loss(trainer.model, batch, False)
    token = F.kl_div(own.logits.log_softmax(-1), reference.logits.softmax(-1), reduction="none").sum(-1)[own.places]
    sides = torch.zeros(12).index_add(0, own.there.nonzero()[:, 0], token) / own.there.sum(1)
    ratios = (own.logps() - reference.logps()).sum(1)
    expected = batch["weight"] * -F.logsigmoid(0.1 * (ratios[:6] - ratios[6:])) + 0.3 * (sides[:6] + sides[6:]) / 2
    assert sides.min() > 1e-4 and found.item() == pytest.approx(expected.mean().item(), abs=1e-6)
    assert trainer.state.log_history[1]["kl"] > 0 == trainer.state.log_history[0]["kl"]


def test_sft_is_the_mean_negative_log_probability_of_chosen_tokens_and_ignores_weights(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    trainer = make_trainer(reweighted(text_rows, 0.3).select(range(4)), loss_type=["sft"])
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    logps = trainer.answer_logps(trainer.model, batch).sum(1)
    expected = -(logps / batch["completion_mask"].sum(1))[:4].mean()
    assert trainer._compute_loss(trainer.model, batch, False).item() == pytest.approx(expected.item(), abs=1e-6)


def test_full_fine_tuning_keeps_the_starting_model_as_reference(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    trainer = make_trainer(text_rows, lora=False, learning_rate=1e-2, max_steps=2)
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)[:2]))
    before = trainer.reference_logps(batch)
    trainer.train()
    assert torch.equal(trainer.reference_logps(batch), before)
    with torch.no_grad():
        assert not torch.allclose(trainer.answer_logps(trainer.model, batch).sum(1), before, atol=1e-3)


def test_a_missing_weight_column_raises_and_names_the_columns_there_are(
    text_rows: Dataset, make_trainer: Callable[..., DPOTrainer]
) -> None:
    with pytest.raises(InputError, match=r"train_dataset has no `weight` column \(it has id, images"):
        make_trainer(text_rows.remove_columns("weight"))
    with pytest.raises(InputError, match="no `weight` column"):
        PreferenceCollator(None)([{"images": []}])


def test_a_row_longer_than_max_length_is_an_error_and_not_cut(text_rows: Dataset, tiny_model: Path) -> None:
    collator = PreferenceCollator(AutoProcessor.from_pretrained(tiny_model), max_length=60)
    with pytest.raises(InputError, match="more than max_length 60"):
        collator(list(text_rows.select(range(2))))


# The cache of reference log-probabilities.


def test_a_cache_filled_by_trees_of_images_serves_another_order_and_packing(
    make_trainer: Callable[..., Any], text_rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = losses(make_trainer(text_rows))
    asked = 0
    live = MMedPOTrainer.reference_logps

    def counted(self: MMedPOTrainer, *args: Any) -> torch.Tensor:
        nonlocal asked
        asked += 1
        return live(self, *args)

    monkeypatch.setattr(MMedPOTrainer, "reference_logps", counted)
    cached = {"reference_cache": str(tmp_path / "cache")}
    make_trainer(text_rows, pairs_per_image=4, **cached).train()
    assert asked == 3  # three steps of the first epoch
    second = make_trainer(text_rows, prefix_sharing=False, encode_images_once=False, **cached)
    assert losses(second) == pytest.approx(plain, abs=1e-6) and asked == 3
