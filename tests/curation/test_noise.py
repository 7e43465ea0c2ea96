"""Spoiled images: equation 2 of the paper and its rivals inside the mask, not one bit changed outside it; and masks."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmedpo.curation.noise import (
    METHODS,
    STEPS,
    box_mask,
    check_rule,
    corrupt,
    diffuse,
    generator,
    heat_mask,
    pack_mask,
    schedule,
    unpack_mask,
)
from mmedpo.data.samples import Box
from mmedpo.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(48, 64), (48, 64, 3)]  # grey, RGB
MASKED = METHODS[:3]  # all but the crop, which has no mask
# SHA-256 of the pixels of `golden`, as recorded with NumPy 2.4 and Pillow 13 on x86-64.
GOLDEN = {
    "diffusion": "36c9b91248d0b36dd7bdc2c6d0338e3030d5b2a4da262ba9196caad78adfd3bb",
    "gaussian": "0fa57d23c200721f9ffc1b1ce90d0063788bffcb9bd76c7ff628ffa03fc0bb11",
    "black": "602cc37b91c07da2ca044de96979572dfee204d3014b97374e9a4a327a083dd8",
    "crop": "5f1fb8e7c898db31ceb73ca2bf466a5e8331bccb1e86e5674e8caff6f16da212",
}


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


def test_colour_channels_get_noise_of_their_own() -> None:
    pink = np.full((64, 64, 3), (150, 110, 128), dtype=np.uint8)
    red, green, _ = diffuse(pink, np.ones((64, 64), dtype=bool), 300, np.random.default_rng(0)).transpose(2, 0, 1)
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


def test_wrong_method_and_edge_are_named() -> None:
    for method, edge, message in (("blur", 0, "method 'blur' is unknown; use one of"), ("black", -1, "edge is -1")):
        with pytest.raises(InputError, match=message):
            corrupt(picture((4, 4)), np.ones((4, 4), bool), method, generator(0, "a"), edge=edge)


# The other methods, and what all have in common.


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("edge", [0, 3, 100])
@pytest.mark.parametrize("method", MASKED)
def test_no_method_changes_a_bit_outside_the_mask(method: str, edge: int, shape: tuple[int, ...]) -> None:
    image, mask = picture(shape), lesion_mask(shape)
    mask[0, 0] = mask[-1, -1] = True  # far from the rest, in the image's corners
    before = image.copy()
    spoiled = corrupt(image, mask, method, generator(0, "a"), edge=edge)
    assert spoiled.dtype == np.uint8 and spoiled.shape == shape
    assert np.array_equal(spoiled[~mask], image[~mask]) and np.array_equal(image, before)
    assert np.mean(spoiled[mask] != image[mask]) > 0.5


def test_diffuse_is_the_diffusion_with_a_hard_edge() -> None:
    image, mask = picture((48, 64)), lesion_mask((48, 64))
    expected = corrupt(image, mask, "diffusion", generator(0, "a"), step=300)
    assert np.array_equal(diffuse(image, mask, 300, generator(0, "a")), expected)


def test_black_is_black_inside_the_mask() -> None:
    image, mask = picture((48, 64, 3)), lesion_mask((48, 64))
    assert not corrupt(image, mask, "black", generator(0, "a"))[mask].any()


def test_gaussian_replacement_is_black_with_dark_speckles() -> None:
    image = np.full((256, 256), 200, dtype=np.uint8)
    spoiled = corrupt(image, np.ones((256, 256), dtype=bool), "gaussian", generator(0, "a"))
    # Half of N(0, 10) is negative and becomes 0, as does what rounds to 0: P(z < 0.05). The rest has the mean of
    # max(0, N(0, 10)): 10 / sqrt(2 pi). Nothing wraps around to bright.
    share = 0.5 + 0.5 * math.erf(0.05 / math.sqrt(2))
    assert np.mean(spoiled == 0) == pytest.approx(share, abs=5 * math.sqrt(0.25 / image.size))
    assert spoiled.mean() == pytest.approx(10 / math.sqrt(2 * math.pi), abs=0.2)
    assert spoiled.max() < 60  # 6 standard deviations


@pytest.mark.parametrize("method", MASKED)
def test_a_mask_that_is_true_everywhere_spoils_everything(method: str) -> None:
    image, mask = picture((64, 64)), np.ones((64, 64), dtype=bool)
    spoiled = corrupt(image, mask, method, generator(0, "a"), edge=5)
    assert np.mean(spoiled != image) > 0.95
    # Where the mask has no border there is nothing to feather.
    assert np.array_equal(spoiled, corrupt(image, mask, method, generator(0, "a")))


def test_the_feathered_edge_rises_linearly() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    spoiled = corrupt(np.full((40, 40), 200, dtype=np.uint8), mask, "black", generator(0, "a"), edge=4)
    # Black is mixed in with h = 1/5, 2/5, ... from the border inwards: 200 (1 - h) is left.
    assert spoiled[20, 8:17].tolist() == [200, 200, 160, 120, 80, 40, 0, 0, 0]
    assert spoiled[8:17, 20].tolist() == [200, 200, 160, 120, 80, 40, 0, 0, 0]
    assert spoiled[11, 11] == 120  # 2 pixels from the nearest pixel outside, along a row or a column


def test_the_image_border_is_not_feathered() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:, :10] = True
    spoiled = corrupt(np.full((20, 20), 200, dtype=np.uint8), mask, "black", generator(0, "a"), edge=3)
    assert spoiled[0].tolist() == [0] * 7 + [50, 100, 150] + [200] * 10


@pytest.mark.parametrize("shape", SHAPES)
def test_the_feathered_diffusion_is_equation_2(shape: tuple[int, ...]) -> None:
    image, mask = picture(shape), lesion_mask(shape)
    h = np.zeros(shape[:2])
    for row, column in np.argwhere(mask):  # the distance to the nearest pixel outside, found the slow way
        h[row, column] = min(np.sqrt(((np.argwhere(~mask) - (row, column)) ** 2).sum(axis=1).min()) / 6, 1)
    eps = np.zeros(shape)
    eps[mask] = generator(0, "a").standard_normal(eps[mask].shape)
    if len(shape) == 3:
        h = h[..., None]
    x = image / 127.5 - 1
    expected = math.sqrt(abar(700)) * (x * h) + math.sqrt(1 - abar(700)) * (eps * h) + x * (1 - h)
    spoiled = corrupt(image, mask, "diffusion", generator(0, "a"), step=700, edge=5)
    assert np.abs(spoiled - np.clip((expected + 1) * 127.5, 0, 255)).max() < 0.5 + 1e-9


# mDPO's crop.


@pytest.mark.parametrize("size", [(60, 80), (100, 30)])
def test_the_crop_is_a_part_of_one_to_twenty_percent_at_the_size_of_all(size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)  # a pixel says where it was
    shares = []
    for row in range(200):
        crop = corrupt(image, np.zeros(size, dtype=bool), "crop", generator(0, str(row)))
        assert crop.shape == image.shape and crop.dtype == np.uint8
        tall, wide = (int(np.ptp(crop[..., c])) + 1 for c in (0, 1))
        assert 3 / 4 - 0.2 < wide / tall < 4 / 3 + 0.4  # sides of a few pixels are rounded
        shares.append(tall * wide / image[..., 0].size)
    assert 0.005 < min(shares) < 0.02 and 0.18 < max(shares) < 0.22
    assert np.mean(shares) == pytest.approx(0.105, abs=5 * 0.19 / math.sqrt(12 * 200))  # uniform in [0.01, 0.2]


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (2, 3)])
def test_thin_images_are_cropped_too(size: tuple[int, int]) -> None:
    image = picture(size)
    assert corrupt(image, np.ones(size, dtype=bool), "crop", generator(0, "a")).shape == size


# Chance.


def golden(method: str) -> str:
    rows, columns = np.mgrid[:64, :96]
    image = np.stack([3 * rows + 5 * columns, rows * columns, 255 - columns], axis=-1).astype(np.uint8)
    mask = (rows - 30) ** 2 + (columns - 50) ** 2 < 20**2
    spoiled = corrupt(image, mask, method, generator(42, "slake/xmlab1/7/lesion_noise"), step=800, edge=3)
    return hashlib.sha256(spoiled.tobytes()).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_pixels_of_a_seed_and_row_are_the_recorded_ones(method: str) -> None:
    assert golden(method) == GOLDEN[method]


def test_pixels_do_not_depend_on_the_processor_s_vector_instructions() -> None:
    extensions = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    program = "from tests.curation.test_noise import *; print({method: golden(method) for method in METHODS} == GOLDEN)"
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(extensions)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.stdout.strip() == "True", run.stderr


def test_each_seed_and_row_has_chance_of_its_own() -> None:
    drawn = {generator(seed, row).standard_normal() for seed in range(10) for row in ("a", "b", "0", "1")}
    assert len(drawn) == 40
    # By definition: the first 16 bytes of SHA-256 of "seed/row".
    seed = int.from_bytes(hashlib.sha256(b"7/a").digest()[:16], "big")
    assert generator(7, "a").standard_normal() == np.random.default_rng(seed).standard_normal()


# Masks.


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


def bump(height: int, width: int) -> np.ndarray:
    """A heat map with one hot spot in its middle, falling off to all sides; in [0, 1]."""
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-(((rows + 0.5) / height - 0.5) ** 2 + ((columns + 0.5) / width - 0.5) ** 2) / 0.05)


@pytest.mark.parametrize(("size", "share"), [((224, 224), 0.1), ((100, 300), 0.2), ((14, 14), 0.5), ((7, 5), 0.2)])
def test_a_quantile_keeps_that_share_of_the_pixels(size: tuple[int, int], share: float) -> None:
    heat = np.random.default_rng(0).random((14, 14))
    kept = heat_mask(heat, *size, f"quantile:{1 - share}")
    assert kept.shape == size and kept.dtype == bool
    corner = math.ceil(size[0] / 28) * math.ceil(size[1] / 28)  # its pixels are equally hot: beyond the last centre
    assert kept.sum() == pytest.approx(share * kept.size, abs=corner + 1)


def test_a_heat_map_is_scaled_between_the_centres_of_its_cells() -> None:
    # Centres of the cells 0, 1 at 1/4 and 3/4 of the width, of 8 pixels at 1/16, 3/16, ...: heat rises from 0 at the
    # third pixel's left to 1 at the sixth's right, by 1/4 a pixel; pixels 2 .. 5 have 1/8, 3/8, 5/8, 7/8.
    heat = np.array([[0.0, 1.0]])
    for threshold, hot in ((0.0, 6), (0.2, 5), (0.5, 4), (0.8, 3), (0.9, 2), (1.0, 2)):
        assert heat_mask(heat, 1, 8, f"fixed:{threshold}").tolist() == [[False] * (8 - hot) + [True] * hot]


def test_otsu_has_the_largest_variance_between_both_sides() -> None:
    heat = np.random.default_rng(0).gamma(2, size=(40, 40)).astype(np.float32)
    heat /= heat.max()

    def between(mask: np.ndarray) -> float:
        return float(mask.mean() * (1 - mask.mean()) * (heat[mask].mean() - heat[~mask].mean()) ** 2)

    best = max(between(heat > threshold) for threshold in np.unique(heat)[:-1])
    assert between(heat_mask(heat, 40, 40, "otsu")) == pytest.approx(best, rel=1e-3)  # bins are 1/256 wide


@pytest.mark.parametrize("rule", ["quantile:0.8", "quantile:1", "otsu", "fixed:0.5", "fixed:1"])
def test_the_hottest_pixels_are_always_in_the_mask(rule: str) -> None:
    heat = np.zeros((14, 14))
    heat[2:12, 2:12] = 3.0  # more than a fifth, all equally hot
    mask = heat_mask(heat, 14, 14, rule)
    assert np.array_equal(mask, heat > 0)


@pytest.mark.parametrize("rule", ["quantile:0.8", "quantile:0", "otsu", "fixed:0", "fixed:1"])
@pytest.mark.parametrize("value", [0, 0.3, 1])
def test_a_flat_heat_map_finds_nothing(rule: str, value: float) -> None:
    assert not heat_mask(np.full((14, 14), value), 50, 60, rule).any()
    assert not heat_mask(np.full((1, 1), value), 50, 60, rule).any()


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (np.array([[0, np.nan]]), "negative numbers, NaN or infinity"),
        (np.array([[0, np.inf]]), "negative numbers, NaN or infinity"),
        (np.array([[0, -0.1]]), "negative numbers, NaN or infinity"),
        (np.zeros((0, 14)), r"2 dimensions of real numbers, got float64 with shape \(0, 14\)"),
        (np.zeros((14, 14, 3)), "2 dimensions"),
        (np.zeros(14), "2 dimensions"),
        (np.zeros((2, 2), complex), "real numbers, got complex128"),
        (np.array([["a"]]), "real numbers, got <U1"),
    ],
)
def test_unusable_heat_maps_are_named(heat: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        heat_mask(heat, 8, 8, "otsu")


@pytest.mark.parametrize(
    "rule", ["", "mean", "quantile", "quantile:", "quantile:2", "fixed:-0.1", "fixed:nan", "fixed:x", "otsu:1"]
)
def test_unknown_rules_are_answered_with_the_known_ones(rule: str) -> None:
    with pytest.raises(InputError, match=f"mask rule '{rule}' is unknown; use one of: quantile:Q .*fixed:T .*otsu"):
        check_rule(rule)


@pytest.mark.parametrize("size", [(1, 1), (13, 17), (64, 64)])
def test_packed_masks_are_unpacked_as_they_were(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(size) > 0.5
    data = pack_mask(mask)
    assert np.array_equal(unpack_mask(data), mask) and unpack_mask(data).dtype == bool
    assert data[24] == 1  # bits a pixel, in a PNG's header
