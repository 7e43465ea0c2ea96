"""Attention over image tokens: of every family that is trained, with real processors and tiny random models.

Where a token lies is checked from the other end: parts of a picture are inverted one at a time, and a token must be
drawn about the middle of the parts that change its features. Vision towers mix their patches in attention layers, which
are silenced for that.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "training"))  # its families and processors

from families import FAMILIES
from processors import CLIP, known_without_video, matched

from mmedpo.cli import main
from mmedpo.data.images import open_rgb
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.evaluation import attention
from mmedpo.evaluation.attention_picture import draw
from mmedpo.evaluation.attention_weights import Reading, answer_tokens, attending, layer_numbers, read
from mmedpo.evaluation.image_tokens import Grid, count, grids, spread
from mmedpo.models.adapters import adapter_digest
from mmedpo.models.vision_language import Sampling, VisionLanguageModel, encode
from mmedpo.training.model import language_model_linears

PADDED = "LLaVA (Llama), padded to a square"  # as `mmedpo convert` writes LLaVA-1.5
SIZES = [(160, 64), (72, 144), (96, 80)]  # width and height in pixels
PARTS = 12  # a side, of the pictures that are inverted one at a time
QUESTION, ANSWER = "Is there an effusion?", "Yes, on the left."
WINDOWS = {"LLaVA (Mistral, sliding window)": 20, "Gemma3": 24}  # that end amid the image's tokens


def picture(size: tuple[int, int]) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def with_adapter(base: Path, adapter: Path) -> None:
    """Save a LoRA adapter with drawn weights."""
    from peft import LoraConfig, get_peft_model

    model = VisionLanguageModel(str(base)).model
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=language_model_linears(model), init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(adapter)


@pytest.fixture(scope="module", autouse=True)
def processors_known() -> Iterator[None]:
    with known_without_video():
        yield


@pytest.fixture(scope="module", params=[*FAMILIES, PADDED])
def family(
    request: pytest.FixtureRequest, processors_known: None, tmp_path_factory: pytest.TempPathFactory
) -> VisionLanguageModel:
    folder, name = tmp_path_factory.mktemp("family") / "base", request.param.partition(", padded")[0]
    processor, model = matched(name)
    if request.param == PADDED:
        from transformers import LlavaImageProcessorPil

        processor.image_processor = LlavaImageProcessorPil(**CLIP, do_pad=True)
    if name in WINDOWS:
        model.config.text_config.sliding_window = WINDOWS[name]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return VisionLanguageModel(str(folder))


def features(model: VisionLanguageModel, pictures: list[Image.Image]) -> torch.Tensor:
    """Return the features of the image tokens of each picture, with the attention of the vision tower silenced."""
    caught: list[torch.Tensor] = []

    def silence(module: Any, arguments: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        return (torch.zeros_like(first), *rest) if isinstance(output, tuple) else torch.zeros_like(first)

    decoder = model.model.get_decoder()
    inside = set(decoder.modules())
    mixing = [m for m in model.model.modules() if m not in inside and type(m).__name__.endswith("Attention")]
    assert mixing
    handles = [module.register_forward_hook(silence) for module in mixing]
    handles.append(
        decoder.register_forward_pre_hook(lambda _, __, given: caught.append(given["inputs_embeds"]), with_kwargs=True)
    )
    inputs = encode(model.processor, [(shown, QUESTION) for shown in pictures])
    with torch.inference_mode():
        model.model(**inputs)
    for handle in handles:
        handle.remove()
    places = inputs["input_ids"] == model.model.config.image_token_id
    return caught[0][places].view(len(pictures), int(places[0].sum()), -1)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_tokens_are_drawn_where_their_pixels_are(family, size):
    whole, pixels = picture(size), np.asarray(picture(size))
    changed, middles = [], []
    for row, column in np.ndindex(PARTS, PARTS):
        top, bottom = row * size[1] // PARTS, (row + 1) * size[1] // PARTS
        left, right = column * size[0] // PARTS, (column + 1) * size[0] // PARTS
        inverted = pixels.copy()
        inverted[top:bottom, left:right] = 255 - inverted[top:bottom, left:right]
        changed.append(Image.fromarray(inverted))
        middles.append(((top + bottom) / 2, (left + right) / 2))
    made = features(family, [whole, *changed])
    change = (made[1:] - made[0]).norm(dim=-1).square().double().numpy()  # parts x tokens
    inputs = encode(family.processor, [(whole, QUESTION)])
    found = grids(family.model.config, family.processor, inputs, whole)
    drawn = np.concatenate([grid.tokens.flatten() for grid in found])
    assert len(set(drawn)) == len(drawn), "no token is in two places"
    showing = set(np.flatnonzero(change.max(axis=0) > 1e-6))
    assert showing <= set(drawn), "every token that shows something has its place"
    assert len(showing) >= 4
    for token in showing:
        cell = np.argwhere(spread(np.eye(made.shape[1])[token], found, *size)) + 0.5
        off = np.average(middles, axis=0, weights=change[:, token]) - cell.mean(axis=0)
        assert (np.abs(off) < np.ptp(cell, axis=0) / 4).all()


def test_grids_are_the_families_own(family):
    """By hand, for a picture of 160 x 64 pixels; tiles are of 16 pixels, tokens of 8."""
    shown = picture(SIZES[0])
    inputs = encode(family.processor, [(shown, QUESTION)])
    found = grids(family.model.config, family.processor, inputs, shown)
    tile = (2, 2)
    expected = {
        "llava": [tile], "gemma3": [tile], "paligemma": [tile],
        "llava_next": [tile, (2, 4)],  # a canvas of two tiles
        "internvl": [tile] * 4, "idefics3": [tile] * 3, "smolvlm": [tile] * 3,  # 3 or 2 tiles, and then the whole
        "qwen2_5_vl": [(2, 6)], "qwen3_vl": [(2, 6)],  # scaled to 48 x 16: at most 1,024 pixels
    }  # fmt: skip
    assert [grid.tokens.shape for grid in found] == expected[family.model.config.model_type]
    if family.model.config.model_type == "llava":
        padded = getattr(family.processor.image_processor, "do_pad", False)
        assert found[0].edges == ((0, -48, 160, 112) if padded else (48, 0, 112, 64))


def stepwise(family: VisionLanguageModel, forced: list[int]) -> np.ndarray:
    """The attention by the book: the whole text anew for each token, no cache, all matrices of all layers."""
    model = family.model
    inputs = dict(encode(family.processor, [(picture(SIZES[2]), QUESTION)]))
    inputs.pop("labels", None)  # PaliGemma's
    columns = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    paligemma = model.config.model_type == "paligemma"  # whose 0 is the prefix, seen in both directions
    marks = {"input_ids": None, "attention_mask": 1, "token_type_ids": int(paligemma), "mm_token_type_ids": 0}
    read = []
    for token in forced:
        with torch.inference_mode():
            weights = model(**inputs, use_cache=False, output_attentions=True).attentions
        read.append(torch.stack([layer[0, :, -1, columns].mean(dim=0) for layer in weights]))
        for name, mark in marks.items():
            if name in inputs:
                more = torch.tensor([[token if mark is None else mark]])
                inputs[name] = torch.cat([inputs[name], more], dim=1)
    return torch.stack(read).mean(dim=(0, 1)).numpy()


def test_weights_are_those_of_the_whole_text_read_anew_for_each_token(family):
    layers = attending(family)
    assert len(layers) == 2
    forced = answer_tokens(family.processor, QUESTION, ANSWER)[:6]
    inputs = family.encode([(picture(SIZES[2]), QUESTION)])
    reading = read(family, inputs, forced, layers)
    assert reading.answer and ANSWER.startswith(reading.answer)
    assert len(reading.mass) == count(family.model.config, inputs)
    assert 0.01 < reading.mass.sum() < 1
    family.model.set_attn_implementation("eager")
    assert np.allclose(reading.mass, stepwise(family, forced), atol=1e-5)


WHOLE = Grid(np.arange(4).reshape(2, 2), (0, 0, 4, 4))


def box(x: float, y: float, width: float, height: float) -> Box:
    return Box("nodule", x, y, width, height)


def shares(mass: list[float], grid: Grid, *boxes: Box) -> dict[str, float | None]:
    """Of an image of 4 x 4 pixels."""
    weights = np.array(mass)
    return attention.measure(weights, [spread(weights, [grid], 4, 4)], [attention.seen([grid], 4, 4)], [boxes])


@pytest.mark.parametrize(
    ("mass", "grid", "boxes", "in_box", "lift"),
    [
        ([0.1, 0.1, 0.1, 0.1], WHOLE, [box(1, 0.5, 2, 2.25)], 4.5 / 16, 1.0),
        ([0.4, 0.1, 0.0, 0.0], WHOLE, [box(0, 0, 2, 2)], 0.8, 0.8 * 4),
        ([0.4, 0.1, 0.0, 0.0], WHOLE, [box(1, 1, 2, 2)], 0.25, 1.0),  # a quarter of each token
        ([0.4, 0.1, 0.0, 0.0], WHOLE, [box(0, 0, 2, 2), box(1, 0, 1, 1)], 0.8, 0.8 * 4),  # one inside the other
        ([0.4, 0.1, 0.0, 0.0], WHOLE, [box(-2, -2, 4, 4)], 0.8, 0.8 * 4),  # half outside of the image
        # Cropped to the two columns in the middle: of 8 pixels seen, the box has 2.
        ([0.4, 0.1, 0.0, 0.0], Grid(WHOLE.tokens, (1, 0, 3, 4)), [box(0, 0, 2, 2)], 0.8, 0.8 * 4),
        ([0.4, 0.1, 0.0, 0.0], Grid(WHOLE.tokens, (1, 0, 3, 4)), [box(0, 0, 1, 4)], None, None),
        # Padded below to 4 x 8: the lower tokens show nothing, the upper ones all.
        ([0.2, 0.1, 0.5, 0.2], Grid(WHOLE.tokens, (0, 0, 4, 8)), [box(0, 0, 2, 4)], 2 / 3, 4 / 3),
        ([0.0, 0.0, 0.0, 0.0], WHOLE, [box(0, 0, 2, 2)], None, None),
        ([0.4, 0.1, 0.0, 0.0], WHOLE, [], None, None),
    ],
)  # fmt: skip
def test_share_in_the_box_is_that_worked_out_by_hand(mass, grid, boxes, in_box, lift):
    expected = {"on_image": sum(mass), "in_box": in_box, "lift": lift}
    assert shares(mass, grid, *boxes) == {name: value and pytest.approx(value) for name, value in expected.items()}


def test_shares_of_several_images_are_over_all_of_them():
    heats, seen = [np.full((2, 2), 0.1), np.array([[0.6, 0], [0, 0]])], [np.ones((2, 2), bool)] * 2
    found = attention.measure(np.full(8, 0.125), heats, seen, [(), (Box("", 0, 0, 1, 1),)])
    assert found == pytest.approx({"on_image": 1.0, "in_box": 0.6, "lift": 0.6 / (1 / 8)})


def test_map_holds_the_mass_of_what_lies_in_the_image():
    mass, half = np.array([0.1, 0.2, 0.3, 0.4]), Grid(WHOLE.tokens, (0, 0, 7, 4.5))
    assert spread(mass, [WHOLE], 7, 5).sum() == pytest.approx(1)
    assert spread(mass, [half, WHOLE], 7, 5).sum() == pytest.approx(2), "of tiles and the whole"
    assert spread(mass, [Grid(WHOLE.tokens, (0, 0, 14, 5))], 7, 5).sum() == pytest.approx(0.4), "0.1 + 0.3"


def yellow(file: Path) -> np.ndarray:
    """Middle (x, y) of the brightest colour over black, in the panels of a picture, for each of its thirds."""
    red, green, blue = np.asarray(Image.open(file).convert("RGB")).astype(int).transpose(2, 0, 1)
    there = np.argwhere((red > 150) & (green > 150) & (blue < 150))[:, ::-1]
    third = there[:, 0] * 3 // (red.shape[1] * 0.93)  # the scale is on the right
    return np.array([there[third == number].mean(axis=0) for number in (1, 2)])


def test_pictures_show_each_map_in_its_place_on_one_scale(tmp_path):
    sample = Sample(
        "a", (SampleImage(Path("a.png"), "a"),), "Is $x_1$ < 3? 肺炎 \\frac", "yes $", "closed_vqa", None, "", "", ""
    )
    seen, black = np.ones((40, 60), bool), Image.new("RGB", (60, 40))
    numbers = {run: {"on_image": 0.5, "in_box": None, "lift": None} for run in attention.RUNS}
    found = []
    for first, second in (((5, 5), (30, 50)), ((30, 50), (5, 5))):
        heats = {run: np.full((40, 60), 1e-3) for run in attention.RUNS}
        for heat, (row, column) in zip(heats.values(), (first, second), strict=True):
            heat[row : row + 5, column : column + 5] = 1.0
        file = tmp_path / f"{first[0]}.png"
        maps = {run: [heat] for run, heat in heats.items()}
        draw(file, [black], sample, maps, [seen], numbers, dict.fromkeys(attention.RUNS, "yes"))
        found.append(yellow(file))
    (before, after), (before_swapped, after_swapped) = found
    moved = before_swapped - before
    assert moved[1] / moved[0] == pytest.approx(25 / 45, rel=0.05), "45 pixels to the right and 25 down"
    assert np.allclose(after_swapped - after, -moved, atol=2)


@pytest.fixture(scope="module")
def random_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapter = tmp_path_factory.mktemp("adapter") / "random"
    with_adapter(tiny_model, adapter)
    return adapter


def command(model: Path, adapter: Path, source: Path, output: Path, *more: str) -> int:
    """Exit code of `mmedpo attention`."""
    words = ["--model", str(model), "--adapter", str(adapter), "--source", str(source), "--output", str(output)]
    with pytest.raises(SystemExit) as ended:
        main(["attention", *words, *more])
    return ended.value.code


def test_command_writes_pictures_and_their_numbers(tiny_model, random_adapter, corpus, tmp_path):
    output = tmp_path / "attention"
    assert command(tiny_model, random_adapter, corpus, output, "--split", "test", "--limit", "3") == 0
    found = json.loads((output / "attention.json").read_text(encoding="utf-8"))
    assert found["format"] == "mmedpo.attention/1" and found["adapter"] == "random"
    assert (found["adapter_revision"], found["adapter_sha256"]) == (None, adapter_digest(str(random_adapter)))
    assert sorted(file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()) == sorted(
        [".settings.sha256", "attention.json", "questions.jsonl", *(row["picture"] for row in found["samples"])]
    )
    there = {sample.id: sample for sample in read_source(corpus, "test").samples if sample.boxes}
    assert len(found["samples"]) == 3 and all(row["id"] in there for row in found["samples"])
    plain, row = VisionLanguageModel(str(tiny_model)), found["samples"][0]
    sample = there[row["id"]]
    inputs = plain.encode([(open_rgb(sample.images[0].file), sample.question)])
    forced = answer_tokens(plain.processor, sample.question, sample.answer)
    mass = read(plain, inputs, forced, attending(plain)).mass
    assert row["on_image"]["start"] == pytest.approx(mass.sum(), abs=1e-6), "before is the model without adapter"
    assert abs(row["on_image"]["adapter"] - row["on_image"]["start"]) > 1e-3
    for name in attention.SHARES:
        start, adapter = ([row[name][run] for row in found["samples"]] for run in attention.RUNS)
        summary = found["summary"][name]
        assert summary["start"]["value"] == pytest.approx(np.mean(start))
        assert summary["adapter"]["difference"] == pytest.approx(np.mean(adapter) - np.mean(start))
        assert min(start) <= summary["start"]["low"] <= summary["start"]["value"] <= summary["start"]["high"]


def test_interrupted_reading_goes_on(tiny_model, random_adapter, corpus, tmp_path, monkeypatch):
    more = ("--split", "test", "--limit", "2", "--answer", "own", "--layers", "1", "--max-new-tokens", "5")
    assert command(tiny_model, random_adapter, corpus, tmp_path / "whole", *more) == 0
    drawn: list[Path] = []

    def interrupting(file: Path, *arguments: Any) -> None:
        if drawn:
            raise KeyboardInterrupt
        drawn.append(file)
        draw(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(attention, "draw", interrupting)
        assert command(tiny_model, random_adapter, corpus, tmp_path / "torn", *more) == 130
    assert len(drawn) == 1 and not (tmp_path / "torn").exists()
    assert command(tiny_model, random_adapter, corpus, tmp_path / "torn", *more, "--resume") == 0
    whole, torn = (json.loads((tmp_path / name / "attention.json").read_text("utf-8")) for name in ("whole", "torn"))
    assert torn["samples"] == whole["samples"] and torn["summary"] == whole["summary"]
    assert len(list((tmp_path / "torn" / "pictures").iterdir())) == 2


def test_source_without_boxes_gets_pictures_and_is_told_so(tiny_model, random_adapter, make_source, tmp_path, capsys):
    source = make_source([{"image": "a.png", "question": "Is there a nodule?", "answer": "no"}])
    assert command(tiny_model, random_adapter, source, tmp_path / "attention") == 0
    assert "No question of source has a lesion box" in " ".join(capsys.readouterr().out.split())
    found = json.loads((tmp_path / "attention" / "attention.json").read_text(encoding="utf-8"))
    assert found["samples"][0]["in_box"] == {"start": None, "adapter": None}
    assert found["summary"]["lift"] is None and found["summary"]["on_image"]["start"]["value"] > 0
    assert (tmp_path / "attention" / found["samples"][0]["picture"]).exists()


def test_boxes_outside_of_their_image_are_all_named(make_source):
    ask = {"question": "Is there a nodule?", "answer": "yes"}
    outside = {"label": "nodule", "x": 32, "y": 0, "width": 5, "height": 5}  # of 32 x 32 pixels
    rows = [{"id": name, "image": "a.png", **ask, "boxes": [{**outside, "x": x}]} for name, x in
            (("p", 32), ("q", -5), ("r", 31))]  # fmt: skip
    with pytest.raises(InputError, match="2 faults in the lesion boxes") as raised:
        attention.boxed(read_source(make_source(rows)).samples)
    assert [fault.row for fault in raised.value.faults] == ["p", "q"]


def test_adapter_of_another_model_is_refused(tiny_model, random_adapter, corpus, tmp_path, capsys):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    assert command(other, random_adapter, corpus, tmp_path / "attention") == 2
    assert "was trained on" in capsys.readouterr().err
    assert not list(tmp_path.glob("attention*"))


@pytest.mark.parametrize("layers", ["", "1,", "-1", "3-2", "0.5", "first"])
def test_layers_that_mean_nothing_are_refused(layers):
    with pytest.raises(InputError, match="numbers and ranges"):
        attention.Settings(layers=layers)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(tiny_model))


@pytest.fixture(scope="module")
def sample(corpus: Path) -> Sample:
    return read_source(corpus, "test").samples[0]


def inputs_of(model: VisionLanguageModel, sample: Sample) -> Any:
    return model.encode([(open_rgb(sample.images[0].file), sample.question)])


def test_layers_are_chosen_by_number(model):
    first, second = attending(model)
    assert attending(model, "1") == [second] and attending(model, "1,0-1") == [first, second]
    assert layer_numbers("0,16-18") == [0, 16, 17, 18]
    with pytest.raises(InputError, match="has layers 0 to 1"):
        attending(model, "1-2")


def test_unknown_families_and_layouts_are_refused(model, sample):
    image, config, inputs = open_rgb(sample.images[0].file), model.model.config, inputs_of(model, sample)
    unknown = SimpleNamespace(model_type="idefics2", image_token_id=config.image_token_id)
    with pytest.raises(InputError, match="'idefics2': the layout of its image tokens is unknown"):
        grids(unknown, model.processor, inputs, image)
    first = int((inputs["input_ids"][0] == config.image_token_id).nonzero()[0])
    fewer = {**inputs, "input_ids": inputs["input_ids"].clone()}
    fewer["input_ids"][0, first] = 0
    with pytest.raises(InputError, match="63 tokens do not form a square"):
        grids(config, model.processor, fewer, image)


def test_model_without_attention_weights_is_refused(model, sample):
    layers = attending(model)
    model.model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="returns no attention weights"):
        read(model, inputs_of(model, sample), None, layers)


def test_answer_that_cannot_be_said_is_refused(model, sample):
    forced = answer_tokens(model.processor, sample.question, "yes </s> no")
    with pytest.raises(InputError, match="cannot generate"):
        read(model, inputs_of(model, sample), forced, attending(model))


def test_own_answer_is_the_models_greedy_one(model, sample):
    reading = read(model, inputs_of(model, sample), None, attending(model), longest=8)
    shown = (open_rgb(sample.images[0].file), sample.question)
    assert [[reading.answer]] == model.answer([shown], Sampling(max_new_tokens=8))


THOUGHT = ["is", "no", "</think>", "yes", "normal"]


@pytest.fixture(scope="module")
def thinker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """The tiny model with a token that ends thoughts, in place of one of its words."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "thinker")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    own = tokenizer["model"]["vocab"]
    spare = [word for word in own if word.isalpha() and word not in THOUGHT]
    for word in THOUGHT:
        if word not in own:
            own[word] = own.pop(spare.pop())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": own["</think>"], "content": "</think>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return VisionLanguageModel(str(folder))


@pytest.mark.parametrize(
    ("said", "answer", "place"), [(THOUGHT, "yes normal", 3), (THOUGHT[3:], "yes normal", 0), (THOUGHT[:3], "", None)]
)
def test_own_answer_attends_without_its_thought(thinker, sample, said, answer, place):
    layers, inputs = attending(thinker), inputs_of(thinker, sample)
    tokens = thinker.processor.tokenizer.convert_tokens_to_ids([*said, "</s>"])

    def follow(module: Any, given: Any, logits: Any) -> Any:
        logits[..., next(steps)] += 1000
        return logits

    steps = iter(tokens)
    handle = thinker.model.lm_head.register_forward_hook(follow)
    reading = read(thinker, inputs, None, layers)
    handle.remove()
    assert reading.answer == answer
    if place is None:
        assert (reading.mass.sum(), reading.unanswered) == (0, "the answer is empty")
        return
    whole = read(thinker, inputs, tokens[:-1], layers).mass * len(said)
    thought = read(thinker, inputs, tokens[:place], layers).mass * place if place else 0
    assert np.allclose(reading.mass, (whole - thought) / 2, atol=1e-6) and reading.mass.sum() > 0


def test_question_without_an_answer_is_left_out_and_counted(
    tiny_model: Path, random_adapter: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def unfinished(*given: Any) -> Any:
        reading = read(*given)
        calls.append(reading)
        return Reading("", 0 * reading.mass, "its thought was not finished") if len(calls) == 2 else reading

    calls: list[Reading] = []
    monkeypatch.setattr(attention, "read", unfinished)
    more = ("--split", "test", "--limit", "2", "--answer", "own", "--max-new-tokens", "5")
    assert command(tiny_model, random_adapter, corpus, tmp_path / "out", *more) == 0
    found = json.loads((tmp_path / "out" / "attention.json").read_text(encoding="utf-8"))
    lost, kept = found["samples"]
    assert lost["unanswered"] == {"adapter": "its thought was not finished"} and "unanswered" not in kept
    assert lost["on_image"]["adapter"] is None and lost["answers"]["adapter"] == ""
    assert (found["summary"]["n"], found["summary"]["unanswered"]) == (2, 1)
    assert found["summary"]["on_image"]["start"]["value"] == pytest.approx(kept["on_image"]["start"])
    assert "1 of 2 questions got no answer" in " ".join(capsys.readouterr().out.split())
