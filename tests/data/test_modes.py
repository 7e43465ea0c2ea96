"""The table of modes: images made so that their right RGB pixels are known, and frames that are refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data.images import embedded, fault, open_rgb, pixels, size
from mmedpo.errors import InputError
from tests.pictures import (
    ALPHA,
    HEIGHT,
    WIDTH,
    check_refused,
    colours,
    layered,
    on_black,
    orientation,
    png_file,
    read,
    saved,
    sixteen_bit_colour,
    tiff,
)

pytestmark = pytest.mark.filterwarnings("ignore:Palette images")  # said by the reader of datasets, not by open_rgb
GREY = colours()[..., 0]
LUMA = np.asarray(Image.fromarray(colours()).convert("L"))
STEPS = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 60 + 100  # 100 .. 57640
SCALED = ((STEPS.astype(int) - 100) * 255 // (60 * (HEIGHT * WIDTH - 1))).astype(np.uint8)
INDICES = np.tile(np.arange(WIDTH, dtype=np.uint8), (HEIGHT, 1))
TABLE = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
FOUR_BITS = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 16


def file(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def palette(format: str, **options: Any) -> bytes:
    picture = Image.fromarray(INDICES).convert("P")
    picture.putpalette(TABLE.tobytes())
    return file(picture, format, **options)


def with_key(data: bytes, *key: int) -> bytes:
    """A PNG file with a tRNS chunk of 16-bit numbers."""
    at, chunk = data.index(b"IDAT") - 4, b"tRNS" + struct.pack(f">{len(key)}H", *key)
    return data[:at] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at:]


def four_bits() -> bytes:
    packed = (FOUR_BITS[:, ::2] << 4 | FOUR_BITS[:, 1::2]).astype(np.uint8)
    return png_file(HEIGHT, WIDTH, 4, 0, b"".join(b"\0" + line.tobytes() for line in packed))


def keyed(values: np.ndarray, place: tuple[int, int] = (0, 0)) -> np.ndarray:
    """`values`, black where they are what they are at `place`."""
    same = (values == values[place]).reshape(HEIGHT, WIDTH, -1).all(axis=-1)
    return np.where(same[..., None] if values.ndim == 3 else same, 0, values).astype(np.uint8)


def flat(ink: tuple[int, ...]) -> Image.Image:
    return Image.new("CMYK", (WIDTH, HEIGHT), ink)


def colour_map(table: np.ndarray) -> dict[int, Any]:
    return {262: 3, 320: table.T.ravel()}


TWELVE = np.random.default_rng(2).integers(0, 2**12, (HEIGHT, WIDTH, 3))
TWELVE[0, 0] = 0, 2048, 4095


def sixteen_bits(values: np.ndarray, colour: int) -> bytes:
    """A PNG file of 16 bits a channel; `colour` as PNG counts its kinds: 2 RGB, 4 grey with alpha, 6 RGBA."""
    return png_file(HEIGHT, WIDTH, 16, colour, b"".join(b"\0" + row.tobytes() for row in values.astype(">u2")))


def with_alpha(values: np.ndarray, opaque: int) -> np.ndarray:
    """`values` with a channel of alpha: 0 in the first row, else `opaque`."""
    alpha = np.full((HEIGHT, WIDTH), opaque)
    alpha[0] = 0
    return np.dstack([values, alpha])


def without_first_row(values: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros_like(values[:1]), values[1:]]).astype(np.uint8)


def own_range(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) * 255 // (values.max() - values.min())


# Made as, and the right pixels: uint8 H x W or H x W x 3.
RIGHT: dict[str, tuple[str, Callable[[], bytes], Callable[[], np.ndarray]]] = {
    "RGBA": ("png", lambda: layered("RGBA", "PNG"), lambda: on_black(colours())),
    "RGBA WebP": ("webp", lambda: layered("RGBA", "WEBP", lossless=True, exact=True), lambda: on_black(colours())),
    "RGBA TIFF": ("tif", lambda: layered("RGBA", "TIFF"), lambda: on_black(colours())),
    "RGBA turned": (
        "png", lambda: layered("RGBA", "PNG", exif=orientation(6)), lambda: np.rot90(on_black(colours()), -1)
    ),
    "LA": ("png", lambda: layered("LA", "PNG"), lambda: on_black(LUMA)),
    "LA TIFF": ("tif", lambda: layered("LA", "TIFF"), lambda: on_black(LUMA)),
    "La TIFF, multiplied already": (
        "tif", lambda: tiff((np.dstack([GREY // 2, ALPHA]), {262: 1, 338: 1})), lambda: GREY // 2
    ),
    "P, alphas": (
        "png", lambda: palette("PNG", transparency=bytes(range(256))), lambda: on_black(TABLE[INDICES], INDICES)
    ),
    "P, a key": ("png", lambda: palette("PNG", transparency=3), lambda: keyed(TABLE[INDICES], (0, 3))),
    "P, a key, GIF": ("gif", lambda: palette("GIF", transparency=3), lambda: keyed(TABLE[INDICES], (0, 3))),
    "L, a key": ("png", lambda: with_key(file(Image.fromarray(GREY), "PNG"), int(GREY[0, 0])), lambda: keyed(GREY)),
    "L of 4 bits, a key": ("png", lambda: with_key(four_bits(), 3), lambda: keyed(FOUR_BITS * 17, (0, 3))),
    "RGB, a key": ("png", lambda: with_key(saved("RGB"), *colours()[0, 0].tolist()), lambda: keyed(colours())),
    "I;16": ("png", lambda: file(Image.fromarray(STEPS), "PNG"), lambda: SCALED),
    # Without its least value the range begins at 160.
    "I;16, a key": (
        "png", lambda: with_key(file(Image.fromarray(STEPS), "PNG"), 100),
        lambda: ((STEPS.astype(int) - 160).clip(0) * 255 // (60 * (HEIGHT * WIDTH - 2))).astype(np.uint8),
    ),
    "WhiteIsZero, 8 bits": ("tif", lambda: tiff((GREY, {262: 0})), lambda: 255 - GREY),
    "WhiteIsZero, 16 bits": ("tif", lambda: tiff((STEPS, {262: 0})), lambda: SCALED[::-1, ::-1]),
    "BlackIsZero, 16 bits": ("tif", lambda: tiff((STEPS, {262: 1})), lambda: SCALED),
    "WhiteIsZero, floats": (
        "tif", lambda: tiff((STEPS.astype(np.float32), {262: 0, 339: 3})), lambda: SCALED[::-1, ::-1]
    ),
    "WhiteIsZero, turned": ("tif", lambda: tiff((STEPS, {262: 0, 274: 3})), lambda: SCALED),
    "TIFF palette of 16 bits": (
        "tif", lambda: tiff((INDICES, colour_map(TABLE.astype(int) * 257))), lambda: TABLE[INDICES]
    ),
    "TIFF palette of 8 bits": ("tif", lambda: tiff((INDICES, colour_map(TABLE))), lambda: TABLE[INDICES]),
    "RGB of 16 bits": (
        "png", sixteen_bit_colour,
        lambda: (np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3)) >> 8).astype(np.uint8),
    ),
    "RGB of 12 in 16 bits": ("png", lambda: sixteen_bits(TWELVE, 2), lambda: (TWELVE >> 4).astype(np.uint8)),
    "RGB of 12 in 16 bits, turned TIFF": (
        "tif", lambda: tiff((TWELVE.astype(np.uint16), {262: 2, 274: 6})),
        lambda: np.rot90(TWELVE >> 4, -1).astype(np.uint8),
    ),
    "RGBA of 12 in 16 bits": (
        "png", lambda: sixteen_bits(with_alpha(TWELVE, 4095), 6), lambda: without_first_row(TWELVE >> 4)
    ),
    "LA of 12 in 16 bits": (
        "png", lambda: sixteen_bits(with_alpha(TWELVE[..., 0], 65535), 4),
        lambda: without_first_row(np.vstack([TWELVE[:1, :, 0], own_range(TWELVE[1:, :, 0])])),
    ),
    "1 bit": ("png", lambda: file(Image.fromarray(GREY > 127), "PNG"), lambda: (GREY > 127) * np.uint8(255)),
    "a TIFF and its thumbnail": ("tif", lambda: tiff((GREY, {}), (GREY[::2, ::2], {254: 1})), lambda: GREY),
    "a thumbnail and its TIFF": ("tif", lambda: tiff((GREY[::2, ::2], {254: 1}), (GREY, {254: 0})), lambda: GREY),
    "a pyramid marked the old way": ("tif", lambda: tiff((GREY, {255: 1}), (GREY[::2, ::2], {255: 2})), lambda: GREY),
    "RGBA, an empty mask": (
        "png", lambda: file(Image.new("RGBA", (WIDTH, HEIGHT), (255, 255, 255, 0)), "PNG"), lambda: np.zeros_like(GREY)
    ),
    "one frame of WebP": ("webp", lambda: saved("RGB", "WEBP", lossless=True), colours),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_pixels_of_each_kind_are_the_right_ones_everywhere(tmp_path: Path, kind: str) -> None:
    suffix, make, right = RIGHT[kind]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(make())
    expected = right()
    expected = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    assert np.array_equal(np.asarray(open_rgb(path)), expected)
    assert np.array_equal(np.asarray(open_rgb(path.read_bytes())), expected)
    held = embedded(path)
    assert np.array_equal(read(held), expected)  # by the reader of datasets
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(held["bytes"])).convert("RGB")), expected)


@pytest.mark.parametrize("kind", [kind for kind in RIGHT if "WhiteIsZero, 16" not in kind and "in 16 bits" not in kind])
def test_opened_image_is_read_as_its_file_is(tmp_path: Path, kind: str) -> None:
    data = RIGHT[kind][1]()
    opened = Image.open(io.BytesIO(data))
    before = opened.info.get("transparency")
    made = [np.asarray(open_rgb(opened))]
    opened.load()
    made.append(np.asarray(open_rgb(opened)))
    assert all(np.array_equal(one, np.asarray(open_rgb(data))) for one in made)
    assert opened.info.get("transparency") == before, "what was given is as it was"


@pytest.mark.parametrize("kind", [kind for kind in RIGHT if "in 16 bits" in kind])
def test_opened_image_of_fewer_bits_than_it_stores_is_read_as_its_file_is(kind: str) -> None:
    data = RIGHT[kind][1]()
    assert np.array_equal(np.asarray(open_rgb(Image.open(io.BytesIO(data)))), np.asarray(open_rgb(data)))


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("values", [GREY, STEPS], ids=["8 bits", "16 bits"])
def test_turned_tiff_is_upright_however_it_is_opened(tmp_path: Path, values: np.ndarray, number: int) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff((values, {274: number})))
    upright = [values, values[:, ::-1], values[::-1, ::-1], values[::-1], values.T, np.rot90(values, -1),
               np.rot90(values, 2).T, np.rot90(values)][number - 1]  # fmt: skip
    right = upright if values is GREY else own_range(upright.astype(int))
    assert np.array_equal(pixels(path), right)
    with Image.open(path) as opened:
        assert np.array_equal(pixels(opened), right)
    assert size({"bytes": None, "path": path}) == (right.shape[1], right.shape[0])


@pytest.mark.parametrize(("ink", "right"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 200), (55, 55, 55))])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_ink_and_not_light(ink: tuple[int, ...], right: tuple[int, ...], format: str) -> None:
    """Adobe stores a JPEG's inks inverted, and Pillow writes its mark."""
    data = file(flat(ink), format)
    assert format == "TIFF" or b"Adobe" in data
    assert np.abs(np.asarray(open_rgb(data)).astype(int) - right).max() <= 3


# Frames and pages.


def frames(format: str, **options: Any) -> bytes:
    return file(Image.fromarray(GREY), format, save_all=True, append_images=[Image.fromarray(LUMA)], **options)


SEVERAL: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "TIFF": ("tif", lambda: frames("TIFF"), "2 frames or pages"),
    "TIFF, the second smaller but not marked": ("tif", lambda: tiff((GREY, {}), (GREY[::2, ::2], {})), "2 frames"),
    "TIFF with a mask of transparency": ("tif", lambda: tiff((GREY, {}), (GREY, {254: 4})), "2 frames"),
    "ImageJ's stack of one page": (
        "tif", lambda: file(Image.fromarray(GREY), "TIFF", description="ImageJ=1.54\nimages=12\nslices=12\n"),
        "12 frames",
    ),
    "GIF": ("gif", lambda: frames("GIF"), "2 frames or pages"),
    "APNG": ("png", lambda: frames("PNG"), "2 frames or pages"),
    "WebP": ("webp", lambda: frames("WEBP", lossless=True), "2 frames or pages"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_frames_are_refused_with_the_remedy(tmp_path: Path, kind: str) -> None:
    suffix, make, message = SEVERAL[kind]
    path = tmp_path / f"a.{suffix}"
    check_refused(path, make(), f"has {message}.*; export the one that the row is about")
    check_refused(path, None, message)
    with pytest.raises(InputError, match=message):
        embedded(path)
    assert message in str(fault({"bytes": path.read_bytes(), "path": "a.png"})), "inside a dataset too"


def test_phone_photograph_with_a_preview_is_its_main_picture(tmp_path: Path) -> None:
    main, preview = Image.fromarray(colours()), Image.fromarray(colours(1))
    data = file(main, "MPO", save_all=True, append_images=[preview], quality=90)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(file(main, "JPEG", quality=90))))
    assert np.array_equal(np.asarray(open_rgb(data)), expected)
    assert np.array_equal(read(embedded(tmp_path / "a.jpg")), expected)


TRANSPARENT = {
    "everywhere": (
        lambda: file(Image.fromarray(np.dstack([colours(), np.zeros_like(GREY)])), "PNG"),
        "is transparent everywhere; save it without",
    ),
    "a key of 16 bits a channel": (
        lambda: with_key(sixteen_bit_colour(), 1, 2, 3), "16 bits a channel and a transparent colour"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_that_leaves_no_picture_is_refused(tmp_path: Path, kind: str) -> None:
    make, message = TRANSPARENT[kind]
    check_refused(tmp_path / "a.png", make(), message)
