"""Text in images: found in pictures that are drawn here, sorted into kinds, blacked out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from mmedpo.data import burnt_text
from mmedpo.data.burnt_text import DATE, IDENTIFIER, MARKER, NAME, OTHER, Finder, kind
from mmedpo.data.images import digest
from mmedpo.data.samples import Box
from mmedpo.errors import InputError
from mmedpo.runs.ledger import Ledger

WIDTH, HEIGHT = 420, 320


def drawn(text: str, at: tuple[int, int], size: int, ink: int, ground: int, noise: int = 0) -> Image.Image:
    """Draw a text on a grey ground with noise of that many levels."""
    rng = np.random.default_rng(0)
    pixels = (
        np.clip(ground + rng.normal(0, noise, (HEIGHT, WIDTH)), 0, 255) if noise else np.full((HEIGHT, WIDTH), ground)
    )
    picture = Image.fromarray(pixels.astype(np.uint8))
    ImageDraw.Draw(picture).text(at, text, fill=ink, font=ImageFont.load_default(size))
    return picture


@pytest.fixture(scope="module")
def finder() -> Finder:
    pytest.importorskip(
        "rapidocr_onnxruntime", reason="finding text needs rapidocr: pip install 'mmedpo[text]'", exc_type=ImportError
    )
    return Finder()


@pytest.mark.parametrize(
    ("at", "size", "ink", "ground", "noise"),
    [
        ((8, 6), 24, 255, 0, 0),
        ((150, 150), 16, 0, 255, 0),
        ((240, 300), 11, 90, 0, 0),  # small print, dark grey on black
        ((20, 250), 18, 230, 90, 12),
    ],
)
def test_text_is_found_where_it_was_drawn_and_nothing_is_left_of_it(
    finder: Finder, at: tuple[int, int], size: int, ink: int, ground: int, noise: int
) -> None:
    picture = drawn("DOE, JANE 03-11-1962", at, size, ink, ground, noise)
    found = finder(picture)
    read = "".join(box.label for box in found).replace(" ", "")
    assert "03-11-1962" in read and "JANE" in read
    assert all(0 <= box.confidence <= 1 and isinstance(box.x, int) for box in found)
    left = burnt_text.blacked_out(np.asarray(picture), found)
    written = np.asarray(picture) != np.asarray(drawn("", at, size, ink, ground, noise))
    assert written.any() and not left[written].any()
    assert (left == 0).mean() < 0.3 + (ground == 0)  # the rest of the picture stays


def test_picture_without_text_has_none(finder: Finder) -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    body = 120 * np.exp(-((x - 210) ** 2 + (y - 160) ** 2) / 9000) + rng.normal(20, 6, (HEIGHT, WIDTH))
    assert finder(Image.fromarray(np.clip(body, 0, 255).astype(np.uint8))) == ()


def test_each_image_is_read_once_also_by_the_next_run(finder: Finder, tmp_path) -> None:
    picture = drawn("R 12:45", (10, 10), 30, 255, 0)
    first = Finder(Ledger(tmp_path / "text.ledger"))
    boxes = first(picture)
    assert boxes and boxes == Finder(Ledger(tmp_path / "text.ledger"))(None, digest(picture))  # no image to read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DOE^JANE", NAME), ("Doe, J", NAME), ("Jane Doe", NAME), ("JaneQDoe", NAME), ("Name: X", NAME),
        ("Dr. Who", NAME), ("SMITH JOHN M", NAME), ("BAPTIST MED CTR", NAME), ("Source:JaneDoe,11-12-2007", NAME),
        ("7/28/1987", DATE), ("2004Oct07", DATE), ("03 Mar 1999", DATE), ("19620311", DATE), ("13:24:26", DATE),
        ("2007", DATE), ("-23-2011", DATE), ("Mar 3, 1999", DATE),
        ("1263487", IDENTIFIER), ("MRN 4711", IDENTIFIER), ("62659-1", IDENTIFIER), ("dac752fe-41", IDENTIFIER),
        ("L", MARKER), ("[R]", MARKER), ("RIGHT", MARKER), ("AP PORTABLE", MARKER), ("PA/UPRIGHT", MARKER),
        ("W450:L45", OTHER), ("MedPix®", OTHER), ("CT Abdomen With Contrast", OTHER), ("kVp:120", OTHER),
        ("TE:117 TR:8000", OTHER), ("ALI", OTHER), ("120", OTHER), ("Zoom: 290%", OTHER),
    ],
)  # fmt: skip
def test_kind(text: str, expected: str) -> None:
    assert kind(text) == expected


def test_markers_stay_and_all_else_is_masked() -> None:
    boxes = [Box("L", 0, 0, 2, 2), Box("JANE DOE", 4, 0, 2, 2), Box("W450:L45", 0, 4, 2, 2)]
    left = burnt_text.blacked_out(np.full((8, 8, 3), 9, np.uint8), burnt_text.masked(boxes))
    assert left[0, 0].tolist() == [9, 9, 9] and not left[0:2, 4:6].any() and not left[4:6, 0:2].any()
    assert (left == 0).sum() == 2 * 4 * 3


def test_gaps_inside_a_line_are_masked_too() -> None:
    """Narrow ones anywhere, wide ones in the captions at top and bottom alone; and no gap between two lines."""
    line, piece, far, below = (
        Box("", *place) for place in ((0, 50, 10, 4), (30, 51, 10, 4), (70, 50, 9, 4), (0, 70, 9, 4))
    )
    caption, end = Box("", 5, 95, 10, 4), Box("", 70, 95, 9, 4)
    left = burnt_text.blacked_out(np.ones((100, 80), np.uint8), [line, piece, far, below, caption, end])
    assert not left[50:55, 10:30].any()  # 20 wide, 4 high
    assert left[50:55, 41:69].all() and left[56:69].all()
    assert not left[95:99, 5:79].any() and left[94].all()


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    burnt_text._engine.cache_clear()
    with pytest.raises(InputError, match=r"pip install 'mmedpo\[text\]'"):
        Finder()
    assert not burnt_text.is_installed()
    burnt_text._engine.cache_clear()
