"""Shared prefill, family by family: the answers are those of plain `generate`, with the processors' own inputs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmedpo.models import prefill
from mmedpo.models.generation import Sampling
from mmedpo.models.prompts import LOOK_AHEAD, Sharing, ask
from mmedpo.models.vision_language import VisionLanguageModel

sys.path.append(str(Path(__file__).parents[1] / "training"))
from families import FAMILIES
from processors import known_without_video, save

TEXTS = ("Is there an effusion?", "What?", "What is shown in this image? Is the heart enlarged?", "No.", "Yes, on?")
GREEDY, SAMPLED = Sampling(max_new_tokens=8), Sampling(max_new_tokens=8, temperature=1.0, samples=4, seed=3)


def picture(number: int, width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8))


def questions() -> list[tuple[Image.Image, str]]:
    """Questions of unequal length about two images of unequal size; an image is opened twice, another shown once."""
    shown = [picture(0), picture(1, 40, 16), picture(0), picture(1, 40, 16), picture(2)]
    return [*zip(shown, TEXTS, strict=True), (shown[0], TEXTS[2]), (shown[1], TEXTS[0])]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisionLanguageModel]:
    folder = tmp_path_factory.mktemp("prefill")
    with known_without_video():
        save(request.param, folder)
        yield VisionLanguageModel(str(folder))


def plain(model: VisionLanguageModel, asked: Any, sampling: Sampling) -> list[list[str]]:
    """The answers without anything shared, as they were before."""
    inputs = model.encode(asked)
    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": 1.0, "top_k": 0}
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        said = model.model.generate(
            **inputs, max_new_tokens=sampling.max_new_tokens, num_return_sequences=sampling.samples, **choice
        )
    width = inputs["input_ids"].shape[1]
    texts = [model.reader.read([], tokens, sampling.max_new_tokens).said or "" for tokens in said[:, width:].tolist()]
    return [texts[i : i + sampling.samples] for i in range(0, len(texts), sampling.samples)]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_answers_are_the_plain_ones_and_images_are_seen_once(
    model: VisionLanguageModel, sampling: Sampling, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefill, "ROOM", 3)  # the cache grows within the answers
    model.generating = Sharing(model.processor, model.called)
    asked = questions()
    with caplog.at_level(logging.WARNING):
        found = model.answer(asked, sampling)
    assert found == plain(model, asked, sampling) and not caplog.records
    assert len({texts[0] for texts in found}) > 1
    prompts = model.prompts(asked, sampling)
    looks_ahead = type(model.processor).__name__ in LOOK_AHEAD
    assert model.generating.share == ("prompt" if looks_ahead else "images")
    assert max(prompts.owners) + 1 == (len(asked) - 1 if looks_ahead else 3)  # one question is asked twice


@pytest.mark.parametrize("broken", [False, True])
def test_parts_of_a_batch_are_answered_from_the_same_trunks(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    model.generating = Sharing(model.processor, model.called)
    begun, begin, select = [], prefill.begin, prefill._select
    monkeypatch.setattr(prefill, "begin", lambda *given: begun.append(given) or begin(*given))
    if broken:
        monkeypatch.setattr(
            prefill, "_select", lambda model, cache, rows, *given: select(model, cache, rows * 0, *given)
        )
    asked, parts = questions(), [(2, replace(SAMPLED, seed=1)), (4, replace(SAMPLED, max_new_tokens=3)), (1, SAMPLED)]
    found = [*prefill.answers(model, model.prompts(asked, SAMPLED), parts)]
    places = ((0, 2), (2, 6), (6, 7))
    own = [plain(model, asked[i:j], sampling) for (i, j), (_, sampling) in zip(places, parts, strict=True)]
    assert [[[one.said or "" for one in those] for those in part] for part in found] == own
    assert model.generating.share == ("" if broken else Sharing(model.processor, "").share)
    assert broken or len(begun) == 2  # with that of the few that are verified


def test_tokens_of_prompts_are_those_of_the_processor(model: VisionLanguageModel) -> None:
    asked = questions()
    whole = model.encode(asked)
    for share in ("images", "prompt", ""):
        prompts = ask(model.processor, asked, share, 1)
        made = prefill.left_padded(prompts.tokens, prompts.filler)
        assert all(torch.equal(value, whole[name]) for name, value in made.items())
    assert all(torch.equal(value, whole[name]) for name, value in prompts.pixels.items())


def test_a_model_that_computes_something_else_from_a_cache_answers_the_plain_way(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model.generating = Sharing(model.processor, model.called)
    select = prefill._select
    monkeypatch.setattr(prefill, "_select", lambda model, cache, rows, places: select(model, cache, rows * 0, places))
    asked = questions()
    ahead = model.prompts(asked, SAMPLED)  # read before the first batch is verified
    with caplog.at_level(logging.WARNING):
        assert model.answer(asked, SAMPLED) == plain(model, asked, SAMPLED)
        assert [[one.said or "" for one in own] for own in model.generate(ahead, SAMPLED)] == plain(
            model, asked, SAMPLED
        )
    assert model.generating.share == ""
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (1 if type(model.processor).__name__ in LOOK_AHEAD else 2)
    assert all("numbers differ" in line for line in said)


@pytest.mark.parametrize("written", ["{{ messages[0].content[-1].text }}%s", "{{ messages[0].content[-1] / 0 }}%s"])
def test_questions_that_a_template_writes_before_the_image_share_equal_prompts_alone(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    known = Sharing(model.processor, "").share
    image = getattr(model.processor, "image_token", "<image>")
    monkeypatch.setattr(model.processor, "chat_template", written % image)
    assert Sharing(model.processor, "").share == ("prompt" if "text" in written else known)


def masked(made: Any) -> Any:
    """`left_padded` or `rows` that says that padding is seen."""

    def seen(*given: Any) -> Any:
        inputs = made(*given)
        return inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}

    return seen


def wrong_cache(
    rows: Any = lambda rows: rows, places: Any = lambda places: places, select: Any = prefill._select
) -> Any:
    """`_select` of other rows, or of other places."""
    return lambda model, cache, chosen, wanted: select(model, cache, rows(chosen), places(wanted))


WRONG = {
    "first row for all": ("_select", wrong_cache(rows=lambda rows: rows * 0)),
    "row of another": ("_select", wrong_cache(rows=lambda rows: rows.roll(1))),
    "last row": ("_select", wrong_cache(rows=lambda rows: rows.where(rows < rows.max(), 0))),
    "one place off": ("_select", wrong_cache(places=lambda places: (places - 1).clamp(min=0))),
    "mask of trunks and answers": ("left_padded", masked(prefill.left_padded)),
    "places of the first": ("_select", wrong_cache(places=lambda places: places[:1].expand_as(places))),  # with tails
}


def test_few_prompts_show_what_is_computed_wrongly(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model.generating = Sharing(model.processor, model.called)
    shown = [picture(number, 20 + 8 * number, 24) for number in range(3, 8)]  # each asked about once
    asked = [*questions(), *zip(shown, TEXTS, strict=True)]
    prompts = model.prompts(asked, GREEDY)
    chosen = [asked[place] for place in prompts.few]
    few, plain_inputs = model.prompts(chosen, GREEDY), model.encode(chosen)
    assert few.kind == prompts.kind and few.repeated and len(chosen) <= 6 < len(asked)
    assert prefill._disagreement(model.model, plain_inputs, few, "model") is None
    for name, (function, wrong) in [*WRONG.items()][: None if "tails" in few.kind else -1]:
        with monkeypatch.context() as patch:
            patch.setattr(prefill, function, wrong)
            assert prefill._disagreement(model.model, plain_inputs, few, "model"), name


def test_batches_of_a_kind_are_verified_once_and_keep_their_images_until_then(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.generating = Sharing(model.processor, model.called)
    disagreement, verified = prefill._disagreement, []

    def counted(*given: Any) -> str | None:
        verified.append(given)
        return disagreement(*given)

    monkeypatch.setattr(prefill, "_disagreement", counted)
    one, two, few = questions()[:1], questions()[:2], Sampling(max_new_tokens=2, temperature=1.0, samples=2)
    apart = type(model.processor).__name__ in LOOK_AHEAD  # whose prompts never go on after a trunk
    batches = ((one, True), (two, True), (one, False), (questions(), not apart), (two, False), (questions(), False))
    for asked, new in batches:
        verified.clear()
        prompts = model.prompts(asked, few)
        assert prompts.repeated and bool(prompts.questions) == new
        model.generate(prompts, few)
        assert len(verified) == new
