"""Images encoded once a batch, for several rows and passes, against images encoded for each row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from families import FAMILIES, batch, build, differences, ours, pairs, prepare
from transformers import AutoProcessor, LlamaConfig, LlamaForCausalLM

from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.sharing import BatchImages, image_refusal
from mmedpo.training.trainer import MMedPOTrainer


class Count:
    """How many images pass through a LLaVA's vision tower."""

    def __init__(self, model: Any) -> None:
        self.images = 0
        model.get_submodule("model.vision_tower").register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.images += len(args[0] if args else kwargs["pixel_values"])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("setting", ["plain", "LoRA, checkpointing"], ids=["trained encoder", "frozen encoder"])
def test_loss_and_gradients_are_those_of_each_side_alone(name: str, shared: bool, setting: str) -> None:
    loss, gradient = differences(name, setting, shared, once=True)
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_would_show_images_in_the_wrong_order(name: str) -> None:
    family = build(name)
    right = batch(family, pairs(images=(1, 1, 1)), shared=True, once=True)
    wrong = {**right, "pictures": right["pictures"].flip(0)}
    with torch.no_grad():
        assert (ours(family, right).logps() - ours(family, wrong).logps()).abs().max() > 1e-2


def test_nothing_stays_behind_in_the_model() -> None:
    family = build("LLaVA (Llama)")
    inputs = batch(family, pairs(), shared=True)
    with pytest.raises(IndexError), BatchImages(inputs, frozen=True).encoded_once(family.model):
        assert "get_image_features" in vars(family.model.model)
        raise IndexError
    assert "get_image_features" not in vars(family.model.model)


def test_a_model_without_image_features_is_refused() -> None:
    assert image_refusal(build("PaliGemma").model) is None
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8)
    assert "LlamaForCausalLM has no get_image_features" in str(image_refusal(LlamaForCausalLM(config)))


def test_a_frozen_encoder_needs_no_gradient_even_where_checkpointing_asks_for_one() -> None:
    family = build("LLaVA (Llama)")
    prepare(family, "LoRA, checkpointing")
    seen: list[bool] = []
    projector = family.model.get_base_model().model.multi_modal_projector
    projector.register_forward_hook(lambda _, args, output: seen.append(output.requires_grad))
    ours(family, batch(family, pairs(), shared=True, once=True)).logps().sum().backward()
    ours(family, batch(family, pairs(), shared=True, once=False)).logps().sum().backward()
    assert seen == [False, True]


def mixed(text_rows: Dataset, visual_rows: Dataset) -> Dataset:
    return concatenate_datasets([text_rows.select(range(6)), visual_rows.select(range(2))])


def test_each_distinct_image_is_processed_once_and_rows_say_which_they_show(
    text_rows: Dataset, visual_rows: Dataset, tiny_model: Path
) -> None:
    rows = list(mixed(text_rows, visual_rows))
    rows[1] = {**rows[1], "images": rows[0]["images"]}  # another question about the same image
    processor = AutoProcessor.from_pretrained(tiny_model)
    plain = PreferenceCollator(processor)(rows)
    once = PreferenceCollator(processor, once=True)(rows)
    sides = [row["images"] for row in rows] + [row["rejected_images"] or row["images"] for row in rows]
    distinct = {side[0].tobytes() for side in sides}
    assert len(once["pixel_values"]) == len(distinct) < len(sides) - 6
    assert torch.equal(once["pixel_values"][once["pictures"]], plain["pixel_values"])
    assert all(torch.equal(once[key], plain[key]) for key in plain if key != "pixel_values")


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
def test_one_step_encodes_each_image_once_for_all_rows_and_the_reference(
    text_rows: Dataset, visual_rows: Dataset, make_trainer: Callable[..., MMedPOTrainer], share: bool
) -> None:
    losses, encoded = [], []
    for once in (True, False):
        trainer = make_trainer(mixed(text_rows, visual_rows), prefix_sharing=share, encode_images_once=once)
        trainer.data_collator.share, trainer.data_collator.once = share, once
        inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
        count = Count(trainer.model.get_base_model())
        losses.append(trainer._compute_loss(trainer.model, inputs, False).item())
        encoded.append(count.images)
    distinct = len(torch.unique(inputs["pixel_values"], dim=0))
    assert encoded == [distinct, 2 * len(inputs["input_ids"])]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
