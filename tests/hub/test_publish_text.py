"""Text burnt into the images of a dataset: what is said and asked before they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub.publishable import make_dataset
from hub.server import Hub
from huggingface_hub import constants
from PIL import Image, ImageDraw, ImageFont

from mmedpo.data.images import png
from mmedpo.errors import InputError
from mmedpo.hub import cards
from mmedpo.hub.publish import burnt_text, publish

MASKED = {"found_by": "ocr 1", "images": 3, "with_text": 2, "kinds": {"name": 2}, "masked": True,
          "masked_images": 2, "masked_boxes": 2, "lesions_under_text": 0}  # fmt: skip
FILLED = {"license": "CC0 1.0", "privacy": "Somebody looked."}


def film(row: dict[str, Any]) -> None:
    """Write a name into the image of a row, but not of the first."""
    import numpy as np

    name = "" if row["id"].endswith("/0") else "JANE DOE"
    picture = Image.new("L", (220, 120), 20 + int(row["id"][5:]))
    ImageDraw.Draw(picture).text((10, 10), name, fill=255, font=ImageFont.load_default(26))
    row["images"] = [png(np.asarray(picture), "film")]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip(
        "rapidocr_onnxruntime", reason="finding text needs rapidocr: pip install 'mmedpo[text]'", exc_type=ImportError
    )
    return make_dataset(tmp_path_factory.mktemp("films") / "pairs", 3, change=film)


@pytest.fixture
def send(films: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Publish the films as of a source with these terms; nobody can be asked unless `confirm` is given."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def go(record: dict[str, Any], source: dict[str, Any], **options: Any) -> Any:
        manifest = {**json.loads((films / "manifest.json").read_text()), "burnt_text": {}, **record}
        manifest["source"] = {"name": "ward", "split": "train", "split_by": "image", "questions": 3, **source}
        (films / "manifest.json").write_text(json.dumps(manifest))
        cards.write_dataset_card(films)
        asked: dict[str, Any] = {"confirm": None, "fill": FILLED, "endpoint": hub.url, "token": "write"}
        repo = "user/masked" if record else "user/films"
        return publish(films, repo, **{**asked, **options})

    return go


def test_text_of_a_private_source_is_asked_about(send: Any, hub: Hub) -> None:
    questions: list[str] = []
    with pytest.raises(InputError, match=r"2 of 3 images carry text .*no licence"):
        send({}, {"license": "unknown"})
    done = send({}, {"license": "unknown"}, confirm=lambda question: not questions.append(question))
    assert len(questions) == 1 and "name 2" in questions[0]
    assert any("2 of 3 images carry text" in notice for notice in done.notices)
    assert "2 of 3 images carry text" in hub.files("user/films", "dataset")["README.md"].decode()
    assert "DOE" not in "".join(questions)


def test_public_sources_are_not_read_and_masked_ones_not_asked_about(send: Any, hub: Hub) -> None:
    done = send({}, {"license": "CC BY 4.0"}, dry_run=True)
    assert any("were not looked for" in notice for notice in done.notices)
    send({}, {"license": "CC BY 4.0"})
    done = send({"burnt_text": MASKED}, {"license": "unknown"})
    assert any("It is black on both sides: 2 boxes in 2 images" in notice for notice in done.notices)
    assert "It is black on both sides" in hub.files("user/masked", "dataset")["README.md"].decode()


def test_a_private_source_that_nobody_looked_at_is_asked_about(send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmedpo.data.burnt_text.is_installed", lambda: False)
    with pytest.raises(InputError, match=r"not looked for.*no licence"):
        send({}, {"license": "unknown"})


def test_restricted_data_sent_whole_asks_about_both(send: Any) -> None:
    source, options = {"license": "CC BY 4.0", "credentialed": True}, {"third_parties": True}
    with pytest.raises(InputError, match=r"(?s)is restricted data.*2 of 3 images carry text"):
        send({}, source, **options)


def test_sample_of_many_images_says_so(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burnt_text, "SAMPLE", 2)
    found = burnt_text.found({"source": {"license": "unknown"}}, {"train": sorted((films / "data").iterdir())})
    assert found and (found["images"], found["of"]) == (2, 3)
