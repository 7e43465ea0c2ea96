"""Adapters merged into their base model: the same answers, and what rounding and quantisation do to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmedpo.data import credentialed
from mmedpo.errors import InputError
from mmedpo.models import restricted
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.merge import merge

Q = r".*language_model.*\.q_proj"


def opened(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()


def adapter(base: Path, folder: Path, settings: Any = None, scale: float = 0.1, **training: Any) -> str:
    """An adapter with random weights of this size on the model `base`, and its record."""
    torch.manual_seed(0)
    adapted = get_peft_model(opened(base), settings or LoraConfig(r=2, lora_alpha=2, target_modules=Q))
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = torch.randn_like(parameter) * scale
    adapted.save_pretrained(folder)
    record = {"model_fingerprint": fingerprint(str(base)), "dataset": "pairs", **training}
    (folder / "training.json").write_text(json.dumps(record))
    return str(folder)


def logits(model: Any, base: Path) -> torch.Tensor:
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    inputs = AutoProcessor.from_pretrained(base)(images=picture, text="<user> <image> <assistant>", return_tensors="pt")
    torch.manual_seed(0)
    inputs["pixel_values"] = torch.rand_like(inputs["pixel_values"])
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    "settings",
    [
        LoraConfig(r=2, target_modules=Q, modules_to_save=["multi_modal_projector"]),
        LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)|lm_head", use_dora=True),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ],
)
def test_a_merged_model_answers_as_its_adapter(settings: Any, tiny_model: Path, tmp_path: Path) -> None:
    given = adapter(tiny_model, tmp_path / "adapter", settings)
    done = merge(given, tmp_path / "merged", str(tiny_model))
    adapted = logits(PeftModel.from_pretrained(opened(tiny_model), given), tiny_model)
    assert (logits(opened(tmp_path / "merged"), tmp_path / "merged") - adapted).abs().max() < 1e-4
    assert (adapted - logits(opened(tiny_model), tiny_model)).abs().max() > 1e-2
    assert done.dtype == "float32" and done.lost < 1e-3 and done.notes == []
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["checked_by"] == "fingerprint" and record["dataset"] == "pairs"
    assert record["model_fingerprint"] == fingerprint(str(tmp_path / "merged")) != fingerprint(str(tiny_model))
    assert str(tmp_path) not in "".join(file.read_text() for file in (tmp_path / "merged").glob("*.json"))


def test_what_rounding_takes_from_small_changes_is_measured_and_said(tiny_model: Path, tmp_path: Path) -> None:
    given = adapter(tiny_model, tmp_path / "adapter", scale=0.003)
    done = merge(given, tmp_path / "merged", str(tiny_model), dtype="bfloat16")
    adapted = PeftModel.from_pretrained(opened(tiny_model).bfloat16(), given)
    missed, wanted = 0.0, 0.0
    for module in adapted.modules():
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").double()
            before = module.base_layer.weight.double()
            missed += ((before + delta).bfloat16().double() - before - delta).square().sum().item()
            wanted += delta.square().sum().item()
    assert done.lost == pytest.approx((missed / wanted) ** 0.5, rel=1e-3) and done.lost > 0.5
    assert "--dtype float32" in done.notes[0]
    assert opened(tmp_path / "merged").dtype == torch.bfloat16


def test_an_adapter_of_quantised_training_and_restricted_data_stays_known(tiny_model: Path, tmp_path: Path) -> None:
    given = adapter(
        tiny_model, tmp_path / "adapter", lora={"load_in_4bit": True}, **{credentialed.KEY: "mimic-cxr"}
    )  # fmt: skip
    done = merge(given, tmp_path / "merged", str(tiny_model))
    assert done.quantised_in_training == 4 and "4 bits" in done.notes[0]
    assert restricted.trained_on(str(tmp_path / "merged")) == "mimic-cxr"


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    good = adapter(tiny_model, tmp_path / "adapter", model_is_local=True)
    quantised = shutil.copytree(tiny_model, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    other = shutil.copytree(tiny_model, tmp_path / "other")
    changed = opened(other)
    changed.lm_head.weight.data += 1
    changed.save_pretrained(other)
    tuned = get_peft_model(opened(tiny_model), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    tuned.save_pretrained(tmp_path / "prompt")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "tiny"}))
    for name, model, sentence in [
        (good, quantised, r"is quantised \(gptq\)"),
        (good, other, "was trained on other weights"),
        (good, None, "was trained on the local model 'tiny'. Give it with --model"),
        (str(tiny_model), tiny_model, "cannot be read"),
        (str(tmp_path / "prompt"), tiny_model, "PROMPT_TUNING, which has no weights to merge"),
    ]:
        with pytest.raises(InputError, match=sentence):
            merge(name, tmp_path / "merged", model and str(model))
    with pytest.raises(InputError, match="--dtype is 'int8'"):
        merge(good, tmp_path / "merged", str(tiny_model), dtype="int8")
    assert not list(tmp_path.glob("*merged*"))


def test_a_head_that_shares_the_embedding_is_not_merged_into_both(tiny_model: Path, tmp_path: Path) -> None:
    tied = opened(tiny_model)
    tied.config.tie_word_embeddings = tied.config.text_config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(shutil.copytree(tiny_model, tmp_path / "tied"))
    given = adapter(tmp_path / "tied", tmp_path / "adapter", LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(InputError, match="shares their weights"):
        merge(given, tmp_path / "merged", str(tmp_path / "tied"))
