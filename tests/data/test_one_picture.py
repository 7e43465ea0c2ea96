"""One picture everywhere: stored, noised, trained on, shown to a chat model and evaluated are the same pixels."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from standins import STANDINS

from mmedpo import schema
from mmedpo.curation.run import curate_folder
from mmedpo.curation.sampling import sent
from mmedpo.curation.settings import Settings
from mmedpo.data import loading
from mmedpo.data.images import digest, open_rgb
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs, questions
from mmedpo.models.vision_language import encode, load_processor
from mmedpo.runs.run_folder import output_folder
from mmedpo.training.collator import PreferenceCollator
from tests.pictures import KINDS, layered, saved

Rows = list[dict[str, Any]]
CHOSEN = (
    *("grey", "1 bit", "16-bit grey TIFF", "palette with transparency", "colour with transparency", "CMYK JPEG"),
    *("grey with a transparent grey", "transparent TIFF", "transparent WebP", "transparent GIF", "DICOM", "turned"),
    "transparent and turned",
)
BOX = {"label": "mass", "x": 4, "y": 4, "w": 8, "h": 8}


class Spy:
    """A processor that keeps the pictures that it is given."""

    def __init__(self, processor: Any) -> None:
        self.processor, self.seen = processor, []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.seen += [picture for shown in options["images"] for picture in shown]
        return self.processor(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question about one image of each kind, with a box; ids are the kinds."""
    folder = tmp_path_factory.mktemp("source")
    with (folder / "table.jsonl").open("w") as table:
        for number, kind in enumerate(CHOSEN):
            name, make = KINDS[kind]
            file = f"{number}{Path(name).suffix}"
            (folder / file).write_bytes(make())
            question = f"Is there a mass in image {number}?"
            row = {"id": kind, "image": file, "question": question, "answer": "yes", "boxes": [BOX]}
            table.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(scope="module")
def curated(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "pairs"
    settings = Settings(source=source, **STANDINS)
    with output_folder(folder, settings.record()) as working:
        curate_folder(settings, working)
    return folder


@pytest.fixture(scope="module")
def right(source: Path) -> dict[str, np.ndarray]:
    return {sample.id: np.asarray(open_rgb(sample.images[0].file)) for sample in read_source(source).samples}


def trained_on(processor: Any, rows: Rows) -> list[np.ndarray]:
    """The pictures that the chosen and then the rejected sides show the model in training."""
    spy = Spy(processor)
    PreferenceCollator(spy)(rows)
    return [np.asarray(picture) for picture in spy.seen]


def kinds(rows: Rows) -> list[str]:
    return [row["provenance"]["sample_id"] for row in rows]


def check(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], names: Sequence[str]) -> None:
    assert len(found) == len(expected) == len(names)
    wrong = [name for one, two, name in zip(found, expected, names, strict=True) if not np.array_equal(one, two)]
    assert not wrong, f"other pixels: {wrong}"


def outside(picture: np.ndarray) -> np.ndarray:
    """The picture with nothing in its box."""
    blank = picture.copy()
    blank[4:12, 4:12] = 0
    return blank


def test_every_step_sees_the_same_pixels(
    source: Path, curated: Path, right: dict[str, np.ndarray], tiny_model: Path
) -> None:
    processor = load_processor(str(tiny_model))
    dataset = loading.load(str(curated))
    rows = list(dataset)
    visual = [row for row in rows if row["rejected_images"]]
    names = kinds(visual)
    assert sorted(names) == sorted(right) and len(rows) == 2 * len(visual)
    expected = [right[name] for name in names]
    # Stored, as the library that reads the dataset decodes it, and as Pillow alone makes it RGB.
    stored = [np.asarray(row["images"][0].convert("RGB")) for row in visual]
    check(stored, expected, names)
    # Noised: other pixels inside the mask alone.
    noised = [np.asarray(row["rejected_images"][0].convert("RGB")) for row in visual]
    check(list(map(outside, noised)), list(map(outside, expected)), names)
    assert all((one != two).any() for one, two in zip(noised, expected, strict=True))
    # Trained on, of decoded and of undecoded rows.
    undecoded = [row for row in schema.undecoded(dataset) if row["rejected_images"]]
    for given in (visual, undecoded):
        check(trained_on(processor, given), expected + noised, names * 2)
    # Evaluated: of the source, of the dataset, of its pairs.
    for asked in (questions.read(questions.Asked(source)), questions.read(questions.Asked(dataset=str(curated)))):
        about = [question.id for question in asked.questions]
        pictures = [np.asarray(asked.open_image(question.images[0])) for question in asked.questions]
        check(pictures, [right[name] for name in about], about)
    check([np.asarray(pairs._seen(row, "rejected")[0]) for row in undecoded], noised, names)
    # Shown to a chat model.
    samples = read_source(source).samples
    shown = [np.asarray(Image.open(io.BytesIO(sent(sample.images[0].file))).convert("RGB")) for sample in samples]
    check(shown, [right[sample.id] for sample in samples], [sample.id for sample in samples])


# Datasets made elsewhere, whose files are as their makers left them.


@pytest.fixture
def elsewhere(curated: Path) -> Dataset:
    """Two rows: both sides transparent, in two modes."""
    data = {"a.png": layered("RGBA", "PNG"), "b.png": saved("P", transparency=bytes(range(256)))}
    rows = list(schema.undecoded(loading.load(str(curated))).select(range(2)))
    for row, (name, encoded) in zip(rows, data.items(), strict=True):
        row |= {"images": [{"bytes": encoded, "path": name}], "rejected_images": None}
        row["dispreference"] = 0
    return Dataset.from_list(rows, features=schema.FEATURES)


def test_transparent_images_of_other_datasets_are_the_same_picture_too(elsewhere: Dataset, tiny_model: Path) -> None:
    processor = load_processor(str(tiny_model))
    undecoded = list(schema.undecoded(elsewhere))
    expected = [np.asarray(open_rgb(row["images"][0])) for row in undecoded]
    names = [row["images"][0]["path"] for row in undecoded]
    for rows in (list(elsewhere), undecoded):
        check(trained_on(processor, rows), expected * 2, names * 2)
    check([np.asarray(pairs._seen(row, "chosen")[0]) for row in undecoded], expected, names)
    assert [pairs._question(row)["image_digest"] for row in undecoded] == [
        digest(Image.fromarray(one)) for one in expected
    ]
    # And of pictures that a person hands over.
    spy = Spy(processor)
    encode(spy, [(row["images"][0], "What is shown?") for row in elsewhere])
    check([np.asarray(picture) for picture in spy.seen], expected, names)


def test_several_frames_inside_a_dataset_are_a_fault_of_the_row(elsewhere: Dataset, tiny_model: Path) -> None:
    row = schema.undecoded(elsewhere)[0]
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    row["images"] = [{"bytes": buffer.getvalue(), "path": "a.webp"}]
    said = "the image has 2 frames or pages; export the one that the row is about"
    assert [fault.sentence for fault in schema.row_faults(row)] == [said]
    with pytest.raises(InputError, match=f"Row {row['id']} cannot be used: {said}"):
        PreferenceCollator(load_processor(str(tiny_model)))([row])
