"""Burnt-in text is black wherever a curated image is seen: both sides, chat models, localizers."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Answer, ChatServer
from PIL import Image, ImageDraw, ImageFont
from standins import STANDINS

from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import images, loading
from mmedpo.data.burnt_text import Finder
from mmedpo.errors import InputError
from mmedpo.runs.run_folder import output_folder
from mmedpo.schema import undecoded

MakeSource = Callable[..., Path]
NAME, MARK = (10, 8, 190, 34), (176, 120, 200, 150)  # left, top, right, bottom of "DOE, JANE" and of "R"
BOX = {"label": "mass", "x": 60, "y": 90, "w": 50, "h": 40}
UNDER = {"label": "mass", "x": 4, "y": 4, "w": 60, "h": 60}  # a lesion that the name is written over


def film(format: str = "PNG", text: bool = True) -> bytes:
    """A grey film, with `text` a name in the corner and the marker of a side."""
    picture = Image.new("L", (220, 180), 60)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((50, 60, 170, 170), fill=110)
    for place, words in ((NAME, "DOE, JANE"), (MARK, "R")):
        draw.text(place[:2], words if text else "", fill=255, font=ImageFont.load_default(26))
    file = io.BytesIO()
    picture.save(file, format)
    return file.getvalue()


@pytest.fixture
def source(make_source: MakeSource) -> Path:
    pytest.importorskip(
        "rapidocr_onnxruntime", reason="masking text needs rapidocr: pip install 'mmedpo[text]'", exc_type=ImportError
    )
    ask = {"question": "What is seen?", "answer": "a mass"}
    rows = [
        {"id": "1", "image": "film.png", "boxes": [BOX, UNDER], **ask},
        {"id": "2", "image": "film.jpg", "boxes": [BOX], **ask},
        {"id": "3", "image": "plain.png", "boxes": [BOX], **ask},
    ]
    pictures = {"film.png": film(), "film.jpg": film("JPEG"), "plain.png": film(text=False)}
    return make_source(rows, images=pictures)


def curate(source: Path, output: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    settings = Settings(source=source, **{**STANDINS, "weights": "none", **options})
    with output_folder(output, settings.record()) as folder:
        curate_folder(settings, folder)
    assert not (output / "masked").exists() and not list(output.glob("*.ledger*"))
    manifest = json.loads((output / "manifest.json").read_text())
    return list(undecoded(loading.load(str(output)))), manifest


def inside(image: dict[str, Any], place: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = place
    return images.pixels(image["bytes"])[top:bottom, left:right]


def test_text_is_black_on_both_sides_and_markers_stay(source: Path, tmp_path: Path) -> None:
    rows, manifest = curate(source, tmp_path / "pairs", mask_text=True)
    rows = [row for row in rows if row["provenance"]["sample_id"] in "12"]
    assert {row["dispreference"] for row in rows} == {0, 1}
    for row in rows:
        seen = [*row["images"], *(row["rejected_images"] or [])]
        assert len(seen) == 1 + (row["dispreference"] == 1)
        for image in seen:
            assert image["bytes"][:4] == b"\x89PNG"
            assert inside(image, NAME)[4:-4, 60:-60].max() == 0  # left of it lies the noise
            assert inside(image, MARK).max() > 200
    record = manifest["burnt_text"]
    assert record["masked"] is True
    assert (record["images"], record["with_text"], record["masked_images"]) == (3, 2, 2)
    assert record["kinds"]["name"] == record["masked_boxes"] == 2 and record["kinds"]["marker"] == 2
    assert record["lesions_under_text"] == 1


def test_page_of_text_alone_is_a_counted_reject(source: Path, tmp_path: Path) -> None:
    page = Image.new("L", (220, 60), 0)
    ImageDraw.Draw(page).text((10, 8), "DOE, JANE", fill=255, font=ImageFont.load_default(26))
    page.save(source / "plain.png")
    rows, manifest = curate(source, tmp_path / "pairs", mask_text=True)
    assert {row["provenance"]["sample_id"] for row in rows} == {"1", "2"}
    assert manifest["rejects"] == {"the image shows text alone, which is masked": 1}


def test_images_without_text_and_splits_are_the_sources(source: Path, tmp_path: Path) -> None:
    masked, manifest = curate(source, tmp_path / "masked", mask_text=True)
    as_it_is, plain = curate(source, tmp_path / "plain")
    assert "burnt_text" not in plain
    of = [[row["images"] for row in rows if row["provenance"]["sample_id"] == "3"] for rows in (masked, as_it_is)]
    assert of[0] == of[1]
    assert [row["id"] for row in masked] == [row["id"] for row in as_it_is]
    assert manifest["contents"]["source"] == plain["contents"]["source"]


def test_chat_models_are_shown_masked_images(source: Path, tmp_path: Path, chat_server: ChatServer) -> None:
    chat_server.answer = lambda received: Answer(json.dumps({"answer": "a cyst"}))
    asked = {"chat": f"{chat_server.url}#writer", "show_images": True, "judges": ["none"]}
    curate(source, tmp_path / "pairs", mask_text=True, **asked)
    parts = [part for one in chat_server.received if one.has_image for part in one.body["messages"][-1]["content"]]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    shown = {base64.b64decode(url.partition(",")[2]) for url in urls}
    assert len(shown) == 3
    finder = Finder()
    assert {box.label for picture in shown for box in finder(picture)} == {"R"}


def test_resumed_run_reads_no_image_again_and_ends_the_same(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, manifest = curate(source, tmp_path / "whole", mask_text=True)
    settings = Settings(source=source, mask_text=True, **{**STANDINS, "weights": "none"})
    with monkeypatch.context() as patch:
        patch.setattr("mmedpo.curation.write.shards.write", stop)
        with pytest.raises(InputError, match="stopped"), output_folder(tmp_path / "cut", settings.record()) as folder:
            curate_folder(settings, folder)
    with monkeypatch.context() as patch:
        patch.setattr("mmedpo.data.burnt_text._read", stop)
        with output_folder(tmp_path / "cut", settings.record(), resume=True) as folder:
            curate_folder(settings, folder)
    assert list(undecoded(loading.load(str(tmp_path / "cut")))) == whole
    assert json.loads((tmp_path / "cut" / "manifest.json").read_text())["burnt_text"] == manifest["burnt_text"]


def stop(*_: Any, **__: Any) -> None:
    raise InputError("stopped")


def test_preview_shows_masked_images(source: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "mmedpo.curation.preview._draw",
        lambda shown, *_: seen.extend(images.pixels(sample.images[0].file) for sample, _ in shown) or b"",
    )
    code, said = run("preview", "--source", source, "--mask_text", "--output", tmp_path / "sheet.png")
    assert code == 0, said
    assert [inside_of(pixels) for pixels in seen] == [0, 0, 60]


def inside_of(pixels: np.ndarray) -> int:
    left, top, right, bottom = NAME
    return int(pixels[top + 4 : bottom - 4, left + 2 : right - 60].max())
