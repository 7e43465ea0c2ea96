"""Two images a question, from a source to results: curated, published, trained on by TRL and by us, evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from hub.server import Hub
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

from mmedpo import schema
from mmedpo.curation.localize import open_localizer, read_regions, regions_record
from mmedpo.curation.noise import Noise
from mmedpo.curation.noiser import Noiser
from mmedpo.data import loading
from mmedpo.data.images import digest, open_rgb
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.hub import rejoin
from mmedpo.hub.publish import stripped
from mmedpo.models import refusals
from mmedpo.models.generation import Sampling
from mmedpo.models.vision_language import VisionLanguageModel, load_processor

GREEDY = Sampling(4)
Run = Callable[..., tuple[int, str]]
TRAIN = "--config", Path(__file__).parents[1] / "recipes" / "quickstart.yaml", "--max_steps", 2, "--save_strategy", "no"


@pytest.fixture(scope="session")
def views(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with two images a question: the question's own, which has the boxes, second in every other row."""
    folder = tmp_path_factory.mktemp("views")
    shutil.copytree(corpus / "images", folder / "images")
    rows = [json.loads(line) for line in (corpus / "samples.jsonl").read_text().splitlines()]
    names = {row["image"] for row in rows}
    with (folder / "samples.jsonl").open("w") as table:
        for place, row in enumerate(rows):
            own, number = row.pop("image"), place % 2
            row.pop("patient_id", None)
            split, _, image = own.removesuffix(".png").rpartition("-")
            if (other := f"{split}-{int(image) ^ 1:05d}.png") in names:
                row |= {"images": [other, own] if number else [own, other]}
                row |= {"boxes": [{**box, "image": number} for box in row.get("boxes", ())]}
                table.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="session")
def pairs(views: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mmedpo.curation.run import curate_folder
    from mmedpo.curation.settings import Settings
    from mmedpo.runs.run_folder import output_folder

    folder = tmp_path_factory.mktemp("several") / "pairs"
    asked: dict[str, Any] = {"split": "preference", "limit": 24, "chat": "standin:rules", "judges": ["standin:strict"]}
    settings = Settings(source=views, model=str(tiny_model), **asked)
    with output_folder(folder, settings.record()) as working:
        curate_folder(settings, working, "mmedpo curate")
    return folder


def done(found: tuple[int, str]) -> str:
    code, said = found
    assert code == 0, said[-3000:]
    return said


def test_two_images_a_question_survive_the_whole_way(
    hub_here: Hub, run: Run, views: Path, pairs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done(run("publish", pairs, "user/views", "--yes"))
    rows: Any = load_dataset("user/views", split="train")
    samples = {sample.id: sample for sample in read_source(views, "preference").samples}
    visual = 0
    for row in rows:
        sample, made = samples[row["provenance"]["sample_id"]], row["provenance"]
        assert [*map(digest, row["images"])] == [image.digest for image in sample.images]
        if row["rejected_images"] is None:
            continue
        marked = [bool(image.boxes) for image in sample.images]
        kept = [digest(one) == digest(other) for one, other in zip(row["images"], row["rejected_images"], strict=True)]
        assert kept == [not noised for noised in marked] and sum(marked) == 1
        assert made["box_images"] == [marked.index(True)] * len(made["boxes"])
        visual += 1
    assert {True, False} == {row["rejected_images"] is None for row in rows} and visual > 3

    assert np.isfinite(trl_losses(rows, tiny_model, tmp_path)).all()
    start, data = ("--model_name_or_path", tiny_model), ("--dataset_name", "user/views")
    done(run("train", *TRAIN, *data, *start, "--output", "adapter"))

    plain, some = ("--model", tiny_model), ("--source", views, "--split", "test", "--limit", 8)
    asked = (*plain, "--adapter", "adapter")
    done(run("evaluate", *plain, *some, "--output", "before"))
    done(run("evaluate", *asked, *some, "--output", "answers"))
    lines = [json.loads(line) for line in Path("answers/questions.jsonl").read_text().splitlines()]
    assert all(len(line["image_digests"]) == 2 and line["image_id"].count("|") == 1 for line in lines)
    for measure in ("preference", "visual_reliance"):
        done(run("evaluate", *asked, "--measure", measure, "--dataset", "user/views", "--output", measure))
    done(run("evaluate", *asked, "--measure", "visual_reliance", *some, "--output", "on_source"))
    done(run("attention", *asked, *some, "--output", "attention"))
    done(run("compare", "before", "answers", "--source", views, "--dataset", "user/views", "--output", "comparison"))
    page = Path("comparison/report.html").read_text()
    examples = page.count('<article class="card example"')
    assert examples and page.count('<img class="thumbnail') == 2 * examples


def trl_losses(rows: Dataset, model: Path, folder: Path) -> list[float]:
    """Losses of TRL's own trainer on the text pairs, as a user of the published set has them."""
    args = DPOConfig(
        str(folder / "trl"), max_steps=2, per_device_train_batch_size=2, logging_steps=1, max_length=None, bf16=False,
        use_cpu=True, gradient_checkpointing=False, save_strategy="no", report_to="none",
    )  # fmt: skip
    text = rows.filter(lambda kind: kind == 0, input_columns="dispreference")
    trainer = DPOTrainer(
        AutoModelForImageTextToText.from_pretrained(model), args=args, train_dataset=text,
        processing_class=AutoProcessor.from_pretrained(model),
    )  # fmt: skip
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_answers_depend_on_every_image_and_their_order(views: Path, tiny_model: Path) -> None:
    model = VisionLanguageModel(str(tiny_model))
    sample = read_source(views, "test").samples[0]
    first, second = map(open_rgb, sample.files)
    blank = Image.new("RGB", second.size)
    said = [[{"role": "user", "content": sample.prompt}], [{"role": "assistant", "content": sample.answer}]]
    shown = [[first, second], [second, first], [first, blank], [blank, second], [first]]
    assert len({round(logp, 4) for logp in answer_logps(model, [View(images, *said) for images in shown])}) == 5
    together = model.prompts([([first, second], "What?"), ([first, second], "Where?"), (first, "What?")], GREEDY)
    assert together.owners == [0, 0, 1]


class OneImage:
    """The tiny model's processor, which takes one image: it refuses several, or silently drops all but the first."""

    def __init__(self, inner: Any, drops: bool) -> None:
        self.inner, self.drops = inner, drops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, text: list[str], images: list[list[Any]], **more: Any) -> Any:
        if not self.drops and len(images[0]) > 1:
            raise ValueError("one image a prompt")
        texts = [one.replace("<image>", "", len(shown) - 1) for one, shown in zip(text, images, strict=True)]
        return self.inner(text=texts, images=[shown[:1] for shown in images], **more)


@pytest.mark.parametrize("drops", [False, True])
def test_a_model_that_takes_one_image_is_refused_in_one_message(views: Path, tiny_model: Path, drops: bool) -> None:
    source, processor = read_source(views, "test"), OneImage(load_processor(str(tiny_model)), drops)
    with pytest.raises(InputError, match="Questions have up to 2 images, and the model takes one") as raised:
        refusals.drop_refused(source, processor)
    assert ("leaves the others out" if drops else "one image a prompt") in str(raised.value)


@pytest.mark.parametrize(
    ("noise", "located", "expected"),
    [
        (Noise(), [False, True], [False, True]),
        (Noise(), [False, False], [False, False]),  # no pair
        (Noise(images="all"), [False, True], [True, True]),
        (Noise(images="all"), [False, False], [False, False]),
        (Noise(region="image"), [False, False], [True, True]),
        (Noise("crop"), [False, True], [False, True]),
        (Noise(region="image", images="all"), [True, False], [True, True]),
    ],
)
def test_noise_is_in_the_images_that_are_asked_for(noise: Noise, located: list[bool], expected: list[bool]) -> None:
    assert noise.noised(located) == expected
    assert ("images" in noise.record()) == (noise.images == "all")  # manifests of one image a question are as before


def test_an_image_without_a_lesion_is_noised_whole_where_all_are(views: Path) -> None:
    sample = next(one for one in read_source(views, "preference").samples if one.images[1].boxes)
    regions = open_localizer("boxes").locate(sample)
    kept, noised = Noiser(Noise(), 0).each(sample, regions)
    whole, again = Noiser(Noise(images="all"), 0).each(sample, regions)
    assert kept is None and noised == again and noised is not None and whole is not None
    assert (noised[1], whole[1]) == (pytest.approx(regions[1].coverage), 1.0)
    assert [region.record() for region in read_regions(regions_record(regions), 2)] == [one.record() for one in regions]


def test_boxes_of_a_restricted_set_keep_their_image(pairs: Path) -> None:
    rows = schema.undecoded(loading.load(str(pairs)))
    full: Any = next(row for row in rows if row["provenance"]["box_images"] == [1])
    full["provenance"]["localizer"] = "detector:org/finder"
    sent = stripped.row(full)
    none, there = read_regions(rejoin._regions(sent, "detector:org/finder"), 2)
    assert (
        none.reason
        and not there.reason
        and [(box.x, box.width) for box in there.boxes]
        == [(box["x"], box["width"]) for box in full["provenance"]["boxes"]]
    )
    assert (
        "box_images" in stripped.features(True)["provenance"] and "box_images" not in stripped.features()["provenance"]
    )
