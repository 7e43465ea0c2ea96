"""Image files of every kind: read as RGB, checked, embedded, and noised so that nothing outside the mask changes."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo import images
from mmedpo.curation.noise import METHODS, corrupt, generator
from mmedpo.errors import InputError
from mmedpo.images import LIMIT_VARIABLE, embedded, fault, is_deep, open_rgb, pixels, png

HEIGHT, WIDTH = 24, 40
pytestmark = pytest.mark.filterwarnings("ignore:Palette images")  # said by the reader of datasets, not by open_rgb
NAME = "Doe^Jane"  # of a patient, in the headers of all DICOM files here


def colours(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def read(image: dict[str, Any]) -> np.ndarray:
    """The image as training sees it: decoded by the library that reads the dataset, then made RGB."""
    from datasets import Image as Reader

    return np.asarray(Reader().decode_example(image).convert("RGB"))


def png_file(height: int, width: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand (the PNG specification, section 11): kinds and sizes that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit_colour() -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3)).astype(">u2")
    return png_file(HEIGHT, WIDTH, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


def dicom(values: np.ndarray, photometric: str = "MONOCHROME2", compressed: Any = None, **header: Any) -> bytes:
    """A DICOM file; `header` sets further elements by keyword."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.PatientName = NAME
    data.Rows, data.Columns = values.shape[:2]
    data.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * values.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PhotometricInterpretation = photometric
    data.PixelData = values.tobytes()
    for name, value in header.items():
        setattr(data, name, value)
    if compressed:
        data.compress(compressed)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def saved(mode: str, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colours()).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def deep(dtype: str, format: str) -> bytes:
    buffer = io.BytesIO()
    values = np.random.default_rng(0).uniform(100, 60000, (HEIGHT, WIDTH)).astype(dtype)
    Image.fromarray(values).save(buffer, format)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    return saved("RGB", exif=exif)


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "1 bit": ("a.png", lambda: saved("1")),
    "grey": ("a.png", lambda: saved("L")),
    "grey with transparency": ("a.png", lambda: saved("LA")),
    "grey JPEG": ("a.jpg", lambda: saved("L", "JPEG")),
    "16-bit grey": ("a.png", lambda: deep("uint16", "PNG")),
    "16-bit grey TIFF": ("a.tif", lambda: deep("uint16", "TIFF")),
    "32-bit TIFF": ("a.tif", lambda: deep("int32", "TIFF")),
    "float TIFF": ("a.tiff", lambda: deep("float32", "TIFF")),
    "16-bit colour": ("a.png", sixteen_bit_colour),
    "colour": ("a.png", lambda: saved("RGB")),
    "colour with transparency": ("a.png", lambda: saved("RGBA")),
    "palette": ("a.png", lambda: saved("P")),
    "palette with transparency": ("a.png", lambda: saved("P", transparency=bytes(range(256)))),
    "colour JPEG": ("a.jpeg", lambda: saved("RGB", "JPEG")),
    "CMYK JPEG": ("a.jpg", lambda: saved("CMYK", "JPEG")),
    "CMYK TIFF": ("a.tif", lambda: saved("CMYK", "TIFF")),
    "WebP": ("a.webp", lambda: saved("RGB", "WEBP")),
    "BMP": ("a.bmp", lambda: saved("RGB", "BMP")),
    "turned": ("a.png", turned),
    "DICOM": ("a.dcm", lambda: dicom(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))),
    "colour DICOM": ("a.DCM", lambda: dicom(colours(), "RGB")),
}
COLOURLESS = {"1 bit", "grey", "grey with transparency", "grey JPEG", "16-bit grey", "16-bit grey TIFF", "32-bit TIFF",
              "float TIFF", "DICOM"}  # fmt: skip
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(kind: str) -> Path:
        name, make = KINDS[kind]
        (tmp_path / name).write_bytes(make())
        return tmp_path / name

    return write


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


def test_photograph_is_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "turned.png").write_bytes(turned())
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "turned.png")), np.rot90(colours(), -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_other_images_become_rgb_as_they_are(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.tif").write_bytes(saved(mode, "TIFF"))
    expected = Image.open(tmp_path / "a.tif").convert("RGB")
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "a.tif")), np.asarray(expected))


def test_eight_bit_files_are_embedded_as_they_are(write: Write) -> None:
    path = write("CMYK JPEG")
    assert embedded(path) == {"bytes": path.read_bytes(), "path": "a.jpg"}


# DICOM.

RAMP = np.array([[0, 100, 200], [300, 400, 500]], dtype=np.uint16)


def shown(tmp_path: Path, *arguments: Any, **header: Any) -> np.ndarray:
    (tmp_path / "a.dcm").write_bytes(dicom(*arguments, **header))
    return pixels(tmp_path / "a.dcm")


def test_dicom_without_window_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    assert shown(tmp_path, RAMP).tolist() == [[0, 51, 102], [153, 204, 255]]
    assert shown(tmp_path, RAMP, "MONOCHROME1").tolist() == [[255, 204, 153], [102, 51, 0]]


def test_dicom_is_shown_through_its_first_window_after_its_rescaling(tmp_path: Path) -> None:
    # In Hounsfield units: -1000 + 4 v. Exact window 0 .. 1000: (h - 0) / 1000 * 255, cut to whole numbers.
    header = {"RescaleSlope": 4, "RescaleIntercept": -1000, "VOILUTFunction": "LINEAR_EXACT",
              "WindowCenter": [500, 40], "WindowWidth": [1000, 400]}  # fmt: skip
    assert shown(tmp_path, RAMP, **header).tolist() == [[0, 0, 0], [51, 153, 255]]
    assert shown(tmp_path, RAMP, "MONOCHROME1", **header).tolist() == [[255, 255, 255], [204, 102, 0]]


def test_a_window_wider_than_the_pixels_is_kept(tmp_path: Path) -> None:
    values = np.array([[-50, 0, 50]], dtype=np.int16)
    made = shown(tmp_path, values, WindowCenter=0, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    assert made.tolist() == [[int(255 * (value + 500) / 1000) for value in (-50, 0, 50)]]


def test_sigmoid_window_has_its_middle_at_half(tmp_path: Path) -> None:
    made = shown(tmp_path, RAMP, WindowCenter=200, WindowWidth=100, VOILUTFunction="SIGMOID")
    # DICOM PS3.3, C.11.2.1.3.1: 1 / (1 + exp(-4 (v - 200) / 100))
    assert made.tolist() == [[int(255 / (1 + np.exp(-4 * (v - 200) / 100))) for v in row] for row in RAMP.tolist()]


def table(kind: str, entries: list[int], first: int, bits: int) -> dict[str, Any]:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "US", entries)
    return {f"{kind}LUTSequence": [item]}


def test_dicom_tables_are_applied(tmp_path: Path) -> None:
    values = np.array([[0, 1], [2, 3]], dtype=np.uint8)
    voi = table("VOI", [0, 1, 40, 255], 0, 8)
    assert shown(tmp_path, values, **voi).tolist() == [[0, 1], [40, 255]]
    assert shown(tmp_path, values, RescaleSlope=1, RescaleIntercept=-1, **voi).tolist() == [[0, 0], [1, 40]]
    # Values 0 .. 3 become 7, 7, 9, 17, and those are scaled by their own range 7 .. 17: (9 - 7) * 25.5 = 51.
    assert shown(tmp_path, values, **table("Modality", [7, 9, 17], 1, 8)).tolist() == [[0, 0], [51, 255]]


def test_colour_dicom_is_rgb(tmp_path: Path) -> None:
    assert np.array_equal(shown(tmp_path, colours(), "RGB"), colours())
    brightness = np.asarray(Image.fromarray(colours()).convert("YCbCr"))
    there_and_back = shown(tmp_path, brightness, "YBR_FULL").astype(int)
    assert np.abs(there_and_back - colours()).max() <= 3  # Y and Cb each cut by up to 1: 1 + 1.772, and rounded


def test_palette_dicom_is_rgb(tmp_path: Path) -> None:
    names = [f"{channel}PaletteColorLookupTable" for channel in ("Red", "Green", "Blue")]
    tables = np.array([[0, 255, 10], [0, 128, 20], [0, 64, 30]], dtype=np.uint16) * 257
    header: dict[str, Any] = {f"{name}Descriptor": [3, 0, 16] for name in names}
    header |= {f"{name}Data": entries.tobytes() for name, entries in zip(names, tables, strict=True)}
    made = shown(tmp_path, np.array([[0, 1, 2, 1]], dtype=np.uint8), "PALETTE COLOR", **header)
    assert made.tolist() == [[[0, 0, 0], [255, 128, 64], [10, 20, 30], [255, 128, 64]]]


def test_run_length_packed_dicom_is_read(tmp_path: Path) -> None:
    from pydicom.uid import RLELossless

    values = np.repeat(RAMP, 4, axis=1)
    assert np.array_equal(shown(tmp_path, values, compressed=RLELossless), shown(tmp_path, values))


def test_nothing_of_a_dicom_header_is_embedded(write: Write) -> None:
    path = write("DICOM")
    assert NAME.encode() in path.read_bytes()
    image = embedded(path)
    opened = Image.open(io.BytesIO(image["bytes"]))
    assert opened.format == "PNG" and not opened.info and image["path"] == "a.png"
    assert NAME.encode() not in image["bytes"]


def packed_without_decoder() -> bytes:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLosslessSV1

    data = dcmread(io.BytesIO(dicom(RAMP)))
    data.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    data.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def misplaced_name() -> bytes:
    """The patient's name where the number of rows belongs: pydicom's message quotes it."""
    rows = b"(\0\x10\0US\x02\0\x02\0"
    data = dicom(RAMP)
    assert data.count(rows) == 1
    return data.replace(rows, b"(\0\x10\0US\x09\0" + NAME.encode() + b" ")


DICOM_FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "frames": (lambda: dicom(np.zeros((6, 4), np.uint8), Rows=2, NumberOfFrames=3), "holds 3 frames"),
    "no image": (lambda: dicom(RAMP, Rows=None), "holds no image"),
    "not DICOM": (lambda: saved("L"), "is named as DICOM but is not"),
    "half": (lambda: dicom(RAMP)[:-4], "cannot be decoded"),
    "no decoder": (packed_without_decoder, r"decodes the DICOM file's JPEG Lossless.*pip install 'pylibjpeg\[all\]'"),
    "too large": (lambda: dicom(RAMP, Rows=20000, Columns=20000), f"400000000 pixels .*set {LIMIT_VARIABLE}"),
    "bad window": (lambda: dicom(RAMP, WindowCenter=1, WindowWidth=0), "cannot be decoded .ValueError."),
    "name in another place": (misplaced_name, "DICOM file cannot be decoded .BytesLengthException."),
}


@pytest.mark.parametrize("kind", DICOM_FAULTS)
def test_dicom_that_cannot_be_used_is_one_sentence(tmp_path: Path, kind: str) -> None:
    make, message = DICOM_FAULTS[kind]
    check_refused(tmp_path / "a.dcm", make(), message)


def test_missing_pydicom_says_what_to_install(write: Write) -> None:
    # A new interpreter in which pydicom cannot be imported.
    program = "import sys; sys.modules['pydicom'] = None; from mmedpo import images; images.fault(eval(sys.argv[1]))"
    image = repr({"bytes": None, "path": str(write("DICOM"))})
    run = subprocess.run([sys.executable, "-c", program, image], capture_output=True, text=True)
    assert "InputError: DICOM files are read with pydicom: pip install 'mmedpo[dicom]'" in run.stderr


# Files that cannot be used.


def check_refused(path: Path, data: bytes | None, message: str) -> None:
    """All that reads the file says the same sentence, with no folder and no patient's name in it."""
    if data is not None:
        path.write_bytes(data)
    sentence = fault({"bytes": None, "path": path})
    assert sentence is not None and "\n" not in sentence
    with pytest.raises(InputError, match=message) as caught:
        open_rgb(path)
    assert str(caught.value) == f"{path.name}: {sentence}."
    assert str(path.parent) not in sentence and NAME not in sentence
    with pytest.raises(InputError, match=message):
        pixels(path)


def with_nan() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


FAULTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a.png", lambda: b"", "is in no known format: it has 0 bytes"),
    "text": ("a.png", lambda: b"no image", "is in no known format"),
    "half PNG": ("a.png", lambda: saved("RGB")[:500], "cannot be decoded"),
    "half JPEG": ("a.jpg", lambda: saved("RGB", "JPEG")[:500], "cannot be decoded"),
    "half TIFF": ("a.tif", lambda: saved("RGB", "TIFF")[:500], "cannot be decoded|no known format"),
    "NaN": ("a.tif", with_nan, "holds pixels that are no numbers"),
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
    check_refused(tmp_path / "a.png", data, rf"too large .*400000000 pixels.*set {LIMIT_VARIABLE} to its pixels")


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
