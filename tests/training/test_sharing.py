"""Prefix sharing and its fallback against every side computed alone, family by family."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, SETTINGS, batch, build, differences, pairs, prepare
from transformers import AttentionMaskInterface

from mmedpo.errors import InputError
from mmedpo.models.answers import pack
from mmedpo.training import sharing
from mmedpo.training.parts import text_model
from mmedpo.training.sharing import NotApartError, prefix_refusal, read_answers, shared_prefixes


def test_rows_hold_each_prompt_once_and_answers_without_their_last_token() -> None:
    rows = pack([[1, 2, 3], [4, 5]], [(0, 2), (1,)], [[10, 11, 12], [20], [30, 31]], filler=9)
    assert rows["input_ids"].tolist() == [[1, 2, 3, 10, 11, 30], [4, 5, 9, 9, 9, 9]]
    assert rows["attention_mask"].tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert rows["segments"].tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6]
    assert rows["positions"].tolist() == [[0, 1, 2, 3, 4, 3], [0, 1, 0, 0, 0, 0]]
    assert rows["answer_ids"].tolist() == [[10, 11, 12], [20, 9, 9], [30, 31, 9]]
    assert rows["completion_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert rows["predictors"].tolist() == [[2, 3, 4], [7, 0, 0], [2, 5, 0]]  # both first tokens from the prompt's last


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("setting", ["plain", "LoRA, checkpointing", "LoRA, re-entrant checkpointing"])
def test_loss_and_gradients_are_those_of_each_side_alone(name: str, shared: bool, setting: str) -> None:
    loss, gradient = differences(name, setting, shared)
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_eager_attention_agrees_too(name: str) -> None:
    loss, gradient = differences(name, "plain", shared=True, attention="eager")
    assert loss < 1e-5 and gradient < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_would_show_an_error(name: str) -> None:
    """Log-probabilities move by far more than the tolerance if answers see each other, or images change."""
    family, drawn = build(name), pairs()
    family.model.eval()
    right = batch(family, drawn, shared=True)
    leaking = {**right, "segments": torch.zeros_like(right["segments"])}
    other = {**right, "pixel_values": -right["pixel_values"]}
    with torch.no_grad():
        expected = read_answers(family.model, right).logps()
        assert (read_answers(family.model, leaking).logps() - expected).abs().max() > 1e-2
        assert (read_answers(family.model, other).logps() - expected).abs().max() > 1e-2


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
    mixed = [[1, *family.placeholders * len(drawn[i][0]), *drawn[i][1]] for i in (0, 1, 2, 1)]
    rows = pack(mixed, [(0, 3), (1,), (2, 5), (4,)], [pair[2] for pair in drawn] + [pair[3] for pair in drawn])
    rows |= family.pixels([drawn[i][0] for i in (0, 1, 2, 1)])
    rows["mm_token_type_ids"] = (rows["input_ids"] == family.model.config.image_token_id).long()
    family.model.eval()
    with torch.no_grad():
        assert torch.allclose(*(read_answers(family.model, way).logps() for way in (rows, together)), atol=1e-5)


def test_nothing_stays_behind_in_transformers_or_the_model() -> None:
    family = build("LLaVA (Llama)")
    before = AttentionMaskInterface()["sdpa"]
    rows = batch(family, pairs(), shared=True)
    with pytest.raises(IndexError), shared_prefixes(family.model, rows["segments"], rows["positions"]):
        raise IndexError
    assert AttentionMaskInterface()["sdpa"] is before
    assert not text_model(family.model)._forward_pre_hooks


def test_a_model_that_does_not_ask_for_the_mask_is_an_error() -> None:
    family = build("LLaVA (Llama)")
    rows = batch(family, pairs(), shared=True)
    with (
        pytest.raises(NotApartError, match=r"used: \[\]"),
        shared_prefixes(family.model, rows["segments"], rows["positions"]),
    ):
        pass
    family.model.model.language_model.forward = lambda **_: SimpleNamespace()  # positions are taken, no mask is asked
    with (
        pytest.raises(NotApartError, match="positions"),
        shared_prefixes(family.model, rows["segments"], rows["positions"]),
    ):
        family.model.model.language_model()


def test_a_model_whose_head_cannot_be_limited_is_an_error() -> None:
    family = build("LLaVA (Llama)")
    forward = family.model.forward
    family.model.forward = lambda logits_to_keep, **inputs: forward(**inputs)
    with pytest.raises(InputError, match="does not take `logits_to_keep`"):
        read_answers(family.model, batch(family, pairs(), shared=False))


def test_flash_attention_is_refused() -> None:
    family = build("LLaVA (Llama)")
    assert prefix_refusal(family.model) is None
    text_model(family.model).config._attn_implementation = "flash_attention_2"
    assert "attention 'flash_attention_2' takes no mask" in str(prefix_refusal(family.model))
    assert sharing.MASKABLE == ("sdpa", "eager")
