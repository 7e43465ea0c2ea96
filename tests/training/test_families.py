"""Every family from a model folder to a merged model: trained by `mmedpo train`, answering through PEFT, merged, saved.

Models are tiny and random, processors real (processors.py says what stands in without torchvision). Rows are of both
kinds, with one and two images of different sizes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, IMAGE
from PIL import Image
from processors import PROCESSORS, known_without_video, save
from transformers import AutoConfig
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from mmedpo import schema
from mmedpo.data import loading, placeholders, shards
from mmedpo.data.images import png
from mmedpo.errors import InputError
from mmedpo.models import refusals
from mmedpo.models.sharing import read_answers
from mmedpo.models.vision_language import Sampling, VisionLanguageModel, load_model, load_processor, render
from mmedpo.training import run
from mmedpo.training.collator import PreferenceCollator
from mmedpo.training.trainer import MMedPOTrainer

SIZES = [(24, 20), (40, 16), (16, 16), (18, 36)]  # width and height in pixels
SETTINGS = {
    "max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.03, "lr_scheduler_type": "constant",
    "use_peft": "true", "lora_r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "dtype": "float32", "use_cpu": "true",
    "bf16": "false", "gradient_checkpointing": "false", "logging_steps": 1, "save_strategy": "no", "seed": 0,
    "disable_tqdm": "true", "report_to": "none",
}  # fmt: skip
QUESTIONS = ["What is shown in this image?", "Is there an effusion?", "Is the heart enlarged?"]


def picture(number: int) -> Image.Image:
    width, height = SIZES[number % len(SIZES)]
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8))


ASKED = [(picture(number), question) for number, question in enumerate(QUESTIONS)]


def said(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def row(name: str, images: list[int], rejected_images: list[int] | None, rejected: str) -> dict[str, Any]:
    def stored(numbers: list[int]) -> list[dict[str, Any]]:
        return [png(np.asarray(picture(number)), str(number)) for number in numbers]

    return {
        "id": name, "images": stored(images), "rejected_images": rejected_images and stored(rejected_images),
        "prompt": said("user", "Is there an effusion?"), "chosen": said("assistant", "Yes, on the left."),
        "rejected": said("assistant", rejected), "weight": 1.0 + len(images) / 4, "clinical_relevance": 0.5,
        "dispreference": "lesion_noise" if rejected_images else "hallucinated_response", "task": "open_vqa",
        "source": "drawn", "license": "cc0-1.0", "provenance": dict.fromkeys(schema.FEATURES["provenance"]),
    }  # fmt: skip


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preference dataset: a pair of texts, one of images, and one of each with two images of different sizes."""
    folder = tmp_path_factory.mktemp("datasets") / "families"
    rows = [
        row("text", [0], None, "No."), row("image", [1], [5], "Yes, on the left."),
        row("text, two images", [2, 3], None, "The heart is enlarged."),
        row("image, two images", [4, 5], [8, 9], "Yes, on the left."),
    ]  # fmt: skip
    shards.save(rows, folder)
    return folder


@dataclass
class Trained:
    """A family's tiny model, and what `mmedpo train` made of it."""

    base: Path
    adapter: Path
    merged: Path
    shared: bool  # whether the check that opens the training let pairs share rows

    @cached_property
    def said(self) -> dict[str, tuple[list[list[str]], torch.Tensor]]:
        """Greedy answers and logits of the base, of the adapter on it, and of both merged, saved and loaded."""
        adapted = VisionLanguageModel(str(self.base), str(self.adapter))
        said = {"base": answers(VisionLanguageModel(str(self.base))), "adapter": answers(adapted)}
        adapted.model.merge_and_unload().save_pretrained(self.merged)
        adapted.processor.save_pretrained(self.merged)
        return {**said, "merged": answers(VisionLanguageModel(str(self.merged)))}


def answers(model: VisionLanguageModel) -> tuple[list[list[str]], torch.Tensor]:
    with torch.inference_mode():
        logits = model.model(**model.encode(ASKED)).logits
    return model.answer(ASKED, Sampling(max_new_tokens=8)), logits


@pytest.fixture(scope="module", autouse=True)
def processors_known() -> Iterator[None]:
    with known_without_video():
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: pytest.FixtureRequest, processors_known: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the family's model and processor."""
    folder = tmp_path_factory.mktemp("family") / "base"
    save(request.param, folder)
    return folder


def train(base: Path, pairs: Path, output: Path, **changes: Any) -> None:
    settings = {**SETTINGS, "dataset_name": pairs, "model_name_or_path": base, "output": output, **changes}
    run.main([word for name, value in settings.items() for word in (f"--{name}", str(value))])


@pytest.fixture(scope="module")
def trained(base: Path, pairs: Path) -> Trained:
    made: list[MMedPOTrainer] = []

    class Remembered(MMedPOTrainer):
        def train(self, **settings: Any) -> Any:
            made.append(self)
            return super().train(**settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "MMedPOTrainer", Remembered)
        train(base, pairs, base.with_name("adapter"))
    return Trained(base, base.with_name("adapter"), base.with_name("merged"), made[0].data_collator.share)


@pytest.mark.parametrize("name", PROCESSORS)
def test_image_tokens_and_refused_images_are_known(name: str) -> None:
    processor = PROCESSORS[name]()
    for text in (processor.image_token, render(processor, "Where?")):
        assert placeholders.fault(text) and not placeholders.fault(render(processor, "Where?", 0))
    rows = [(f"{size}", {}, {"image": (size,)}) for size in ((24, 20), (4000, 10), (5, 7))]
    refused = [fault.row for fault in refusals.faults(processor, rows)]
    assert refused == (["(4000, 10)"] if name.startswith("Qwen") else [])


def test_prompts_are_what_transformers_makes_of_the_template(base: Path) -> None:
    processor, image = load_processor(str(base)), picture(0)
    own = PROCESSOR_MAPPING_NAMES[AutoConfig.from_pretrained(base).model_type]
    assert type(processor).__name__ in (own, f"{own}WithoutVideo")
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[0]}]
    theirs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"][0]
    model = VisionLanguageModel(str(base))
    asked = model.encode([(image, QUESTIONS[0])])
    assert asked["input_ids"][0].tolist() == list(theirs)
    pair = {"images": [image], "prompt": said("user", QUESTIONS[0]), "chosen": said("assistant", "Yes."),
            "rejected": said("assistant", "No."), "weight": 1.0}  # fmt: skip
    rows = PreferenceCollator(processor, share="images")([pair])
    assert rows["input_ids"][0][: len(theirs)].tolist() == list(theirs)
    with torch.no_grad():
        asked_for = model.model(**asked).logits[0, -1].log_softmax(dim=-1)[rows["answer_ids"][:, 0]]
        trained = sides(model.model.train(), rows)[:, 0]
    assert torch.allclose(trained, asked_for, atol=1e-4), "training and answering see the same prompt and image"


def sides(model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-probabilities of answer tokens in a batch of the collator."""
    plain = {name: value for name, value in rows.items() if name not in ("weight", "kind")}
    return read_answers(model, plain).logps()


def test_types_of_tokens_mark_images_for_gemma_and_answers_for_paligemma() -> None:
    pair = {"images": [picture(0)], "prompt": said("user", QUESTIONS[0]), "chosen": said("assistant", "Yes."),
            "rejected": said("assistant", "No."), "weight": 1.0}  # fmt: skip
    gemma, paligemma = (PreferenceCollator(PROCESSORS[name](), share="prompt") for name in ("Gemma3", "PaliGemma"))
    rows = gemma([pair])
    assert rows["token_type_ids"].bool().equal(rows["input_ids"] == IMAGE)
    rows = paligemma([pair])
    behind_prompt = torch.arange(rows["ends"].shape[1]) > rows["predictors"][0, 0]
    assert (rows["token_type_ids"][0] > 0).equal(behind_prompt), "answers are outside of its prefix"


def test_answers_do_not_depend_on_the_batch(base: Path) -> None:
    model, greedy = VisionLanguageModel(str(base)), Sampling(max_new_tokens=8)
    assert model.answer(ASKED, greedy) == [answer for asked in ASKED for answer in model.answer([asked], greedy)]


def test_a_shared_batch_gives_what_each_pair_gives_alone(base: Path, pairs: Path) -> None:
    processor, model, dataset = load_processor(str(base)), load_model(str(base)).eval(), loading.load(str(pairs))

    def sums(batch: list[dict[str, Any]], share: bool) -> torch.Tensor:
        with torch.no_grad():
            logps = sides(model, PreferenceCollator(processor, share=share)(batch))
        return torch.stack(logps.sum(dim=1).chunk(2), dim=1)

    together, alone = sums(list(dataset), share=True), torch.cat([sums([pair], share=False) for pair in dataset])
    assert torch.allclose(together, alone, atol=1e-3)  # of sums of about -100
    assert (alone[1] - alone[1].flip(0)).abs().min() > 0.1, "the same answer on another image"


def test_the_preflight_counts_the_tokens_of_the_longest_row(base: Path, pairs: Path, tmp_path: Path) -> None:
    rows = PreferenceCollator(load_processor(str(base)))(list(loading.load(str(pairs))))
    longest = rows["attention_mask"].sum(dim=1).max().item() + 1  # an answer's last token predicts nothing
    with pytest.raises(InputError, match=f"which cannot be cut; set {longest} or leave it out"):
        train(base, pairs, tmp_path / "adapter", max_length=longest - 1)


def test_pairs_of_every_family_share_rows(trained: Trained) -> None:
    assert trained.shared
    record = json.loads((trained.adapter / "training.json").read_text())
    assert record["rows"] == {"hallucinated_response": 2, "lesion_noise": 2}


def test_the_language_models_linear_layers_alone_are_trained(trained: Trained) -> None:
    assert trained.said  # merges
    base, merged = load_model(str(trained.base)), load_model(str(trained.merged))
    before, after = base.state_dict(), merged.state_dict()
    assert before.keys() == after.keys()
    linear = {f"{name}.weight" for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    outside = ("vision", "visual", "projector", "connector", "lm_head")
    language = {name for name in linear if not any(part in name for part in outside)}
    assert len(language) == 2 * 7, "query, key, value, output, gate, up and down in each of two layers"
    assert {name for name in before if not before[name].equal(after[name])} == language


def test_adapter_and_merged_model_give_the_same_answers(trained: Trained) -> None:
    (plain, plain_logits), (adapted, adapted_logits), (merged, merged_logits) = trained.said.values()
    assert adapted == merged != plain
    assert all(text for answer in adapted for text in answer)
    assert torch.allclose(adapted_logits, merged_logits, atol=5e-4)
    assert (adapted_logits - plain_logits).abs().max() > 1
