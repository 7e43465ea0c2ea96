"""A trainer on a few preference rows, and its TRL counterpart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from trl import DPOConfig, DPOTrainer

from mmedpo import MMedPOConfig, MMedPOTrainer
from mmedpo.data import loading
from mmedpo.training.model import language_model_linears
from mmedpo.training.parts import vision_parameters

STEADY = {
    "per_device_train_batch_size": 4, "max_steps": 3, "logging_steps": 1, "learning_rate": 1e-3, "bf16": False,
    "use_cpu": True, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "max_length": None, "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="session")
def rows(preferences: Path) -> Dataset:
    return loading.load(str(preferences))


@pytest.fixture(scope="session")
def text_rows(rows: Dataset) -> Dataset:
    return rows.filter(lambda kind: kind == 0, input_columns="dispreference").select(range(12))


@pytest.fixture(scope="session")
def visual_rows(rows: Dataset) -> Dataset:
    return rows.filter(lambda kind: kind == 1, input_columns="dispreference").select(range(8))


@pytest.fixture(scope="session")
def quantisable(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with widths that bitsandbytes' kernels for processors take: multiples of 64."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    config = AutoConfig.from_pretrained(tiny_model)
    config.text_config.intermediate_size = 384
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def make_trainer(tiny_model: Path, tmp_path: Path) -> Callable[..., DPOTrainer]:
    """`make_trainer(dataset, kind=MMedPOTrainer, **settings)`: LoRA on the language model, float32, seeded.

    Of what makes image features, parameters are `frozen`, all by default.
    """

    def make(
        dataset: Dataset, kind: type[DPOTrainer] = MMedPOTrainer, lora: bool = True,
        frozen: Callable[[str], bool] = lambda name: True, **settings: Any,
    ) -> DPOTrainer:  # fmt: skip
        model = AutoModelForImageTextToText.from_pretrained(tiny_model)
        config = MMedPOConfig if issubclass(kind, MMedPOTrainer) else DPOConfig
        args = config(output_dir=str(tmp_path / "out"), **{**STEADY, **settings})
        targets = language_model_linears(model)
        for name, parameter in vision_parameters(model).items():
            parameter.requires_grad_(not frozen(name))
        return kind(
            model,
            args=args,
            train_dataset=dataset,
            processing_class=AutoProcessor.from_pretrained(tiny_model),
            peft_config=LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if lora else None,
        )

    return make
