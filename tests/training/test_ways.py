"""The ways to train, each through the command's own code: what is trained, against what, and what is saved."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from launches import KILLED, ROOT, arguments, history
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.errors import InputError
from mmedpo.models.fingerprint import fingerprint
from mmedpo.models.vision_language import Sampling, VisionLanguageModel
from mmedpo.training import model as training_model
from mmedpo.training import run
from mmedpo.training.grouping import GroupedSampler, lengths_and_kinds
from mmedpo.training.trainer import MMedPOTrainer


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[MMedPOTrainer]:
    """The trainers that runs make."""
    made: list[MMedPOTrainer] = []

    class Remembered(MMedPOTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(run, "MMedPOTrainer", Remembered)
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForImageTextToText.from_pretrained(folder).named_parameters())


def answer(model: Path, adapter: Path | None, dataset: Path) -> list[str]:
    rows = list(loading.load(str(dataset)).select(range(4)))
    questions = [(row["images"][0], schema.message_text(row["prompt"])) for row in rows]
    asked = VisionLanguageModel(str(model), str(adapter) if adapter else None)
    return [texts[0] for texts in asked.answer(questions, Sampling(max_new_tokens=8))]


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_qlora_trains_an_adapter_on_quantised_weights(
    bits: str, preferences: Path, quantisable: Path, tmp_path: Path, trainers: list[MMedPOTrainer]
) -> None:
    output = tmp_path / "adapter"
    cached = {"reference_cache": tmp_path / "reference"}
    run.main(arguments(preferences, quantisable, output, **{bits: "true"}, dtype="bfloat16", **cached))
    (trainer,) = trainers
    kinds = [type(module) for module in trainer.model.modules()]
    quantised = [kind.__name__ for kind in kinds if kind.__module__.startswith("bitsandbytes")]
    assert len(quantised) > 14 and set(quantised) == {"Linear4bit" if bits == "load_in_4bit" else "Linear8bitLt"}
    assert trainer.data_collator.share and trainer.data_collator.once
    assert {value.dtype for value in trainer.model.parameters() if value.requires_grad} == {torch.float32}
    losses = history(output)
    assert len(losses) == 3 and all(torch.tensor(losses).isfinite())
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(quantisable), output)
    moved = [value for name, value in model.named_parameters() if "lora_B" in name]
    assert moved and all(value.abs().sum() > 0 for value in moved)


def test_dora_trains_magnitudes_too(preferences: Path, tiny_model: Path, tmp_path: Path) -> None:
    run.main(arguments(preferences, tiny_model, tmp_path / "adapter", use_dora="true"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("lora_magnitude_vector" in name for name in saved) == 14


def test_bfloat16_with_gradient_checkpointing_shares_rows_and_stays_near_float32(
    preferences: Path, tiny_model: Path, tmp_path: Path, trainers: list[MMedPOTrainer]
) -> None:
    run.main(arguments(preferences, tiny_model, tmp_path / "exact"))
    coarse = {"bf16": "true", "dtype": "bfloat16", "gradient_checkpointing": "true"}
    run.main(arguments(preferences, tiny_model, tmp_path / "coarse", **coarse))
    assert trainers[1].data_collator.share and trainers[1].model.dtype == torch.bfloat16
    assert history(tmp_path / "coarse") == pytest.approx(history(tmp_path / "exact"), rel=0.03)


@pytest.mark.parametrize("lora", ["true", "false"])
def test_the_projector_is_trained_when_asked_at_its_own_rate(
    lora: str, preferences: Path, tiny_model: Path, tmp_path: Path, trainers: list[MMedPOTrainer]
) -> None:
    output = tmp_path / "trained"
    changes = {"projector_learning_rate": 1e-2, "use_peft": lora, "learning_rate": 1e-9, "warmup_steps": 0}
    run.main(arguments(preferences, tiny_model, output, lr_scheduler_type="constant", **changes))
    groups = trainers[0].optimizer.param_groups
    assert sorted({group["lr"] for group in groups}) == [1e-9, 1e-2]
    before = weights(tiny_model)
    if lora == "true":
        base = AutoModelForImageTextToText.from_pretrained(tiny_model)
        after = dict(PeftModel.from_pretrained(base, output).merge_and_unload().named_parameters())
    else:
        after = weights(output)
    change = {name: (after[name] - before[name]).abs().max().item() for name in before}
    projector = {name for name in change if "projector" in name}
    assert len(projector) == 4 and all(change[name] > 1e-3 for name in projector)
    assert all(change[name] < 1e-6 for name in change.keys() - projector)


def test_full_fine_tuning_leaves_vision_tower_and_projector(
    preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run.main(arguments(preferences, tiny_model, tmp_path / "model", use_peft="false"))
    before, after = weights(tiny_model), weights(tmp_path / "model")
    same = {name for name in before if torch.equal(before[name], after[name])}
    seeing = {name for name in before if "vision_tower" in name or "projector" in name}
    assert same == seeing
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["trained_parameters"] == sum(before[name].numel() for name in before.keys() - seeing)
    assert "fully fine-tuned" in written_card(tmp_path / "model")


def written_card(folder: Path) -> str:
    from mmedpo.hub.cards import adapter_card

    return adapter_card(folder)


def test_after_sft_the_reference_is_the_sft_model(
    preferences: Path, tiny_model: Path, tmp_path: Path, trainers: list[MMedPOTrainer]
) -> None:
    sft, output = tmp_path / "sft", tmp_path / "adapter"
    run.main(arguments(preferences, tiny_model, sft, loss_type="sft", loss_weights="1.0", warmup_steps=0))
    moved = shutil.copytree(tiny_model, tmp_path / "the same model elsewhere")
    run.main(arguments(preferences, moved, output, use_peft="false", adapter_name_or_path=sft, loss_type="sigmoid",
                       loss_weights="1.0", warmup_steps=0))  # fmt: skip
    records = [json.loads((folder / "training.json").read_text()) for folder in (sft, output)]
    assert [record["adapter_checked_by"] for record in records] == [None, "fingerprint"]
    assert {record["model_fingerprint"] for record in records} == {fingerprint(str(tiny_model))}
    begun = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_model), sft).eval()
    trainer = trainers[1]
    inputs = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset.select(range(4)))))
    with torch.no_grad():
        expected = trainer.answer_logps(begun, inputs).sum(dim=1)
        trained = trainer.answer_logps(trainer.model.eval(), inputs).sum(dim=1)
    assert torch.allclose(trainer.reference_logps(inputs), expected, atol=1e-5)
    assert (trained - expected).abs().max() > 1e-2
    assert 0.5 < history(output)[0] < 0.87  # log 2 times weights of 0.75 to 1.25: the policy is the reference at first
    assert not (output / "ref").exists()
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_model), output).eval()
    with torch.no_grad():
        assert torch.allclose(trainer.answer_logps(loaded, inputs).sum(dim=1), trained, atol=1e-5)


def test_an_adapter_is_not_gone_on_from_with_other_settings(
    preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run.main(arguments(preferences, tiny_model, tmp_path / "sft", max_steps=1))
    with pytest.raises(InputError, match="has its own LoRA settings and trained modules"):
        run.main(arguments(preferences, tiny_model, tmp_path / "a", adapter_name_or_path=tmp_path / "sft"))
    with pytest.raises(InputError, match="The adapter 'nowhere' cannot be read"):
        run.main(arguments(preferences, tiny_model, tmp_path / "a", adapter_name_or_path="nowhere", use_peft="false"))
    other = shutil.copytree(tiny_model, tmp_path / "other" / tiny_model.name)
    changed = AutoModelForImageTextToText.from_pretrained(other)
    changed.lm_head.weight.data += 1e-2
    changed.save_pretrained(other)
    with pytest.raises(InputError, match=r"was trained on other weights than those of .*tiny"):
        run.main(arguments(preferences, other, tmp_path / "a", adapter_name_or_path=tmp_path / "sft", use_peft="false"))
    assert {path.name for path in tmp_path.iterdir()} == {"sft", "other"}


@pytest.mark.parametrize("order", ["random", "group_by_length"])
def test_evaluation_on_the_way_is_logged_and_drawn(
    order: str, preferences: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mmedpo.hub.cards import write_adapter_card

    evaluated = {"eval_split": "train", "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4,
                 "train_sampling_strategy": order}  # fmt: skip
    arguments_ = arguments(preferences, tiny_model, tmp_path / "adapter", **evaluated)
    run.main(arguments_, card=write_adapter_card)
    folder = tmp_path / "adapter"
    assert capsys.readouterr().out.splitlines()[-4:] == [
        f"Adapter: {folder}", f"Card: {folder / 'README.md'}",
        f"Curves: {folder / 'curves.png'}; their numbers: {folder / 'trainer_state.json'}",
        f"Facts of the run: {folder / 'training.json'}; to repeat it: {folder / 'recipe.yaml'}",
    ]  # fmt: skip
    log = json.loads((tmp_path / "adapter" / "trainer_state.json").read_text())["log_history"]
    found = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in found] == [2, 4]
    assert all("eval_rewards/margins_lesion_noise" in entry for entry in found)
    assert (tmp_path / "adapter" / "curves.png").stat().st_size > 5000
    assert "![Curves of training](curves.png)" in (tmp_path / "adapter" / "README.md").read_text()


@pytest.mark.slow
def test_a_streamed_dataset_trains_and_resumes(preferences: Path, tiny_model: Path, tmp_path: Path) -> None:
    steps = {"streaming": "true", "max_steps": 30, "save_strategy": "steps", "save_steps": 28, "learning_rate": 1e-4}
    run.main(arguments(preferences, tiny_model, tmp_path / "adapter", **steps))
    assert len(history(tmp_path / "adapter")) == 30  # 97 pairs are 25 steps, so that the second pass began
    command = arguments(preferences, tiny_model, tmp_path / "resumed", **steps)
    environment = {**os.environ, "KILL_AT": "28", "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, str(KILLED), *command], capture_output=True, check=False, env=environment)
    assert killed.returncode == -9, killed.stderr[-1000:]
    run.main([*command, "--resume"])
    assert history(tmp_path / "resumed") == pytest.approx(history(tmp_path / "adapter"), abs=1e-6)
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert record["streamed"] and record["rows"] == {} and record["weights"] == {"method": "rescale"}


def test_the_written_recipe_repeats_the_run(
    preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train_sampling_strategy": "group_by_length", "loss_type": "ipo", "loss_weights": "0.5", "lora_r": 4}
    run.main(arguments(preferences, tiny_model, tmp_path / "first", **changes))
    recipe = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    assert recipe["dataset_name"] == "pairs" and recipe["lora_r"] == 4
    monkeypatch.chdir(preferences.parent)
    again = ["--config", str(tmp_path / "first" / "recipe.yaml"), "--output", str(tmp_path / "second")]
    run.main([*again, "--model_name_or_path", str(tiny_model)])
    assert history(tmp_path / "second") == history(tmp_path / "first")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_implementation": "flex_attention"}, "flex_attention: torch has its gradients on GPUs only. Use sdpa"),
        ({"trust_remote_code": "true"}, "only models whose code ships with transformers"),
        ({"eval_split": "train"}, "eval_strategy is 'no' and eval_split 'train'"),
        ({"eval_strategy": "epoch"}, "eval_split None: evaluating during training needs both"),
        ({"streaming": "true", "max_steps": -1, "save_strategy": "no"}, "no known length and no epochs: give --max"),
        (
            {"streaming": "true", "save_strategy": "no", "pairs_per_image": 4},
            "images of a streamed dataset are not known",
        ),
        ({"streaming": "true", "save_strategy": "epoch"}, "no known length and no epochs: give --max"),
        ({"train_sampling_strategy": "group_by_length", "pairs_per_image": 8}, "pairs_per_image orders the pairs itse"),
        ({"pairs_per_image": 0}, "pairs_per_image is 0; it must be at least 1"),
        ({"loss_type": "tdpo_kl", "loss_weights": "1.0"}, "has no preference loss: add sigmoid or ipo or"),
        ({"loss_type": "robust", "loss_weights": 1.0}, "robust with label_smoothing 0 is sigmoid"),
        ({"beta": 0.0}, "beta is 0.0; it must be positive"),
        ({"seed": 2**32}, "seed is 4294967296; it must be at least 0 and at most 4294967295"),
        ({"data_seed": -1}, "data_seed is -1; it must be at least 0"),
        ({"projector_learning_rate": 0.0}, "must be positive"),
        ({"projector_learning_rate": -1.0}, "projector_learning_rate is -1.0; it must be at least 0"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be at least 0 and at most 100"),
        ({"beta": "inf"}, "beta is inf; it must be at least 0 and at most 1000"),
        ({"loss_weights": "nan"}, "loss_weights is nan; it must be a finite number"),
        ({"num_train_epochs": 1e9}, "num_train_epochs is 1000000000.0; it must be at least 0 and at most 10000"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0; it must be at least 1"),
        ({"lora_r": 0}, "lora_r is 0; it must be at least 1"),
        ({"lora_dropout": 2.0}, "lora_dropout is 2.0; it must be at least 0 and at most 1"),
        ({"train_sampling_strategy": "batch_rebalance"}, "use random or group_by_length"),
        (
            {"report_to": "comet_ml"},
            "report_to 'comet_ml': comet_ml is not installed. Install it: pip install comet-ml$",
        ),
        ({"report_to": "dvclive"}, "report_to 'dvclive': dvclive is not installed"),  # a folder is no package
        (
            {"deepspeed": '{"zero_optimization": {"stage": 1}}'},
            "ZeRO needs a launcher, for one process too. Start the training with `accelerate launch",
        ),
        (
            {"deepspeed": '{"zero_optimization": {"stage": 1}, "wandb": {"enabled": true}}'},
            "deepspeed wandb: DeepSpeed's own monitors",
        ),
        ({"report_to": "wandbb"}, "report_to 'wandbb': no such tracker. Use none or .*tensorboard"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    changes: dict[str, Any], message: str, preferences: Path, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "here" / "dvclive").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "here")
    with pytest.raises(InputError, match=message):
        run.main(arguments(preferences, tiny_model, tmp_path / "adapter", **changes))
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_batches_are_of_one_kind_and_length_and_a_resumed_epoch_has_the_same_order(rows: Dataset) -> None:
    class Words:
        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[0] * len(text.split()) for text in texts]}

    lengths, kinds = lengths_and_kinds(rows, Words())
    assert kinds == rows["dispreference"][:]
    assert lengths[0] == sum(
        len(schema.message_text(rows[0][side]).split()) for side in ("prompt", "chosen", "rejected")
    )
    sampler = GroupedSampler(lengths, kinds, batch_size=4, seed=3)
    order = list(sampler)
    shuffled = [(7 * i) % len(rows) for i in range(len(rows))]
    assert sorted(order) == sorted(shuffled) == list(range(len(rows)))

    def spread(order: list[int], values: list[int]) -> float:
        batches = [[values[row] for row in order[i : i + 4]] for i in range(0, len(order), 4)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    assert spread(order, kinds) < 0.25 < 0.6 < spread(shuffled, kinds)
    assert spread(order, lengths) < 0.6 * spread(shuffled, lengths)
    assert max(lengths) in [lengths[row] for row in order[:4]], "the longest row comes first"
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != order and sorted(second) == sorted(order)
    resumed = GroupedSampler(lengths, kinds, batch_size=4, seed=3)
    resumed.set_epoch(1)
    assert list(resumed) == second


def test_the_projector_is_trained_alone_on_quantised_weights_too(
    preferences: Path, quantisable: Path, tmp_path: Path, trainers: list[MMedPOTrainer]
) -> None:
    changes = {"load_in_4bit": "true", "dtype": "bfloat16", "bf16": "true", "projector_learning_rate": 1e-2}
    run.main(arguments(preferences, quantisable, tmp_path / "adapter", **changes))
    (trainer,) = trainers
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert any("projector" in name for name in trained)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum("projector" in name for name in saved) == 4


def test_a_projector_that_nobody_made_trainable_is_refused(
    text_rows: Dataset, make_trainer: Callable[..., MMedPOTrainer]
) -> None:
    with pytest.raises(InputError, match="but its parameters are frozen"):
        make_trainer(text_rows, projector_learning_rate=1e-3)
    with pytest.raises(InputError, match=r"but trained are model\.vision_tower\S+, .* and others"):
        make_trainer(text_rows, lora=False, frozen=lambda name: False, projector_learning_rate=1e-3)
    with pytest.raises(InputError, match=r"the vision tower is never trained, but trained are model\.vision_tower"):
        make_trainer(text_rows, lora=False, frozen=lambda name: False)


def test_the_separate_reference_is_loaded_as_the_model_was(
    preferences: Path, tiny_model: Path, tmp_path: Path, trainers: list[MMedPOTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    load = training_model.load_model
    monkeypatch.setattr(training_model, "load_model", lambda *a, **k: calls.append((a, k)) or load(*a, **k))
    changes = {"use_peft": "false", "model_revision": "v1", "attn_implementation": "eager", "max_steps": 1}
    run.main(arguments(preferences, tiny_model, tmp_path / "model", **changes))
    assert len(calls) == 2 and calls[0] == calls[1] and calls[0][0][1:] == ("v1", "float32", "eager")
    assert trainers[0].ref_model is not None and trainers[0]._frozen
