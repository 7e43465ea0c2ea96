"""Log-probabilities of answers, against one plain unbatched forward pass and against what training makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmedpo.data import loading
from mmedpo.errors import InputError
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.models import sharing
from mmedpo.models.answers import rendered
from mmedpo.models.prompts import Sharing
from mmedpo.models.sharing import read_answers
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.training.collator import PreferenceCollator

TRAINING_TESTS = str(Path(__file__).parents[1] / "training")
FAMILIES = (
    "LLaVA-NeXT",
    "Qwen2.5-VL",
    "Gemma3",
    "PaliGemma",
)  # tiles, positions by grid, marks, a prefix seen both ways


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(tiny_model))


@pytest.fixture(scope="module")
def rows(preferences: Path) -> list[dict[str, Any]]:
    """Pairs of both kinds."""
    dataset = loading.load(str(preferences))
    kinds = dataset["dispreference"]
    places = [i for kind in (0, 1) for i in [j for j, other in enumerate(kinds) if other == kind][:4]]
    return [dataset[place] for place in places]


def views(rows: list[dict[str, Any]]) -> list[View]:
    """Chosen sides first, as the collator has them."""
    return [
        View((side == "rejected" and row.get("rejected_images")) or row["images"], row["prompt"], row[side])
        for side in ("chosen", "rejected")
        for row in rows
    ]


def plainly(model: VisionLanguageModel, view: View) -> float:
    """One row, one pass, all logits: the text as the template writes it, token after token."""
    processor = model.processor
    question, answer = view.prompt[-1]["content"], view.answer[-1]["content"]
    text = f"<user> <image> {question} <assistant> "  # tiny.CHAT_TEMPLATE
    prompt = processor(text=text, images=list(view.images), return_tensors="pt")
    ids = processor.tokenizer(f"{answer} </s>", add_special_tokens=False, return_tensors="pt")["input_ids"]
    whole = torch.cat([prompt["input_ids"], ids], dim=1)
    with torch.inference_mode():
        logits = model.model(
            input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=prompt["pixel_values"]
        ).logits[0]
    first = prompt["input_ids"].shape[1]
    logps = logits.log_softmax(dim=-1)
    return sum(float(logps[first + i - 1, token]) for i, token in enumerate(ids[0]))


def test_a_padded_batch_gives_what_each_answer_gives_alone(model, rows):
    asked = views(rows)
    assert len({len(view.answer[-1]["content"].split()) for view in asked}) > 1  # or nothing would be padded
    found = answer_logps(model, asked)
    assert found == pytest.approx([plainly(model, view) for view in asked], abs=1e-4)
    assert found == pytest.approx([answer_logps(model, [view])[0] for view in asked], abs=1e-4)


def test_training_measures_the_same(model, rows):
    batch = PreferenceCollator(model.processor, share="images")(rows)
    del batch["weight"], batch["kind"]
    with torch.inference_mode():
        theirs = read_answers(model.model, batch).logps().sum(dim=1)
    assert answer_logps(model, views(rows)) == pytest.approx(theirs.tolist(), abs=1e-4)


def test_the_end_of_the_turn_belongs_to_the_answer_and_the_image_counts(model, rows):
    row = rows[0]
    view = View(row["images"], row["prompt"], row["chosen"])
    prompt, (answer,) = rendered(model.processor, view.prompt, 1, [view.answer])
    assert prompt.endswith("<assistant> ") and answer.rstrip().endswith("</s>")
    black = View([Image.new("RGB", row["images"][0].size)], row["prompt"], row["chosen"])
    seen, unseen = answer_logps(model, [view, black])
    assert abs(seen - unseen) > 1e-3


def test_a_template_that_rewrites_the_prompt_is_refused(model, rows, monkeypatch):
    monkeypatch.setattr(model.processor, "chat_template", "{{ messages | length }}")
    with pytest.raises(InputError, match="writes the prompt differently"):
        answer_logps(model, views(rows[:1]))


@pytest.fixture(scope="module")
def matched() -> Iterator[Any]:
    """The training tests' `matched`: a family's real processor and tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TRAINING_TESTS)
        import processors

        with processors.known_without_video():
            yield processors.matched


@pytest.mark.parametrize("name", FAMILIES)
def test_families_measure_as_training_does(matched, name):
    processor, made = matched(name)
    made.eval()
    model: Any = SimpleNamespace(processor=processor, model=made, device="cpu", called=name, tokenizing=Lock())
    model.scoring = Sharing(processor, name)

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    def picture(width: int, height: int) -> Image.Image:
        drawn = np.random.default_rng(width * height)
        return Image.fromarray(drawn.integers(0, 255, (height, width, 3), dtype=np.uint8))

    rows = [
        {"images": [picture(24, 20)], "prompt": said("user", "Is there an effusion?"), "weight": 1.0,
         "chosen": said("assistant", "Yes, on the left."), "rejected": said("assistant", "No.")},
        {"images": [picture(40, 16), picture(16, 16)], "rejected_images": [picture(40, 16), picture(18, 36)],
         "prompt": said("user", "What is shown in this image?"), "weight": 1.0,
         "chosen": said("assistant", "The heart."), "rejected": said("assistant", "The heart.")},
    ]  # fmt: skip
    batch = PreferenceCollator(processor)(rows)
    del batch["weight"], batch["kind"]
    with torch.inference_mode():
        theirs = read_answers(made, batch).logps().sum(dim=1)
    assert answer_logps(model, views(rows)) == pytest.approx(theirs.tolist(), abs=1e-4)
    assert model.scoring.share == ("prompt" if name == "PaliGemma" else "images")


def test_answers_about_one_image_are_a_row_and_one_that_is_wrong_is_not(model, rows, monkeypatch, caplog):
    image = rows[0]["images"]
    asked = [View(image, row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    expected = [answer_logps(model, [view])[0] for view in asked]
    lengths: list[int] = []
    hook = model.model.register_forward_pre_hook(
        lambda _, args, inputs: lengths.append(len(inputs["input_ids"])), with_kwargs=True
    )
    for scoring in (Sharing(model.processor, ""), Sharing(model.processor, "")):
        monkeypatch.setattr(model, "scoring", scoring)
        assert answer_logps(model, asked) == pytest.approx(expected, abs=1e-4)
        monkeypatch.setattr(sharing, "_related", lambda own, ends, positions: own)  # branches see each other
    hook.remove()
    assert lengths[:3] == [len(asked), 1, 1] and lengths[-1] == len(asked)
    assert [record.getMessage().count("numbers differ") for record in caplog.records] == [1] * len(caplog.records) != []
