"""Visual pairs in balance: thinned by answer, reversed pairs beside the others, and controls with healthy noise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standins import STANDINS

from mmedpo import schema
from mmedpo.curation.balance import COMMONER, NO_LESION, NO_PLACE, healthy_place
from mmedpo.curation.localize import Region
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import loading
from mmedpo.data.images import pixels
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.errors import InputError
from mmedpo.evaluation.questions import Asked, read
from mmedpo.report import audit

BOX = {"label": "nodule", "x": 2, "y": 4, "w": 6, "h": 8}
KINDS = ("hallucinated_response", "lesion_noise", "image_noise", "reversed_noise")


@pytest.fixture
def source(make_source: Callable[..., Path]) -> Path:
    """Five questions with a lesion, of which four are answered yes; and one without, about an image with one."""
    asked = [("yes", [BOX])] * 4 + [("no", [BOX]), ("no", [])]
    return make_source([
        {"id": str(place), "image": "ab"[place % 2] + ".png", "question": f"Is there lesion {place}?", "answer": answer,
         "boxes": boxes, "task": "closed_vqa"}
        for place, (answer, boxes) in enumerate(asked)
    ])  # fmt: skip


def curated(source: Path, folder: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    folder.mkdir()
    curate_folder(Settings(source=source, **STANDINS, **options), folder)
    assert schema.validate(loading.load(str(folder))) == []
    found = schema.undecoded(loading.load(str(folder)))
    return {row["id"].split("/", 1)[1]: row for row in found}, json.loads((folder / "manifest.json").read_text())


def said(row: dict[str, Any]) -> tuple[str, str]:
    return schema.message_text(row["chosen"]), schema.message_text(row["rejected"])


def test_visual_pairs_are_thinned_to_as_many_for_yes_as_for_no(source: Path, tmp_path: Path) -> None:
    plain, _ = curated(source, tmp_path / "plain")
    thin, manifest = curated(source, tmp_path / "thin", balance="answer")
    again, _ = curated(source, tmp_path / "again", balance="answer")
    visual = [row for row in thin.values() if KINDS[row["dispreference"]] == "lesion_noise"]
    assert Counter(said(row)[0] for row in visual) == {"yes": 1, "no": 1}
    assert manifest["rejects"][COMMONER] == 3
    assert thin.keys() == again.keys() < plain.keys()
    assert len(plain) - len(thin) == 3  # text pairs stay
    kept = {tuple(thin.keys())} | {
        tuple(curated(source, tmp_path / str(seed), balance="answer", seed=seed)[0]) for seed in range(1, 5)
    }
    assert len(kept) > 1  # the seed draws


def test_reversed_pairs_stand_beside_the_others(source: Path, tmp_path: Path) -> None:
    rows, manifest = curated(source, tmp_path / "pairs", symmetric=True)
    assert manifest["counts"] == {"hallucinated_response": 6, "lesion_noise": 5, "reversed_noise": 5}
    for place in range(5):
        lesion, other = (rows[f"{place}/{kind}"] for kind in ("lesion_noise", "reversed_noise"))
        assert other["images"] == lesion["rejected_images"] and other["rejected_images"] is None
        assert said(lesion)[0] == said(lesion)[1] == said(other)[1] != said(other)[0]
    found = audit.audit(str(tmp_path / "pairs"))
    assert found["preferred"] == {"yes": 5, "no": 5, "warning": None}


def test_controls_have_the_texts_of_text_pairs_and_noise_beside_the_lesion(source: Path, tmp_path: Path) -> None:
    rows, manifest = curated(source, tmp_path / "pairs", healthy_noise=True)
    assert manifest["counts"] == {"hallucinated_response": 12, "lesion_noise": 5} and manifest["controls"] == 6
    for place in range(6):
        text, control = rows[f"{place}/hallucinated_response"], rows[f"{place}/healthy_noise"]
        assert said(control) == said(text) and control["rejected_images"] is None
        assert control["clinical_relevance"] == text["clinical_relevance"]
        before, after = (pixels(row["images"][0]) for row in (text, control))
        changed = before != after
        assert changed[4:12, 24:30].mean() > 0.9  # mirrored in an image of 32 pixels
        changed[4:12, 24:30] = False
        assert not changed.any()
        assert control["provenance"]["boxes"][0] | {"label": ""} == {
            "label": "", "x": 24, "y": 4, "width": 6, "height": 8, "confidence": 1,
        }  # fmt: skip
    found = audit.audit(str(tmp_path / "pairs"))
    assert found["faults"] == found["shared_groups"] == []
    assert found["near_duplicates"]["images"] == 2  # not the noised ones
    asked = read(Asked(dataset=str(tmp_path / "pairs")))
    assert len(asked.questions) == 6 and asked.record["rows_left_out"] == {"the image has noise": 6}


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([Box("", 2, 4, 6, 8)], (24, 4)),  # mirrored
        ([Box("", 2, 4, 6, 8), Box("", 24, 4, 6, 8)], None),  # there is a lesion: drawn
        ([Box("", 0, 0, 32, 20)], NO_PLACE),
        ([], NO_LESION),
    ],
)
def test_a_healthy_place_touches_no_lesion(make_source: Callable[..., Path], boxes: list[Box], expected: Any) -> None:
    file = make_source([{}]) / "a.png"
    sample = Sample("q", (SampleImage(file, "a.png"),), "q", "a", "open_vqa", None, "train", "src", "cc0-1.0")
    regions = [Region((box,)) for box in boxes]
    found = healthy_place(sample, regions, 0)
    if isinstance(expected, str):
        assert found == expected
        return
    assert isinstance(found, Region)
    assert expected is None or (found.boxes[0].x, found.boxes[0].y) == expected
    mask = found.pixels(32, 32)
    assert mask.sum() == 48
    assert not (mask & np.logical_or.reduce([region.pixels(32, 32) for region in regions])).any()
    assert found == healthy_place(sample, regions, 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"symmetric": True, "reversed": True}, "leave out one"),
        ({"symmetric": True, "localizer": "none"}, "symmetric: there are no visual pairs"),
        ({"balance": "answer", "localizer": "none"}, "balance: there are no visual pairs"),
        ({"healthy_noise": True, "noise_region": "image"}, "the whole image is noised"),
        ({"healthy_noise": True, "chat": "none"}, "healthy_noise needs rejected responses"),
        ({"symmetric": True, "chat": "none"}, "there are no rejected responses"),
        ({"balance": "yes"}, "balance"),
    ],
)
def test_options_that_cannot_apply_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Settings(source=Path("source"), **{**STANDINS, **options})
