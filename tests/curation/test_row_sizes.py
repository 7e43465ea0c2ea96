"""Estimated bytes of rows against those that are stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from standins import STANDINS

from mmedpo.curation import rows
from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise
from mmedpo.curation.row_sizes import row_sizes
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import images
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.errors import InputError

BOX = Box("nodule", 20, 16, 24, 20)
KINDS = ("png", "jpg", "bmp")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[rows.Pair]:
    """Both pairs of two questions about each image, in grey and colour files of three kinds and four sizes."""
    folder, rng, made = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number in range(90):
        side, kind = 56 + 8 * (number % 4), KINDS[number // 30]
        shown = np.add.outer(np.arange(side), np.arange(side)).astype(float)[..., None] + rng.normal(
            0, 8, (side, side, 3)
        )
        file = folder / f"{number}.{kind}"
        Image.fromarray(shown.clip(0, 255).astype(np.uint8)).save(file)
        digest = images.digest(images.open_rgb(file))
        shown_image = SampleImage(file, file.name, (BOX,), digest=digest, size=(side, side))
        for question in range(2):
            sample = Sample(
                f"q{number}.{question}", (shown_image,), "q", "a", "open_vqa", None, "train", "src", "cc0-1.0",
            )  # fmt: skip
            made += [rows.Pair(sample, rows.TEXT_PAIR, None), rows.Pair(sample, "lesion_noise", 0.5)]
    return made


def with_image(sample: Sample, **changes: Any) -> Sample:
    return replace(sample, images=(replace(sample.images[0], **changes),))


NOISES = [None, Noise(), Noise(per="row"), Noise(region="image"), Noise("crop"), Noise(reversed=True, per="row")]
TOLD = {"text": "b", "made_by": "m"}


@pytest.mark.parametrize("noise", NOISES)
def test_estimates_are_near_what_files_of_each_format_store(pairs: list[rows.Pair], noise: Noise | None) -> None:
    given = kinds(pairs, noise)
    located = {one.sample.id: Region((BOX,)).record() for one in given}
    steps: Any = {"dispute": dict.fromkeys(located, TOLD), "locate": located, "judge": {}, "sample": {}}
    makers = rows.Makers(None, None, "boxes", None, noise, 7)
    made = rows.dataset_rows(((one, 1.0, steps) for one in given), makers, False)
    estimates = row_sizes(given, located, noise, 7)
    for _, about in groupby(given, lambda pair: pair.sample.images[0].file.suffix):
        stored, estimated = set(), 0
        for _, row, (id, size) in zip(about, made, estimates, strict=False):
            assert row["id"] == id
            stored |= {image["bytes"] for image in [*row["images"], *(row["rejected_images"] or [])]}
            estimated += size
        assert sum(map(len, stored)) == pytest.approx(estimated, rel=0.15)


def kinds(pairs: list[rows.Pair], noise: Noise | None) -> list[rows.Pair]:
    """Return the pairs with the kind of visual pair that `noise` makes, none without noise."""
    text = [pair for pair in pairs if pair.dispreference == rows.TEXT_PAIR]
    return (
        [replace(one, dispreference=noise.dispreference) if one not in text else one for one in pairs]
        if noise
        else text
    )


def test_a_changed_row_changes_its_own_estimate_alone(pairs: list[rows.Pair]) -> None:
    located = {one.sample.id: Region((BOX,)).record() for one in pairs}
    before = dict(row_sizes(pairs, located, Noise(), 7))
    other = with_image(replace(pairs[-1].sample, id="other"), digest="f")
    after = dict(
        row_sizes([*pairs, replace(pairs[-1], sample=other)], {**located, "other": located["q0.0"]}, Noise(), 7)
    )
    assert {id for id in after if after[id] != before.get(id)} == {"src/other/lesion_noise"}


def test_a_missing_file_is_named(pairs: list[rows.Pair]) -> None:
    lost = with_image(pairs[0].sample, file=Path("/nowhere/lost.png"))
    with pytest.raises(InputError, match=r"lost\.png"):
        [*row_sizes([replace(pairs[0], sample=lost)], {}, None, 7)]


def test_rows_of_two_sources_with_one_id_are_refused_before_writing(make_source: Any, tmp_path: Path) -> None:
    held = {"image": "a.png", "question": "Is there a nodule?", "answer": "yes"}
    source = make_source([{**held, "source": "a", "id": "b/c"}, {**held, "source": "a/b", "id": "c"}])
    (tmp_path / "pairs").mkdir()
    with pytest.raises(InputError) as raised:
        curate_folder(Settings(source=source, localizer="none", **STANDINS), tmp_path / "pairs")
    assert {(fault.row, fault.column) for fault in raised.value.faults} == {("a/b/c/hallucinated_response", "id")}
    assert not (tmp_path / "pairs" / "data").exists()
