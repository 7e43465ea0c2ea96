"""Noise per image: questions about one image and region share the noised image; and per row, as in earlier versions."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from standins import STANDINS
from transformers import AutoProcessor

from mmedpo import schema
from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise, box_mask, pack_mask
from mmedpo.curation.noiser import KEPT, Noiser
from mmedpo.curation.rows import TEXT_PAIR, Makers, Pair, dataset_rows
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import images, loading, shards
from mmedpo.data.images import pixels
from mmedpo.data.samples import Box, Sample, SampleImage
from mmedpo.errors import InputError
from mmedpo.training.collator import PreferenceCollator

BOX = Box("nodule", 8, 8, 24, 16)
GRID = np.add.outer(np.arange(48), np.arange(64)).astype(np.uint8) * 2


def shown(file: Path) -> tuple[SampleImage, ...]:
    return (SampleImage(file, "a.png"),)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    Image.fromarray(GRID).save(tmp_path / "a.png")
    return Sample("q1", shown(tmp_path / "a.png"), "q", "a", "open_vqa", None, "train", "src", "cc0-1.0")


def made(sample: Sample, noise: Noise, seed: int = 7, region: Region | None = None) -> bytes:
    return Noiser(noise, seed)(sample, region or Region((BOX,)))[0]["bytes"]


@pytest.mark.parametrize(
    ("noise", "digest"),
    [
        (Noise(), "e37bbaf030b961d5"),
        (Noise("gaussian", region="image"), "7ce2d49d90941a39"),
        (Noise("crop"), "c6ca1a25c81be1a2"),
        (Noise(edge=3, reversed=True, pixels=32), "f4861ca9896280da"),
    ],
)
def test_noise_per_row_is_that_of_versions_without_the_option(sample: Sample, noise: Noise, digest: str) -> None:
    found = pixels(made(sample, replace(noise, per="row")))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == digest


def test_noise_per_image_depends_on_pixels_and_region_alone(sample: Sample, tmp_path: Path) -> None:
    first = made(sample, Noise())
    Image.fromarray(GRID).convert("RGB").save(tmp_path / "copy.bmp")
    others = (replace(sample, id="q2", source="other"), replace(sample, images=shown(tmp_path / "copy.bmp")))
    called = Region((replace(BOX, label="mass", confidence=0.3),), query="mass")
    assert {made(other, Noise(), region=called) for other in others} == {first}
    assert made(sample, Noise(), region=Region((BOX,), pack_mask(box_mask((BOX,), 48, 64)))) == first
    assert made(others[0], Noise(per="row")) != made(sample, Noise(per="row"))

    beside, below = Region((replace(BOX, x=9),)), Region(mask=pack_mask(np.arange(48 * 64).reshape(48, 64) > 2000))
    Image.fromarray(GRID + 1).save(tmp_path / "b.png")
    brighter = made(replace(sample, images=shown(tmp_path / "b.png")), Noise())
    different = [made(sample, Noise(), region=beside), made(sample, Noise(), region=below), made(sample, Noise(), 8)]
    different += [
        made(sample, noise) for noise in (Noise("gaussian"), Noise(step=700), Noise(edge=1), Noise(pixels=32))
    ]
    assert len({first, brighter, *different}) == 9
    # Not the noise of the other image, or region, shifted.
    ours, theirs = pixels(first)[8:24, 9:32].astype(int), pixels(brighter)[8:24, 9:32].astype(int)
    assert abs(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]) < 0.4


def test_an_image_is_noised_once_for_each_region(sample: Sample, tmp_path: Path) -> None:
    regions = [Region((replace(BOX, x=x, label=label),)) for label in ("a", "b", "c") for x in range(5)]
    noiser, whole, row = Noiser(Noise(), 0), Noiser(Noise(region="image"), 0), Noiser(Noise(per="row"), 0)
    for region in regions:
        assert noiser(sample, region) == noiser(replace(sample, id="q2"), region)
        whole(sample, region)
        row(sample, region)
    assert noiser.shared.cache_info() == (25, 5, KEPT, 5)
    assert whole.shared.cache_info() == (14, 1, KEPT, 1)
    assert row.shared.cache_info() == (0, 0, KEPT, 0)


def both_pairs(sample: Sample) -> Iterator[dict[str, Any]]:
    pairs = [Pair(sample, TEXT_PAIR, None), Pair(sample, "lesion_noise", 0.5)]
    steps: Any = {
        "dispute": {sample.id: {"text": "b", "made_by": "m"}}, "locate": {sample.id: Region((BOX,)).record()},
        "judge": {}, "sample": {},
    }  # fmt: skip
    makers = Makers(None, None, "boxes", None, Noise(), 7)
    return dataset_rows(((one, 1.0, steps) for one in pairs), makers, False)


def test_images_of_rows_are_decoded_once(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, decode = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda image: decoded.append(image) or decode(image))  # type: ignore[func-returns-value]
    shards.write(both_pairs(sample), tmp_path, "train", 0, 1)
    assert [image["bytes"] for image in decoded] == [images.embedded(sample.images[0].file)["bytes"]]


def test_images_of_rows_are_decoded_before_they_are_written(sample: Sample, tmp_path: Path) -> None:
    data = sample.images[0].file.read_bytes()
    start, end = data.index(b"IDAT"), data.index(b"IEND")
    length = int.from_bytes(data[start - 4 : start], "big")
    lines = bytearray(zlib.decompress(data[start + 4 : start + 4 + length]))
    lines[0] = 9  # no filter of PNG
    packed = b"IDAT" + zlib.compress(lines)
    size, check = (number.to_bytes(4, "big") for number in (len(packed) - 4, zlib.crc32(packed)))
    sample.images[0].file.write_bytes(data[: start - 4] + size + packed + check + data[end - 4 :])
    text = next(both_pairs(sample))
    with pytest.raises(InputError) as raised:
        shards.write([text], tmp_path, "train", 0, 1)
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [("src/q1/hallucinated_response", "images")]


def rows_of(source: Path, folder: Path, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    folder.mkdir()
    curate_folder(Settings(source=source, **STANDINS, **options), folder)
    rows = [row for row in schema.undecoded(loading.load(str(folder))) if row["dispreference"]]
    return rows, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("reversed_", [False, True])
def test_curated_questions_share_noised_images(
    make_source: Callable[..., Path], tmp_path: Path, reversed_: bool
) -> None:
    boxes = [[{"label": "nodule", "x": x, "y": 2, "w": 6, "h": 6}] for x in (1, 9)]
    asked = [("a.png", 0), ("b.png", 0), ("a.png", 0), ("a.png", 1), ("b.png", 0)]
    source = make_source([
        {"id": str(i), "image": image, "question": f"Is there {i}?", "answer": "yes", "boxes": boxes[region]}
        for i, (image, region) in enumerate(asked)
    ])  # fmt: skip
    side = "images" if reversed_ else "rejected_images"
    for per, count in (("image", 3), ("row", 5)):
        rows, manifest = rows_of(source, tmp_path / per, reversed=reversed_, noise_per=per)
        by_region: dict[Any, set[bytes]] = {}
        for row in rows:
            key = asked[int(row["provenance"]["sample_id"])]
            by_region.setdefault(key, set()).add(row[side][0]["bytes"])
        assert len(rows) == 5 and len(by_region) == 3 and sum(map(len, by_region.values())) == count
        assert len(set.union(*by_region.values())) == count
        assert {row["provenance"]["noise_per"] for row in rows} == {manifest["noise"]["per"]} == {per}
        assert manifest["settings"]["noise_per"] == per
        assert [row["provenance"]["image_id"][0] for row in rows] == list("aaabb")
    again, _ = rows_of(source, tmp_path / "default", reversed=reversed_)
    assert [row[side] for row in again] == [
        row[side] for row in schema.undecoded(loading.load(str(tmp_path / "image"))) if row["dispreference"]
    ]


def test_pairs_of_an_image_are_a_row_of_a_batch_and_one_for_each_region(preferences: Path, tiny_model: Path) -> None:
    by_image: dict[bytes, list[dict[str, Any]]] = {}
    for row in loading.load(str(preferences)):
        by_image.setdefault(row["images"][0].tobytes(), []).append(row)
    collator, shared = PreferenceCollator(AutoProcessor.from_pretrained(tiny_model), share="images", once=True), 0
    for pairs in by_image.values():
        visual = [str(row["provenance"]["boxes"]) for row in pairs if row["dispreference"]]
        shared += len(visual) - len({*visual})
        batch = collator(pairs)
        assert len(batch["pixel_values"]) == 1 + len({*visual}) <= len(batch["input_ids"])  # a tree may be split
    assert shared > 3
