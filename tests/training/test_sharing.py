"""Prefix sharing and images encoded once, family by family, against every side computed alone with its own images."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from families import FAMILIES, SETTINGS, batch, build, differences, ours, pairs, prepare, prompt, questions
from torch.nn.attention import flex_attention
from transformers import AttentionMaskInterface, AutoProcessor, LlamaConfig, LlamaForCausalLM

from mmedpo.errors import InputError
from mmedpo.models.answers import pack, split
from mmedpo.models.sharing import (
    BatchImages,
    NotApartError,
    image_refusal,
    prefix_refusal,
    read_answers,
    shared_prefixes,
    text_model,
)
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.trainer import MMedPOTrainer


def test_rows_are_trees_of_what_their_sides_begin_with() -> None:
    prompts = [{"input_ids": ids} for ids in ([1, 2, 3], [4, 5], [1, 2, 3], [1, 2, 6], [1, 2, 3])]
    rows = pack([0, 1, 0, 0, 0], prompts, [[10, 11, 12], [20], [30, 31], [10, 7], [10, 11, 9]], filler=9)
    assert rows["input_ids"].tolist() == [[1, 2, 3, 10, 11, 30, 6, 10], [4, 5, *[9] * 6]]
    assert rows["attention_mask"].tolist() == [[1] * 8, [1, 1, *[0] * 6]]
    assert rows["ends"].tolist() == [[8, 8, 6, 5, 5, 6, 8, 8], [2, 2, *[0] * 6]]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4, 3, 2, 3], [0, 1, *[0] * 6]]
    assert rows["answer_ids"].tolist() == [[10, 11, 12], [20, 9, 9], [30, 31, 9], [10, 7, 9], [10, 11, 9]]
    assert rows["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert rows["predictors"].tolist() == [[2, 3, 4], [9, 0, 0], [2, 5, 0], [6, 7, 0], [2, 3, 4]]


@pytest.mark.parametrize(
    ("counts", "words", "width", "most"),
    [
        ((16, 1, 1, 1), 300, 1700, 1.6),  # 10,076 wide and 2.9 in whole trees
        ((16, 1, 1, 1), 60, 1300, 1.7),  # 2,953 and 2.3
        ((64,), 300, 4000, 1.25),  # 41,482
        ((8,) * 8, 8, 900, 1.05),
    ],
)
def test_long_trees_are_split_so_that_padding_and_width_are_bounded(
    counts: Sequence[int], words: int, width: int, most: float
) -> None:
    """Images of 600 tokens with so many questions of 20 tokens, each with two answers of about so many."""
    chance = random.Random(0)
    rows, prompts, answers = [], [], []
    for row in [image for image, count in enumerate(counts) for _ in range(count)]:
        prompts += [{"input_ids": [*range(600), *chance.choices(range(1000), k=20)]}] * 2
        answers += [chance.choices(range(1000), k=chance.randint(words // 2, words * 3 // 2)) for _ in range(2)]
        rows += [row] * 2
    useful = pack(rows, prompts, answers)["attention_mask"].sum()
    found = pack(split(rows, prompts, answers), prompts, answers)["attention_mask"]
    assert found.shape[1] <= width and found.numel() / useful <= most
    assert (len(found) == len(counts)) is (words == 8)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("setting", "shared", "once", "attention"),
    [
        ("plain", True, True, "sdpa"),  # a trained encoder
        ("plain", True, False, "eager"),
        ("LoRA, checkpointing", True, True, "sdpa"),
        ("LoRA, checkpointing", False, True, "sdpa"),
        ("LoRA, re-entrant checkpointing", True, False, "sdpa"),
        pytest.param("plain", False, True, "sdpa", marks=pytest.mark.slow),
        pytest.param("plain", False, False, "sdpa", marks=pytest.mark.slow),
        pytest.param("LoRA, re-entrant checkpointing", False, False, "sdpa", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_each_side_alone(
    name: str, setting: str, shared: bool, once: bool, attention: str
) -> None:
    loss, gradient = differences(name, setting, shared, attention, once)
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("setting", "attention", "asked", "rows"),
    [
        ("plain", "sdpa", questions(), 3),
        ("LoRA, checkpointing", "eager", questions(((3, 4, 2, 4, 1, 2, 3), (5,), (2,))), 5),  # too long for the others
    ],
)
def test_several_questions_about_an_image_are_a_row_or_some(
    name: str, setting: str, attention: str, asked: Any, rows: int
) -> None:
    family = build(name)
    assert family.looks_ahead or len(batch(family, asked, True, True)["input_ids"]) == rows
    loss, gradient = differences(name, setting, True, attention, True, asked)
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", [name for name in FAMILIES if not name.startswith("Qwen")])  # transformers refuses it
@pytest.mark.parametrize("setting", ["plain", "LoRA, checkpointing"])
def test_block_masks_of_flex_attention_keep_the_branches_apart(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's uncompiled reference has gradients on processors too, once the check for a GPU is out of its way."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        loss, gradient = differences(name, setting, True, "flex_attention", True, questions())
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_would_show_an_error(name: str) -> None:
    """Log-probabilities move by far more than the tolerance if answers see each other, or images change or swap."""
    family, drawn = build(name), pairs(images=(1, 1, 1))
    family.model.eval()
    right, once = batch(family, drawn, shared=True), batch(family, drawn, shared=True, once=True)
    wrong = (
        {**right, "ends": right["ends"].where(right["ends"] == 0, 99)},
        {**right, "pixel_values": -right["pixel_values"]},
        {**once, "pictures": once["pictures"].flip(0)},
    )  # fmt: skip
    with torch.no_grad():
        expected = ours(family, right).logps()
        assert all((ours(family, other).logps() - expected).abs().max() > 1e-2 for other in wrong)


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if "checkpointing" in setting])
def test_checkpointing_does_repeat_the_layers(setting: str) -> None:
    family = build("LLaVA (Llama)")
    prepare(family, setting)
    calls: list[bool] = []
    text_model(family.model).layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(True))
    read_answers(family.model, batch(family, pairs(), shared=True)).logps().sum().backward()
    assert len(calls) == 2


def test_one_batch_may_hold_shared_and_separate_rows() -> None:
    family, drawn = build("Qwen2.5-VL"), pairs()
    together = batch(family, drawn, shared=False)
    prompts = [prompt(family, pair) for pair in [*drawn, *drawn]]
    rows = pack([0, 1, 2, 0, 3, 2], prompts, [pair[side] for side in (2, 3) for pair in drawn])
    rows |= family.pixels([drawn[i][0] for i in (0, 1, 2, 1)])
    family.model.eval()
    with torch.no_grad():
        assert torch.allclose(*(read_answers(family.model, way).logps() for way in (rows, together)), atol=1e-5)


def test_nothing_stays_behind_in_transformers_or_the_model() -> None:
    family = build("LLaVA (Llama)")
    before, rows = AttentionMaskInterface()["sdpa"], batch(family, pairs(), shared=True)
    sharing = shared_prefixes(family.model, rows["ends"], rows["positions"])
    with pytest.raises(IndexError), sharing, BatchImages(rows, frozen=True).encoded_once(family.model):
        assert "get_image_features" in vars(family.model.model)
        raise IndexError
    assert AttentionMaskInterface()["sdpa"] is before and not text_model(family.model)._forward_pre_hooks
    assert "get_image_features" not in vars(family.model.model)


def test_a_model_that_does_not_ask_for_the_mask_is_an_error() -> None:
    family = build("LLaVA (Llama)")
    rows = batch(family, pairs(), shared=True)
    with (
        pytest.raises(NotApartError, match=r"used: \[\]"),
        shared_prefixes(family.model, rows["ends"], rows["positions"]),
    ):
        pass
    family.model.model.language_model.forward = lambda **_: SimpleNamespace()  # positions are taken, no mask is asked
    with (
        pytest.raises(NotApartError, match="positions"),
        shared_prefixes(family.model, rows["ends"], rows["positions"]),
    ):
        family.model.model.language_model()


def test_a_model_whose_head_cannot_be_limited_is_an_error() -> None:
    family = build("LLaVA (Llama)")
    forward = family.model.forward
    family.model.forward = lambda logits_to_keep, **inputs: forward(**inputs)
    with pytest.raises(InputError, match="does not accept `logits_to_keep`"):
        read_answers(family.model, batch(family, pairs(), shared=False))


def test_models_that_cannot_share_are_refused() -> None:
    family = build("PaliGemma")
    assert prefix_refusal(family.model) is None and image_refusal(family.model) is None
    text_model(family.model).config._attn_implementation = "flash_attention_2"
    assert "attention 'flash_attention_2' takes no mask" in str(prefix_refusal(family.model))
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
    processed: list[int] = []
    preprocess = processor.image_processor.preprocess

    def counted(images: Any, **kwargs: Any) -> Any:
        processed.append(len(images))
        return preprocess(images, **kwargs)

    processor.image_processor.preprocess = counted
    once = PreferenceCollator(processor, once=True)(rows)
    sides = [row["images"] for row in rows] + [row["rejected_images"] or row["images"] for row in rows]
    distinct = {side[0].tobytes() for side in sides}
    assert processed == [len(distinct)] and len(distinct) < len(sides) - 6
    assert torch.equal(once["pixel_values"][once["pictures"]], plain["pixel_values"])
    assert once["side_keys"] == plain["side_keys"]
    assert all(torch.equal(once[key], plain[key]) for key in plain if key not in ("pixel_values", "side_keys"))


@pytest.mark.parametrize(("words", "number"), [(1, 3), (60, 4)], ids=["whole", "split"])
def test_a_step_by_image_is_a_row_an_image_or_some_with_the_loss_of_separate_rows(
    words: int, number: int, text_rows: Dataset, visual_rows: Dataset,
    make_trainer: Callable[..., MMedPOTrainer],
) -> None:  # fmt: skip
    rows = list(mixed(text_rows, visual_rows))
    (image,), noised = rows[0]["images"], rows[-1]["rejected_images"]
    shown = ([image], [image.rotate(90)])
    for i, row in enumerate(rows):  # questions about two images, lesion pairs about one noised image
        row["images"], row["rejected_images"] = shown[i % 2], row["rejected_images"] and noised
        if i % 2:
            (answer,) = row["chosen"]
            row["chosen"] = [{**answer, "content": " ".join((answer["content"].split() * words)[:words])}]
    dataset = Dataset.from_list(rows, features=text_rows.features)
    losses, numbers = [], []
    for share in (True, False):
        trainer = make_trainer(dataset, prefix_sharing=share, pairs_per_image=4, per_device_train_batch_size=8)
        trainer.verify_optimisations()
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        losses.append(trainer._compute_loss(trainer.model, inputs, False).item())
        numbers.append(len(inputs["input_ids"]))
    assert numbers == [number, 16]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("share", ["images", ""], ids=["shared", "separate"])
def test_one_step_encodes_each_image_once_for_all_rows_and_the_reference(
    text_rows: Dataset, visual_rows: Dataset, make_trainer: Callable[..., MMedPOTrainer], share: bool
) -> None:
    losses, encoded = [], []
    for once in (True, False):
        trainer = make_trainer(mixed(text_rows, visual_rows), prefix_sharing=bool(share), encode_images_once=once)
        trainer.data_collator.share, trainer.data_collator.once = share, once
        inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
        seen: list[int] = []  # images in each call of the vision tower

        def count(_: Any, args: Any, kwargs: Any, seen: list[int] = seen) -> None:
            seen.append(len(args[0] if args else kwargs["pixel_values"]))

        trainer.model.get_base_model().model.vision_tower.register_forward_pre_hook(count, with_kwargs=True)
        losses.append(trainer._compute_loss(trainer.model, inputs, False).item())
        encoded.append(sum(seen))
    distinct = len(torch.unique(inputs["pixel_values"], dim=0))
    assert encoded == [distinct, 2 * len(inputs["input_ids"])]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
