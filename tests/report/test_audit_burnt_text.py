"""`mmedpo audit --text`: images with text, noise over it, and where texts are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invented import row
from PIL import Image, ImageDraw, ImageFont

from mmedpo.data import images, shards

Run = Callable[..., tuple[int, str]]
NAME = np.s_[12:30, 12:120]  # rows and columns inside "JANE DOE"


def film(shade: int, noise: Any = None, text: str = "JANE DOE") -> dict[str, Any]:
    """A film with a name in its corner, black in `noise`."""
    picture = Image.new("L", (240, 160), shade)
    ImageDraw.Draw(picture).text((10, 8), text, fill=255, font=ImageFont.load_default(26))
    pixels = np.array(picture)
    if noise is not None:
        pixels[noise] = 0
    return images.png(pixels, "film")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A text pair and three visual ones: noise over the name, noise beside it, and no text at all."""
    pytest.importorskip(
        "rapidocr_onnxruntime", reason="finding text needs rapidocr: pip install 'mmedpo[text]'", exc_type=ImportError
    )
    pairs = [(film(40), film(40, NAME)), (film(60), film(60, np.s_[100:140, 20:80]))]
    pairs.append((film(80, text=""), film(80, NAME, "")))
    rows = [row(0, images=[film(20)])]
    rows += [row(n, visual=True, images=[a], rejected_images=[b]) for n, (a, b) in enumerate(pairs, start=1)]
    (tmp_path / "pairs").mkdir()
    shards.save(rows, tmp_path / "pairs")
    return tmp_path / "pairs"


def test_text_and_noise_over_it_are_counted_and_shown(dataset: Path, run: Run, tmp_path: Path) -> None:
    code, said = run("audit", dataset, "--text", "--output", tmp_path / "audit")
    assert code == 0, said
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())["burnt_text"]
    assert (found["images"], found["with_text"], found["kinds"]) == (4, 3, {"name": 3})
    assert (found["visual_pairs"], found["noised_text"]) == (3, 1)
    assert "33%" in found["warning"]
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert page.count("<image ") == 3 and "JANE" in page and "JANE" in said
    assert "JANE" not in (tmp_path / "audit" / "audit.json").read_text()
    assert not list((tmp_path / "audit").glob("*.ledger*"))


def test_of_restricted_data_texts_are_counted_alone(dataset: Path, run: Run, tmp_path: Path) -> None:
    (dataset / "CREDENTIALED").touch()
    code, said = run("audit", dataset, "--text", "--output", tmp_path / "audit")
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert code == 0 and "3 of 4" in said
    assert "JANE" not in page + said and "<image " not in page


def test_nobody_looks_unasked_and_files_of_names_hold_no_pixels(dataset: Path, run: Run, tmp_path: Path) -> None:
    assert run("audit", dataset, "--output", tmp_path / "audit")[0] == 0
    assert "burnt_text" not in json.loads((tmp_path / "audit" / "audit.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([{"chosen": "a", "rejected": "b", "image": "a.png"}]))
    assert run("audit", tmp_path / "rows.json", "--text")[0] == 2
