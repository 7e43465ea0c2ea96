"""Noise is as strong at a model's input whatever the image's size; small images and grey ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as tf
from PIL import Image

from mmedpo.curation.noise import corrupt, generator, is_grey, schedule
from mmedpo.curation.plan import noise_of, with_noise_pixels
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.models import model_input

# A third of the families' published sizes, for pictures of a third of 512, 1024 and 3000 pixels.
CLIP = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA": lambda: tf.CLIPImageProcessorPil(**CLIP),
    "LLaVA-NeXT": lambda: tf.LlavaNextImageProcessorPil(**CLIP, image_grid_pinpoints=[[224, 224], [112, 224]]),
    "PaliGemma": lambda: tf.SiglipImageProcessorPil(size={"height": 75, "width": 75}),
    "Gemma3": lambda: tf.Gemma3ImageProcessorPil(size={"height": 299, "width": 299}),
    "InternVL": lambda: tf.GotOcr2ImageProcessorPil(size={"height": 149, "width": 149}, crop_to_patches=True),
    "Idefics3": lambda: tf.Idefics3ImageProcessorPil(
        size={"longest_edge": 484}, max_image_size={"longest_edge": 121}, do_image_splitting=True
    ),
    "Qwen-VL, small budget": lambda: tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 334**2}),
    "Qwen-VL, large budget": lambda: tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 1195**2}),
}
SIZES = (171, 341, 1000)
BOX = {"x": 9, "y": 9, "w": 90, "h": 99}
NOISED = ("diffusion", "gaussian")


def picture(width: int, height: int, grain: int = 24) -> Image.Image:
    """Grey blobs of nearly full contrast."""
    blobs = np.clip(128 + 90 * np.random.default_rng(5).standard_normal((grain, grain)), 0, 255).astype(np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def middle(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape[:2], dtype=bool)
    height, width = shape[:2]
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return mask


def left_over(processor: Any, width: int, height: int, pixels: int | None) -> dict[str, float]:
    """Correlation of noised and original at the model's input, over all its pictures and whole.

    All of the image is noised, so that one seed gives images of all sizes the same cells, and its middle is compared.
    """
    image = np.asarray(picture(width, height))
    noised = corrupt(image, np.ones(image.shape, dtype=bool), "diffusion", generator(0, "a"), pixels=pixels)
    opened = [Image.fromarray(array).convert("RGB") for array in (image, noised, middle(image.shape))]
    tall = (np.concatenate([v.reshape(-1, 3) for v in model_input.views(processor, array)]) for array in opened)
    found = {}
    whole = (model_input.overview(processor, array) for array in opened)
    for seen, (before, after, inside) in {"all": tall, "overview": whole}.items():
        found[seen] = model_input.correlation(before, after, inside[..., 0] > 240)
    return found


@pytest.mark.parametrize("family", PROCESSORS)
def test_correlation_at_the_models_input_does_not_depend_on_the_image_s_size(family: str) -> None:
    processor = PROCESSORS[family]()
    side = model_input.longer_side(processor)
    found = [left_over(processor, width, round(width * 0.6), side) for width in SIZES]
    for seen in ("all", "overview"):
        values = [one[seen] for one in found]
        assert max(values) - min(values) < 0.05, (seen, values)
        assert min(values) > 0.1 and max(values) < 0.45  # nearly full contrast: 0.47 of it against 0.88 of noise


@pytest.mark.parametrize("family", ["LLaVA", "PaliGemma"])
def test_noise_of_every_pixel_averages_away_in_a_large_image(family: str) -> None:
    processor = PROCESSORS[family]()
    small, _, large = (left_over(processor, size, size, None)["overview"] for size in SIZES)
    assert large - small > 0.3


@pytest.mark.parametrize("shape", [(64, 64), (48, 64), (336, 200), (64, 64, 3)])
@pytest.mark.parametrize("method", NOISED)
def test_images_no_larger_than_the_model_s_have_noise_of_every_pixel(method: str, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    mask = middle(shape)
    eps = generator(0, "a").standard_normal(image[mask].shape)
    abar = schedule()[799]
    mixed = np.sqrt(abar) * (image[mask] / 127.5 - 1) + np.sqrt(1 - abar) * eps
    made = (mixed + 1) * 127.5 if method == "diffusion" else 10 * eps
    expected = image.copy()
    expected[mask] = np.clip(np.rint(made), 0, 255)
    for pixels in (336, 337, 10**9, None):
        assert np.array_equal(corrupt(image, mask, method, generator(0, "a"), pixels=pixels), expected)


@pytest.mark.parametrize("shape", [(300, 400), (300, 400, 3)])
def test_each_cell_has_one_number_of_unit_variance(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 128, dtype=np.uint8) if len(shape) == 2 else np.full(shape, (150, 110, 128), dtype=np.uint8)
    noised = corrupt(image, np.ones(shape[:2], dtype=bool), "diffusion", generator(0, "a"), step=300, pixels=160)
    # 3/4 of 160 pixels are 120 cells of 400 / 120 pixels: 10 pixels to 3 cells, in both directions.
    places = np.add.outer(10 * np.arange(40), [0, 4, 7]).ravel()  # where cells begin
    assert all(np.array_equal(noised[:, 10 * k], noised[:, 10 * k + 3]) for k in range(40))
    cells = noised[places[:90]][:, places].astype(float)
    assert cells.shape[:2] == (90, 120)
    noise = (cells - cells.mean(axis=(0, 1))) / (127.5 * np.sqrt(1 - schedule()[299]))
    assert noise.var() == pytest.approx(1, abs=5 * np.sqrt(2 / (90 * 120)))
    across = np.mean(noise[:, 1:] * noise[:, :-1])  # neighbouring cells know nothing of each other
    assert abs(across) < 5 / np.sqrt(90 * 120)


def as_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def coloured_picture(kind: str) -> np.ndarray:
    grey = np.asarray(picture(200, 200))
    image = np.stack([grey] * 3, axis=-1)
    if kind == "tint":
        return (image * [1.0, 0.97, 0.95]).astype(np.uint8)
    if kind == "sepia":
        return (image * [1.0, 0.9, 0.75]).astype(np.uint8)
    if kind == "chroma noise":
        return np.clip(image + np.random.default_rng(0).integers(-4, 5, image.shape), 0, 255).astype(np.uint8)
    if kind == "JPEG of a tint":
        return as_jpeg((image * [1.0, 0.97, 0.95]).astype(np.uint8), 30)
    if kind == "an arrow":
        image[10:20, 10:50] = (255, 0, 0)  # 1 % of the image
        return image
    if kind == "Doppler":
        image[60:120, 60:140] = np.where(image[60:120, 60:140, :1] > 128, (220, 40, 20), (20, 40, 220))
        return image
    stain = np.asarray(picture(200, 200, grain=40)) / 255  # haematoxylin and eosin
    return (stain[..., None] * (40, 120, 60) + (180, 90, 170)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("pixels", [None, 100])
@pytest.mark.parametrize(
    ("kind", "grey"),
    [("tint", True), ("chroma noise", True), ("JPEG of a tint", True), ("an arrow", True), ("Doppler", False),
     ("pathology", False), ("sepia", False)],
)  # fmt: skip
def test_grey_images_have_grey_noise_and_coloured_ones_noise_of_each_channel(
    kind: str, grey: bool, pixels: int | None
) -> None:
    image = coloured_picture(kind)
    assert is_grey(image) is grey
    mask = middle(image.shape)
    noised = corrupt(image, mask, "diffusion", generator(0, "a"), step=300, pixels=pixels)
    added = (noised.astype(float) - (image - 127.5) * np.sqrt(schedule()[299]) - 127.5)[mask]
    inner = ((noised > 0) & (noised < 255))[mask].all(axis=1)
    between = np.corrcoef(added[inner].T)[0, 1:]
    assert (between > 0.99).all() if grey else (np.abs(between) < 0.2).all()
    assert np.array_equal(noised[~mask], image[~mask])


def test_grey_image_has_the_same_noise_in_one_channel_and_in_three() -> None:
    grey = np.asarray(picture(200, 150))
    mask = middle(grey.shape)
    one, three = (
        corrupt(image, mask, "diffusion", generator(0, "a"), pixels=100) for image in (grey, np.stack([grey] * 3, -1))
    )
    assert np.array_equal(three, np.stack([one] * 3, -1))


# What is recorded.


@pytest.mark.parametrize(
    ("options", "processor", "expected", "said"),
    [
        ({}, None, 336, "no --model is named"),
        ({"model": "its processor is given"}, "Gemma3", 299, None),
        ({"model": "org/model"}, "Gemma4", 336, "the processor of org/model gives no size"),
        ({"noise": "gaussian", "localizer": "none", "noise_region": "image"}, "PaliGemma", 75, None),
        ({"model": "is not read", "noise_pixels": 1000}, None, 1000, None),
        ({"model": "is not read", "noise": "black"}, None, None, None),
        ({"model": "is not read", "localizer": "none"}, None, None, None),
    ],
)
def test_noise_pixels_are_the_targets_own_unless_they_are_given(
    options: dict[str, Any], processor: str | None, expected: int | None, said: str | None
) -> None:
    makers = {**PROCESSORS, "Gemma4": tf.Gemma4ImageProcessorPil}
    told: list[str] = []
    settings = with_noise_pixels(
        Settings(source=Path("data"), **options), processor and makers[processor](), told.append
    )
    assert [f"at 336 pixels, since {said}." in line for line in told] == [True] * (said is not None)
    assert settings.noise_pixels == expected
    assert noise_of(settings).pixels == (expected or 336)
    assert with_noise_pixels(settings) == settings


@pytest.mark.parametrize(("pixels", "least", "most"), [(16, 0.4, 0.8), (32, 0.1, 0.45)])
def test_correlation_left_in_a_small_lesion_by_noise_pixels(pixels: int, least: float, most: float) -> None:
    """A mask of 5 % of the side: why fewer than 32 pixels are refused."""
    image = np.asarray(picture(1024, 1024, grain=64))
    found = []
    for number in range(40):
        top, left = np.random.default_rng(number).integers(0, 1024 - 51, 2)
        mask = np.zeros(image.shape, dtype=bool)
        mask[top : top + 51, left : left + 51] = True
        noised = corrupt(image, mask, "diffusion", generator(number, "a"), pixels=pixels)
        if noised[mask].std() > 0:
            found.append(np.corrcoef(image[mask], noised[mask])[0, 1])
    assert least <= np.median(found) <= most, np.median(found)


def test_recorded_settings_make_the_same_dataset_without_the_target(
    make_source: Callable[..., Path], tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    picture(400, 300).save(buffer, "PNG")
    row = {"image": "a.png", "question": "What is seen?", "answer": "a mass", "boxes": [BOX]}
    source = make_source([row], images={"a.png": buffer.getvalue()})
    made = []
    for name, options in {"first": {}, "again": {"noise_pixels": 336}, "finer": {"noise_pixels": 500}}.items():
        (tmp_path / name).mkdir()
        manifest = curate_folder(Settings(source=source, chat="none", **options), tmp_path / name)
        assert manifest is not None
        made.append((next((tmp_path / name / "data").iterdir()).read_bytes(), manifest["settings"]))
    assert made[0] == made[1]
    assert made[0][0] != made[2][0]
