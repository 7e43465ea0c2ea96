"""Texts and images that a processor refuses are faults of their rows, before anything is generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo import schema
from mmedpo.cli import main
from mmedpo.curation.plan import open_source
from mmedpo.curation.settings import Settings
from mmedpo.data import placeholders, shards
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.evaluation import questions
from mmedpo.models import refusals
from mmedpo.models.vision_language import VisionLanguageModel, load_processor

# What processors and chat templates write for images.
TOKENS = [
    "<image>", "</image>", "<img>", "</img>", "<imgpad>", "<IMG_CONTEXT>", "<video>", "<|image|>", "<|video|>",
    "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_start|>",
    "<|image_end|>", "<|img_thumbnail|>", "<|IMAGE_PAD|>", "<|imgpad|>", "<|START_OF_IMG|>", "<|IMG_PATCH|>",
    "<|IMG_LINE_BREAK|>", "<|patch|>", "<|tile_x_separator|>", "<|media_pad|>", "<|image_1|>", "<im_patch>",
    "<im_start>", "<im_end>", "<low_res_im_start>", "<start_of_image>", "<end_of_image>", "<image_soft_token>",
    "<image_placeholder>", "<fake_token_around_image>", "<global-img>", "<row_1_col_2>", "[IMG]", "[IMG_BREAK]",
    "[IMG_END]", "<Image>",
]  # fmt: skip
PLAIN = [
    "Is the nodule < 10 mm and > 5 mm?", "image: 3; <unk>", "[image 2]", "PaO2 <60 mmHg | pH>7.4", "What is <this>?",
    "<|im_start|>", "IMG_END",
]  # fmt: skip


@pytest.mark.parametrize("token", TOKENS)
def test_image_tokens_of_every_family_are_faults(token):
    assert placeholders.fault(f"Where is {token} it?") == f"contains {token!r}, the placeholder of an image; remove it"


@pytest.mark.parametrize("text", PLAIN)
def test_plain_texts_are_none(text):
    assert placeholders.fault(text) is None
    assert placeholders.fault(text, own="<this>") == (
        "contains '<this>', the placeholder of an image; remove it" if "<this>" in text else None
    )


class Choosy:
    """A processor that takes no image 20 times as wide as high, as Qwen-VL's takes none 200 times, and none below 4."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asked = inner, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, images: list[list[Image.Image]], **kwargs: Any) -> Any:
        self.asked += 1
        for width, height in (image.size for row in images for image in row):
            if width > 20 * height:
                raise ValueError("absolute aspect ratio must be smaller than 20")
            if min(width, height) < 4:
                raise ValueError("height and width must be at least 4")
        return self.inner(images=images, **kwargs)


@pytest.fixture
def choosy(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Choosy:
    """The tiny model's processor, which all commands get; anything that it would generate is an error."""
    made = Choosy(load_processor(str(tiny_model)))
    for place in ("mmedpo.models.vision_language", "mmedpo.evaluation.measures", "mmedpo.curation.plan"):
        monkeypatch.setattr(f"{place}.load_processor", lambda *_: made)
    monkeypatch.setattr(VisionLanguageModel, "generate", lambda *_: pytest.fail("something was generated"))
    return made


SIZES = {"wide": (64, 3), "flat": (3, 8), "plain": (32, 32), "tall": (8, 40)}
WIDE = "refused by the model's processor (absolute aspect ratio must be smaller than 20); crop or pad the image"
FLAT = "refused by the model's processor (height and width must be at least 4); crop or pad the image"


def source(folder: Path, **answers: str) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 255, (height, width), dtype=np.uint8)).save(folder / f"{name}.png")
    rows = [
        {"id": name, "image": f"{name}.png", "question": f"Where is the {name} lesion?", "answer": f"{name} lobe",
         "split": "test", "boxes": [{"label": "mass", "x": 0, "y": 0, "w": 2, "h": 2}]}
        for name in SIZES
    ]  # fmt: skip
    (folder / "table.jsonl").write_text("".join(json.dumps({**row, **answers}) + "\n" for row in rows))
    return folder


def test_a_processor_is_asked_only_of_the_extremes_where_it_takes_them(choosy):
    def asked(sizes: list[tuple[int, int]]) -> list[str]:
        choosy.asked = 0
        rows = [(str(n), {}, {"image": (size,)}) for n, size in enumerate(sizes)]
        return [f"{fault.row}: {fault.sentence}" for fault in refusals.faults(choosy, rows)]

    assert asked([(20 + side, 300 - side) for side in range(100)]) == [] and choosy.asked <= 8
    many = [(20 + side, 300 - side) for side in range(100)] + [(90, 4), (41, 2)]
    assert [said.partition(" (")[0] for said in asked(many)] == [
        "100: refused by the model's processor", "101: refused by the model's processor",
    ]  # fmt: skip
    assert asked([]) == []


def test_evaluate_and_curate_name_rows_before_anything_is_generated(choosy, tiny_model, tmp_path, capsys):
    folder = source(tmp_path / "source")
    for words in (
        ["evaluate", "--model", str(tiny_model), "--source", str(folder)],
        ["attention", "--model", str(tiny_model), "--adapter", "x", "--source", str(folder)],
        ["curate", "--model", str(tiny_model), "--source", str(folder), "--chat", "standin:rules", "--judges",
         "standin:strict"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([*words, "--output", str(tmp_path / "out")])
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "Faulty rows in source: 2." in said
        assert f"  - wide [image]: {WIDE}" in said and f"  - flat [image]: {FLAT}" in said and "--skip-faulty" in said
        assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_skipped_rows_are_counted(choosy, tiny_model, tmp_path):
    folder = source(tmp_path / "source")
    asked = questions.read(questions.Asked(folder, skip_faulty=True), load_processor=lambda: choosy)
    assert [question.id for question in asked.questions] == ["plain", "tall"]
    assert asked.record["faulty_rows_skipped"] == 2
    settings = Settings(source=folder, model=str(tiny_model), chat="standin:rules", judges=["standin:strict"],
                        skip_faulty=True)  # fmt: skip
    kept = open_source(settings)
    assert [sample.id for sample in kept.samples] == ["plain", "tall"]
    assert {fault.row for fault in kept.faults} == {"wide", "flat"}


@pytest.mark.parametrize("column", ["question", "answer"])
def test_an_image_token_is_a_fault_of_its_row_at_reading(column, tmp_path):
    read = read_source(source(tmp_path / "source", **{column: "the <|image_pad|> lobe"}))
    assert read.samples == []
    assert {(fault.column, fault.sentence) for fault in read.faults} == {
        (column, "contains '<|image_pad|>', the placeholder of an image; remove it")
    }


def test_rows_of_a_dataset_with_image_tokens_are_faults(preferences):
    from mmedpo.data import loading

    row = next(iter(schema.undecoded(loading.load(str(preferences)))))
    for column in ("prompt", "chosen", "rejected"):
        changed = {**row, column: [{**row[column][-1], "content": "the <image> lobe"}]}
        (fault,) = [fault for fault in schema.row_faults(changed) if "<image>" in fault.sentence]
        assert (fault.row, fault.column) == (row["id"], column)


def test_preference_measures_and_dataset_questions_name_the_rows(
    choosy: Choosy, preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmedpo.data import loading
    from mmedpo.data.images import png
    from mmedpo.evaluation import pairs

    rows = [row for row in schema.undecoded(loading.load(str(preferences))) if not row["rejected_images"]][:3]
    wide = png(np.zeros((2, 64), dtype=np.uint8), "wide")
    rows[1]["images"] = [wide]
    kinds = schema.FEATURES["dispreference"]
    shards.save([{**row, "task": schema.TASKS[row["task"]], "dispreference": kinds.int2str(row["dispreference"])}
                 for row in rows], tmp_path / "dataset")  # fmt: skip
    with pytest.raises(InputError) as raised:
        questions.read(questions.Asked(dataset=str(tmp_path / "dataset")), load_processor=lambda: choosy)
    assert [(fault.column, fault.sentence.startswith(WIDE)) for fault in raised.value.faults] == [("images", True)]
    with monkeypatch.context() as patched:
        patched.setattr(schema, "message_text", lambda messages: "Where is [IMG]?")
        with pytest.raises(InputError) as raised:  # whoever will answer
            questions.read(questions.Asked(dataset=str(tmp_path / "dataset")))
    assert {(fault.column, "[IMG]" in fault.sentence) for fault in raised.value.faults} == {("prompt", True)}
    model = VisionLanguageModel(str(tiny_model))
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="The model's processor refuses 1 row") as raised:
        pairs.measure(pairs.Preference(loading.load(str(tmp_path / "dataset"))), lambda: model, tmp_path / "out")
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [(rows[1]["id"], "images")]


def test_a_model_that_is_asked_directly_refuses_too(choosy, tiny_model):
    model = VisionLanguageModel(str(tiny_model))
    with pytest.raises(InputError, match="A question cannot be asked: it contains '<image>'"):
        model.encode([(Image.new("RGB", (32, 32)), "Where is <image>?")])
    with pytest.raises(InputError, match="the processor refuses its image: absolute aspect ratio"):
        model.encode([(Image.new("RGB", (64, 3)), "Where?")])
