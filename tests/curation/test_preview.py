"""The sheet of pictures before a curation: what it shows, what it says, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from mmedpo.curation.localize import open_localizer
from mmedpo.curation.noise import Noise
from mmedpo.curation.preview import COLUMNS, DOTS, WIDTH, sheet
from mmedpo.curation.preview import _row as drawn_row
from mmedpo.data.sources import read_source
from mmedpo.errors import InputError

MakeSource = Callable[..., Path]
Show = Callable[..., dict[str, int]]
BOX = {"x": 4, "y": 4, "w": 8, "h": 8}


def row(number: int, image: str, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "image": image, "question": f"Question {number}?", "answer": "a", **more}


@pytest.fixture
def show(make_source: MakeSource, tmp_path: Path) -> Show:
    """Draw the sheet of a source of `rows` about the grey pictures a.png, b.png and c.png of 32 x 32 pixels."""
    grey = make_source()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        picture = Image.new("L", (32, 32), 90 + number)
        picture.putpixel((31, 31), 0)
        picture.save(grey / name)

    def draw(
        rows: list[dict[str, Any]], localizer: str = "boxes", noise: Noise | None = None, most: float = 0.6,
        count: int = 8, output: str = "sheet.png",
    ) -> dict[str, int]:  # fmt: skip
        (grey / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        samples = read_source(grey).samples
        return sheet(
            samples, open_localizer(localizer, max_coverage=most), noise or Noise(), 0, count, tmp_path / output
        )

    return draw


def pixels(tmp_path: Path, output: str = "sheet.png") -> np.ndarray:
    return np.asarray(Image.open(tmp_path / output).convert("RGB"))


def panels(sheet: np.ndarray) -> list[np.ndarray]:
    """The middle of each picture of a sheet of one row, without frames and titles."""
    rows, columns = slice(len(sheet) // 4, len(sheet) * 9 // 10), sheet.shape[1] // COLUMNS
    return [sheet[rows, columns * place + 8 : columns * (place + 1) - 8] for place in range(COLUMNS)]


def outlined(part: np.ndarray) -> bool:
    """Whether there is something orange in a picture that is grey."""
    red, _, blue = np.moveaxis(part.astype(int), 2, 0)
    return bool((red - blue > 60).any())


def test_a_picture_under_two_names_is_drawn_once(show: Show, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "copy.png").write_bytes((folder / "a.png").read_bytes())
    assert show([row(n, name, boxes=[BOX]) for n, name in enumerate(("a.png", "copy.png", "b.png"))]) == {"shown": 2}


def test_row_has_the_image_with_its_lesion_outlined_the_mask_and_the_noised_image(show: Show, tmp_path: Path) -> None:
    assert show([row(1, "a.png", boxes=[{"x": 8, "y": 16, "w": 16, "h": 8}])]) == {"shown": 1}
    image, mask, noised, *seen = panels(pixels(tmp_path))
    assert [outlined(part) for part in (image, mask, noised, *seen)] == [True, False, False, False, False]
    assert np.median(image) == 90  # as bright as it is, not stretched
    assert set(np.unique(mask)) >= {0, 255}
    # Half of the width at half of the height and nothing in the picture's upper third.
    white = (mask == 255).all(axis=2)
    assert white[len(white) // 2 :].any(axis=0).mean() == pytest.approx(0.5, abs=0.05)
    assert not white[: len(white) // 4].any()
    assert np.unique(noised).size > 50


def test_image_is_shown_for_its_first_question_with_a_lesion(show: Show, tmp_path: Path) -> None:
    """Questions about what is absent, which have no box, come before and behind."""
    rows = [row(1, "a.png"), row(2, "a.png", boxes=[BOX]), row(3, "a.png"), row(4, "b.png"), row(5, "b.png")]
    assert show(rows) == {"shown": 1, "no lesion was found": 1}


def test_reasons_count_images_and_not_questions(show: Show) -> None:
    rows = [row(1, "a.png", boxes=[BOX]), row(2, "b.png"), row(3, "b.png"), row(4, "c.png", boxes=[{**BOX, "x": 99}])]
    assert show(rows) == {"shown": 1, "no lesion was found": 1, "the lesion lies outside the image": 1}
    too_large = [row(1, "a.png", boxes=[BOX]), row(2, "b.png", boxes=[{**BOX, "w": 16}])]
    counts = show(too_large, most=0.1, output="second.png")
    assert counts == {"shown": 1, "the lesion covers more than 10% of the image": 1}


@pytest.mark.parametrize("count", [2, 8])
def test_sheet_has_a_row_for_each_image_up_to_the_count(show: Show, tmp_path: Path, count: int) -> None:
    rows = [row(number, image, boxes=[BOX]) for number, image in enumerate(("a.png", "b.png", "a.png", "c.png"))]
    shown = min(count, 3)
    assert show(rows, count=count) == {"shown": shown}
    height, width = pixels(tmp_path).shape[:2]
    assert (height, width) == (int(shown * WIDTH * 1.2 * DOTS), int(COLUMNS * WIDTH * DOTS))


def test_whole_image_noise_shows_images_without_a_lesion_too(show: Show, tmp_path: Path) -> None:
    assert show([row(1, "a.png"), row(2, "b.png")], "none", Noise(region="image"), count=1) == {"shown": 1}
    _, mask, noised, *_ = panels(pixels(tmp_path))
    assert (mask == 255).all() and np.unique(noised).size > 50
    assert show([row(1, "a.png"), row(2, "b.png")], noise=Noise("crop"), output="crop.png") == {"shown": 2}


def test_source_without_any_lesion_is_refused_with_the_reasons(show: Show, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"boxes found no region in 2 images: {'no lesion was found': 2}"):
        show([row(1, "a.png"), row(2, "a.png"), row(3, "b.png")])
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("processor", "pixels", "seen", "title"),
    [
        (None, 336, (200, 160), "shrunk to 336 pixels at most\n200 x 160 pixels"),
        (None, 100, (100, 80), "shrunk to 100 pixels at most\n100 x 80 pixels"),
        (CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128}), 128, (128, 128),
         "as the model sees it\n128 x 128 pixels"),
        (SiglipImageProcessorPil(size={"height": 96, "width": 96}), 96, (96, 96),
         "as the model sees it\n96 x 96 pixels"),
    ],
)  # fmt: skip
def test_row_ends_with_what_the_model_sees_and_what_is_left_there(
    make_source: MakeSource, processor: Any, pixels: int, seen: tuple[int, int], title: str
) -> None:
    source = make_source([row(1, "a.png", boxes=[{"x": 60, "y": 40, "w": 80, "h": 80}])])
    ramp = np.add.outer(np.arange(160), np.arange(200)) * 255 // 358
    Image.fromarray(ramp.astype(np.uint8)).save(source / "a.png")
    (sample,) = read_source(source).samples
    region = open_localizer("boxes").find(sample)
    *_, before, after = drawn_row(sample, region, Noise(pixels=pixels), 0, processor)
    assert before[0] == title
    assert before[1].shape == after[1].shape == (seen[1], seen[0], 3)
    said = re.fullmatch(r".*, noised\ncorrelation in the mask: (0\.\d\d)", after[0])
    assert said is not None and 0 < float(said[1]) < 0.5
    assert np.array_equal(before[1][:2], after[1][:2]) and not np.array_equal(before[1], after[1])


def test_existing_file_is_refused_and_untouched(show: Show, tmp_path: Path) -> None:
    (tmp_path / "sheet.png").write_text("precious")
    with pytest.raises(InputError, match=r"sheet\.png exists already; choose another --output"):
        show([row(1, "a.png", boxes=[BOX])])
    assert (tmp_path / "sheet.png").read_text() == "precious"


def test_folder_of_the_sheet_is_made_and_one_that_cannot_be_is_refused(show: Show, tmp_path: Path) -> None:
    show([row(1, "a.png", boxes=[BOX])], output="new/folder/sheet.png")
    assert pixels(tmp_path, "new/folder/sheet.png").size
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write .*file/sheet\.png: Not a directory"):
        show([row(1, "a.png", boxes=[BOX])], output="file/sheet.png")


@pytest.mark.filterwarnings("error")
def test_questions_of_any_length_script_and_sign_fit(show: Show) -> None:
    questions = ["word " * 99, "肺に結節がありますか", "Is $x_1 > \\alpha$\nor {y} or 50 %?"]
    shown = zip(("a.png", "b.png", "c.png"), questions, strict=True)
    show([row(number, image, boxes=[BOX], question=text) for number, (image, text) in enumerate(shown)])
