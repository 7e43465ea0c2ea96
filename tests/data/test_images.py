"""Image files of every kind: read as RGB, checked, embedded, and noised so that nothing outside the mask changes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmedpo.curation.noise import METHODS, corrupt, generator
from mmedpo.data import image_headers, images
from mmedpo.data.images import LIMIT_VARIABLE, embedded, fault, is_deep, open_rgb, pixels, png
from mmedpo.errors import InputError
from tests.pictures import COLOURLESS, HEIGHT, KINDS, WIDTH, check_refused, colours, png_file, read, saved

Write = Callable[[str], Path]

pytestmark = pytest.mark.filterwarnings("ignore:Palette images")  # said by the reader of datasets, not by open_rgb


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_as_the_dataset_gives_it_back(write: Write, kind: str) -> None:
    path = write(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fault({"bytes": None, "path": path}) is None
        image = open_rgb(path)
    assert image.mode == "RGB"
    assert np.array_equal(read(embedded(path)), np.asarray(image))
    assert pixels(path).ndim == (2 if kind in COLOURLESS else 3)
    assert np.array_equal(read(png(pixels(path), "a")), np.asarray(image))


@pytest.mark.parametrize("method", METHODS[:3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_noised_inside_the_mask_alone(write: Write, kind: str, method: str) -> None:
    path = write(kind)
    image = pixels(path)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[4:15, 6:20] = True
    noised = png(corrupt(image, mask, method, generator(0, kind), step=800, edge=2), "a")
    before, after = read(embedded(path)), read(noised)
    assert np.array_equal(before[~mask], after[~mask])
    assert np.mean(before[mask] != after[mask]) > 0.3  # half of the 1-bit image is black before
    assert Image.open(io.BytesIO(noised["bytes"])).mode == ("L" if kind in COLOURLESS else "RGB")


def test_grey_saved_as_colour_has_no_colour(tmp_path: Path) -> None:
    grey = colours()[..., 0]
    Image.fromarray(grey).convert("RGB").save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), grey)


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1"])
def test_one_pixel_is_an_image(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    Image.new(mode, (1, 1)).save(path)
    assert fault({"bytes": None, "path": path}) is None
    assert open_rgb(path).size == (1, 1)
    for method in METHODS:
        made = corrupt(pixels(path), np.ones((1, 1), dtype=bool), method, generator(0, "a"), edge=3)
        assert read(png(made, "a")).shape == (1, 1, 3)


# More than 8 bits.


def test_sixteen_bit_grey_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    values = np.array([[1000, 2000], [3000, 5000]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    image = open_rgb(tmp_path / "deep.png")
    # (value - 1000) * 255 / 4000, cut to whole numbers
    assert np.asarray(image)[..., 0].tolist() == [[0, 63], [127, 255]]
    assert image.mode == "RGB"


def test_small_floats_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.001], [0.0025, 0.005]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert pixels(tmp_path / "a.tif").tolist() == [[0, 51], [127, 255]]


@pytest.mark.parametrize("value", [0, 40000])
def test_flat_sixteen_bit_image_is_black(tmp_path: Path, value: int) -> None:
    Image.fromarray(np.full((2, 2), value, dtype=np.uint16)).save(tmp_path / "flat.png")
    assert not np.asarray(open_rgb(tmp_path / "flat.png")).any()


@pytest.mark.parametrize(
    ("mode", "deep"),
    [("1", False), ("L", False), ("P", False), ("RGB", False), ("I;16", True), ("I", True), ("F", True)],
)
def test_images_of_more_than_eight_bits_a_channel_are_deep(mode: str, deep: bool) -> None:
    assert is_deep(Image.new(mode, (2, 2))) is deep


# Eight bits.


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_opaque_images_become_rgb_as_they_are(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.tif").write_bytes(saved(mode, "TIFF"))
    expected = Image.open(tmp_path / "a.tif").convert("RGB")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.tif")), np.asarray(expected))


@pytest.mark.parametrize("kind", ["grey", "colour", "grey JPEG", "colour JPEG"])
def test_files_of_eight_bit_grey_or_rgb_are_embedded_as_they_are(write: Write, kind: str) -> None:
    path = write(kind)
    made = embedded(path)
    assert made["path"] == path.name and made["bytes"] in (path.read_bytes(), image_headers.without(path.read_bytes()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_embedded_is_plain(write: Write, kind: str) -> None:
    """Any reader gets the same pixels: no alpha, no key, no palette, no 16 bits, no ink, no orientation, one frame."""
    opened = Image.open(io.BytesIO(embedded(write(kind))["bytes"]))
    assert opened.format == "JPEG" or "16" not in opened.tile[0].args
    assert opened.format in ("PNG", "JPEG") and opened.mode in ("L", "RGB")
    assert not opened.has_transparency_data and not opened.getexif() and getattr(opened, "n_frames", 1) == 1


# Files that cannot be used.


def with_nan() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


FAULTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.png", lambda: b"", "has an unknown format: it has 0 bytes"),
    "text": ("a.png", lambda: b"no image", "has an unknown format"),
    "half PNG": ("a.png", lambda: saved("RGB")[:500], "cannot be decoded"),
    "half JPEG": ("a.jpg", lambda: saved("RGB", "JPEG")[:500], "cannot be decoded"),
    "half TIFF": ("a.tif", lambda: saved("RGB", "TIFF")[:500], "cannot be decoded|unknown format"),
    "NaN": ("a.tif", with_nan, "has NaN or infinite pixels"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, kind: str) -> None:
    name, make, message = FAULTS[kind]
    check_refused(tmp_path / name, make(), message)


def test_folder_and_missing_file_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    check_refused(tmp_path / "a.png", None, "cannot be decoded .Is a directory.")
    check_refused(tmp_path / "b.png", None, "cannot be decoded .No such file or directory.")


# Size.


def test_twenty_thousand_pixels_a_side_are_refused_before_decoding(tmp_path: Path) -> None:
    row = bytes(1 + 20000 // 8)
    data = png_file(20000, 20000, 1, 0, row * 20000)  # black, 1 bit a pixel: 50 kB packed
    check_refused(
        tmp_path / "a.png", data, rf"too large .*400000000 pixels.*set {LIMIT_VARIABLE} to its number of pixels"
    )


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Set the limit variable for one test; Pillow's own limit is put back after it."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return lambda value: monkeypatch.setenv(LIMIT_VARIABLE, value)


def test_the_limit_can_be_raised_to_the_image(write: Write, limit: Callable[[str], None]) -> None:
    image = {"bytes": None, "path": write("colour")}
    count = HEIGHT * WIDTH
    limit(str(count // 2 - 1))  # Pillow refuses above twice its limit
    assert f"too large (Image size ({count} pixels)" in str(fault(image))
    for enough in (count // 2, count):
        limit(str(enough))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns between once and twice its limit
            assert fault(image) is None


@pytest.mark.parametrize("value", ["0", "-5", "1e9", "many"])
def test_a_limit_that_is_no_number_stops_everything(write: Write, limit: Callable[[str], None], value: str) -> None:
    limit(value)
    with pytest.raises(InputError, match=f"{LIMIT_VARIABLE} is '{value}'; give a number of pixels"):
        fault({"bytes": None, "path": write("colour")})


def test_pixels_alone_are_embedded_as_png() -> None:
    image = images.png(colours(), "scan-noised")
    assert image["path"] == "scan-noised.png"
    assert np.array_equal(read(image), colours())


def test_a_file_counts_by_its_bytes_in_memory_or_on_disk_and_an_image_by_its_pixels(tmp_path: Path) -> None:
    file, picture = tmp_path / "image.png", png(np.zeros((2, 3), np.uint8), "image")
    file.write_bytes(picture["bytes"])
    on_disk = {"bytes": None, "path": str(file)}
    assert images.file_digest(on_disk) == images.file_digest(picture)
    file.write_bytes(picture["bytes"] + b" ")
    assert images.file_digest(on_disk) != images.file_digest(picture)
    assert images.digest(open_rgb(on_disk)) == images.digest(open_rgb(picture))
