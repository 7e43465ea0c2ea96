"""Forward-diffusion noise: equation 2 of the paper inside the mask, not one bit changed outside it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmedpo.curation.noise import STEPS, box_mask, diffuse, schedule
from mmedpo.errors import InputError
from mmedpo.sources import Box

SHAPES = [(48, 64), (48, 64, 3)]  # grey, RGB


def abar(step: int) -> float:
    """The cumulative signal share by its definition (POVID's betas), one factor after the other."""
    share = 1.0
    for i in range(step):
        share *= 1 - ((0.5e-2 - 1e-5) / (1 + math.exp(6 - 12 * i / (STEPS - 1))) + 1e-5)
    return share


def picture(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def lesion_mask(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape[:2], dtype=bool)
    mask[10:30, 5:40] = True
    return mask


def test_schedule_is_the_product_of_the_betas() -> None:
    assert schedule().shape == (STEPS,)
    assert np.all(np.diff(schedule()) < 0)
    for step in (1, 500, 1000):
        assert schedule()[step - 1] == pytest.approx(abar(step), rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", [1, 800, STEPS])
def test_outside_the_mask_every_bit_is_equal(shape: tuple[int, ...], step: int) -> None:
    image, mask = picture(shape), lesion_mask(shape)
    before = image.copy()
    noised = diffuse(image, mask, step, np.random.default_rng(0))
    assert noised.dtype == np.uint8 and noised.shape == shape
    assert np.array_equal(noised[~mask], image[~mask])
    assert np.array_equal(image, before)  # the input itself is left alone


@pytest.mark.parametrize("shape", SHAPES)
def test_inside_the_mask_nearly_every_pixel_changes(shape: tuple[int, ...]) -> None:
    image, mask = picture(shape), lesion_mask(shape)
    noised = diffuse(image, mask, 800, np.random.default_rng(0))
    assert np.mean(noised[mask] != image[mask]) > 0.95  # the rest falls on its old value or stays at 0 or 255


@pytest.mark.parametrize("shape", SHAPES)
def test_the_generator_is_the_only_chance(shape: tuple[int, ...]) -> None:
    image, mask = picture(shape), lesion_mask(shape)
    first, again, other = (diffuse(image, mask, 500, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_colour_channels_get_noise_of_their_own() -> None:
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    red, green, _ = diffuse(grey, np.ones((64, 64), dtype=bool), 300, np.random.default_rng(0)).transpose(2, 0, 1)
    assert abs(np.corrcoef(red.ravel(), green.ravel())[0, 1]) < 5 / 64  # 5 standard errors of 64 * 64 pixels


@pytest.mark.parametrize("shape", [(256, 256), (256, 256, 3)])
@pytest.mark.parametrize(("value", "step"), [(128, 100), (100, 300), (140, 300)])
def test_mean_and_variance_are_those_of_the_equation(shape: tuple[int, ...], value: int, step: int) -> None:
    image = np.full(shape, value, dtype=np.uint8)
    noised = diffuse(image, np.ones(shape[:2], dtype=bool), step, np.random.default_rng(0)).astype(float)
    mean = (math.sqrt(abar(step)) * (value / 127.5 - 1) + 1) * 127.5
    variance = (1 - abar(step)) * 127.5**2
    assert min(mean, 255 - mean) > 4 * math.sqrt(variance)  # so that next to nothing is clipped
    assert noised.mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / image.size))
    # 1/12 is the variance of rounding; a sample variance has the relative standard error sqrt(2 / n)
    assert noised.var() == pytest.approx(variance + 1 / 12, rel=5 * math.sqrt(2 / image.size) + 1e-3)


def test_an_empty_mask_changes_nothing() -> None:
    image = picture((8, 8))
    assert np.array_equal(diffuse(image, np.zeros((8, 8), dtype=bool), 800, np.random.default_rng(0)), image)


@pytest.mark.parametrize(
    ("image", "mask", "step", "message"),
    [
        (np.zeros((4, 4), float), np.ones((4, 4), bool), 1, "uint8 image.*got float64"),
        (np.zeros((4, 4), np.uint16), np.ones((4, 4), bool), 1, "uint8 image.*got uint16"),
        (np.zeros(4, np.uint8), np.ones(4, bool), 1, "2 or 3 dimensions"),
        (np.zeros((1, 4, 4, 3), np.uint8), np.ones((4, 4), bool), 1, "2 or 3 dimensions"),
        (np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8), 1, "bool mask.*got uint8"),
        (np.zeros((4, 4), np.uint8), np.ones((4, 5), bool), 1, r"shape \(4, 4\), got bool with shape \(4, 5\)"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), bool), 1, r"mask of shape \(4, 4\)"),
        (np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), 0, "noise step is 0"),
        (np.zeros((4, 4), np.uint8), np.ones((4, 4), bool), 1001, "noise step is 1001"),
    ],
)
def test_wrong_arguments_are_named(image: np.ndarray, mask: np.ndarray, step: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        diffuse(image, mask, step, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("box", "rows", "columns"),  # half-open ranges of true pixels in an image 6 high and 8 wide
    [
        ((2, 1, 3, 4), (1, 5), (2, 5)),
        ((2.9, 1.1, 0.2, 0.2), (1, 2), (2, 4)),  # touches two columns
        ((0, 0, 8, 6), (0, 6), (0, 8)),
        ((-3, -2, 4, 3), (0, 1), (0, 1)),
        ((7.5, 5.5, 9, 9), (5, 6), (7, 8)),
        ((-9, -9, 99, 99), (0, 6), (0, 8)),
        ((-5, 0, 5, 6), (0, 0), (0, 0)),  # left of the image, above, right, below
        ((0, -7, 8, 3), (0, 0), (0, 0)),
        ((8, 0, 5, 6), (0, 0), (0, 0)),
        ((0, 6, 8, 5), (0, 0), (0, 0)),
    ],
)
def test_box_mask(box: tuple[float, ...], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    expected = np.zeros((6, 8), dtype=bool)
    expected[slice(*rows), slice(*columns)] = True
    assert np.array_equal(box_mask([Box("nodule", *box)], 6, 8), expected)


def test_box_mask_is_the_union_of_its_boxes() -> None:
    boxes = [Box("", 0, 0, 2, 2), Box("", 1, 1, 2, 2)]
    assert box_mask(boxes, 6, 8).sum() == 4 + 4 - 1
    assert not box_mask([], 6, 8).any()
