"""DICOM files: what is shown of them, what is refused, and that nothing of their headers is said or kept."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data.images import LIMIT_VARIABLE, UnusableImage, embedded, fault, pixels
from tests.pictures import NAME, check_refused, colours, dicom, saved

Write = Callable[[str], Path]

RAMP = np.array([[0, 100, 200], [300, 400, 500]], dtype=np.uint16)


def shown(tmp_path: Path, *arguments: Any, **header: Any) -> np.ndarray:
    (tmp_path / "a.dcm").write_bytes(dicom(*arguments, **header))
    return pixels(tmp_path / "a.dcm")


def test_dicom_without_window_is_scaled_by_its_own_range(tmp_path: Path) -> None:
    assert shown(tmp_path, RAMP).tolist() == [[0, 51, 102], [153, 204, 255]]
    assert shown(tmp_path, RAMP, "MONOCHROME1").tolist() == [[255, 204, 153], [102, 51, 0]]


@pytest.mark.parametrize("path", ["x.dcm", "x", None])
def test_dicom_in_memory_is_read_whatever_its_name(path: str | None) -> None:
    right = [[0, 51, 102], [153, 204, 255]]
    assert pixels({"bytes": dicom(RAMP), "path": path}).tolist() == pixels(dicom(RAMP)).tolist() == right


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


ABSENT: dict[str, dict[str, Any]] = {
    "empty slope and intercept": {"RescaleSlope": None, "RescaleIntercept": None},
    "slope of 0": {"RescaleSlope": 0, "RescaleIntercept": 5},
    "empty window": {"WindowCenter": None, "WindowWidth": None},
    "width of 0": {"WindowCenter": 100, "WindowWidth": 0},
    "width below 0": {"WindowCenter": 100, "WindowWidth": -400},
    "width without a centre": {"WindowWidth": 400},
    "empty tables": {"VOILUTSequence": [], "ModalityLUTSequence": []},
    "empty padding": {"PixelPaddingValue": None},
}


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("kind", ABSENT)
def test_an_element_that_makes_no_sense_is_read_as_absent(tmp_path: Path, kind: str, photometric: str) -> None:
    assert np.array_equal(shown(tmp_path, RAMP, photometric, **ABSENT[kind]), shown(tmp_path, RAMP, photometric))


def test_the_first_window_that_can_be_used_is_used(tmp_path: Path) -> None:
    usable = shown(tmp_path, RAMP, WindowCenter=200, WindowWidth=301)
    assert usable.tolist() == [[0, 42, 127], [212, 255, 255]]  # (v - 49.5) / 300 * 255, cut
    assert np.array_equal(shown(tmp_path, RAMP, WindowCenter=[100, 200], WindowWidth=[0, 301]), usable)
    for function in ("NONSENSE", "", "LINEAR"):
        header = {"VOILUTFunction": function, "WindowCenter": 200, "WindowWidth": 301}
        assert np.array_equal(shown(tmp_path, RAMP, **header), usable), function
    # A linear window narrower than 1, which the standard forbids, is read as an exact one: (v / 1000 - 0.1) / 0.4.
    narrow = shown(tmp_path, RAMP, RescaleSlope=0.001, RescaleIntercept=0, WindowCenter=0.3, WindowWidth=0.4)
    assert np.abs(narrow.astype(int) - [[0, 0, 63], [127, 191, 255]]).max() <= 1


@pytest.mark.parametrize("group", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_the_one_frame_of_an_enhanced_file_is_shown_through_its_own_window(tmp_path: Path, group: str) -> None:
    from pydicom.dataset import Dataset

    frame, window, rescaling = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 500, 1000
    rescaling.RescaleSlope, rescaling.RescaleIntercept = 4, -1000
    frame.FrameVOILUTSequence, frame.PixelValueTransformationSequence = [window], [rescaling]
    plain = shown(tmp_path, RAMP, WindowCenter=500, WindowWidth=1000, RescaleSlope=4, RescaleIntercept=-1000)
    assert np.array_equal(shown(tmp_path, RAMP, NumberOfFrames=1, **{group: [frame]}), plain)
    assert not np.array_equal(shown(tmp_path, RAMP), plain)


LUNG = np.array([[-2000, -2000, -1000], [-800, -400, 0]], dtype=np.int16)
PADDING: dict[str, dict[str, Any]] = {
    "value": {"PixelPaddingValue": -2000},
    "value of the other sign": {"PixelPaddingValue": 2**16 - 2000},
    "range": {"PixelPaddingValue": -3024, "PixelPaddingRangeLimit": -1500},
    "range, turned": {"PixelPaddingValue": -1500, "PixelPaddingRangeLimit": -3024},
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_is_black_and_no_part_of_the_range(tmp_path: Path, kind: str) -> None:
    header = PADDING[kind]
    assert padded(tmp_path, **header).tolist() == [[0, 0, 0], [51, 153, 255]]  # (v + 1000) * 255 / 1000
    assert padded(tmp_path, "MONOCHROME1", **header).tolist() == [[0, 0, 255], [204, 102, 0]]
    window = {"WindowCenter": -500, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    assert padded(tmp_path, "MONOCHROME1", **header, **window).tolist() == [[0, 0, 255], [204, 102, 0]]


def padded(tmp_path: Path, photometric: str = "MONOCHROME2", **header: Any) -> np.ndarray:
    from pydicom.dataelem import DataElement
    from pydicom.tag import Tag

    tags = {"PixelPaddingValue": 0x00280120, "PixelPaddingRangeLimit": 0x00280121}
    elements = {
        name: DataElement(Tag(tags[name]), "SS" if value < 2**15 else "US", value)
        for name, value in header.items()
        if name in tags
    }
    others = {name: value for name, value in header.items() if name not in tags}
    (tmp_path / "a.dcm").write_bytes(dicom(LUNG, photometric, elements=elements.values(), **others))
    return pixels(tmp_path / "a.dcm")


def test_float_pixels_are_scaled_by_their_own_range_without_padding(tmp_path: Path) -> None:
    values = np.array([[-1e6, 0, 0.5], [1, 1.5, 2.5]], dtype=np.float32)
    made = shown(tmp_path, values, FloatPixelPaddingValue=-1e6)
    assert made.tolist() == [[0, 0, 51], [102, 153, 255]]


def test_signed_values_of_twelve_bits_are_read_with_their_sign(tmp_path: Path) -> None:
    signed = np.array([[-1024, 0], [1000, 2047]], dtype=np.int16)
    stored = (signed & 0x0FFF).astype(np.uint16)  # the upper four bits are unused
    made = shown(tmp_path, stored, PixelRepresentation=1, BitsStored=12, HighBit=11)
    assert made.tolist() == [[0, (1024 * 255) // 3071], [(2024 * 255) // 3071, 255]]


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
    # Entries of 8 bits in a table that is said to hold 16 (or 12) are no darkness.
    assert shown(tmp_path, values, **table("VOI", [0, 1, 40, 255], 0, 16)).tolist() == [[0, 1], [40, 255]]
    # A long table of 8-bit entries, as of digital radiography.
    steps = np.array([[0, 1000], [2000, 4095]], dtype=np.uint16)
    assert shown(tmp_path, steps, **table("VOI", [i // 16 for i in range(4096)], 0, 8)).tolist() == [
        [0, 62],
        [125, 255],
    ]
    # Values 0 .. 3 become 7, 7, 9, 17, and those are scaled by their own range 7 .. 17: (9 - 7) * 25.5 = 51.
    assert shown(tmp_path, values, **table("Modality", [7, 9, 17], 1, 8)).tolist() == [[0, 0], [51, 255]]


def test_colour_dicom_is_rgb(tmp_path: Path) -> None:
    assert np.array_equal(shown(tmp_path, colours(), "RGB"), colours())
    deep = colours().astype(np.uint16) << 8 | 7
    assert np.array_equal(shown(tmp_path, deep | 2**15, "RGB"), colours() | 128)
    twelve = np.array([[[0, 16, 4095], [2048, 255, 15]]], np.uint16)  # of 12 bits, in 16 said to be used
    assert shown(tmp_path, twelve, "RGB").tolist() == [[[0, 1, 255], [128, 15, 0]]]
    brightness = np.asarray(Image.fromarray(colours()).convert("YCbCr"))
    there_and_back = shown(tmp_path, brightness, "YBR_FULL").astype(int)
    assert np.abs(there_and_back - colours()).max() <= 3  # Y and Cb each cut by up to 1: 1 + 1.772, and rounded


COLOURS = np.array([[0, 255, 10], [0, 128, 20], [0, 64, 30]], dtype=np.uint16)  # red, green and blue of three entries
PALETTES: dict[str, tuple[int, np.ndarray]] = {
    "16 bits": (16, COLOURS * 257),
    "16 bits, the lower ones empty": (16, COLOURS * 256),
    "16 bits, entries of 8": (16, COLOURS),
    "16 bits, entries of 8 in bytes": (16, np.pad(COLOURS, ((0, 0), (0, 1))).astype(np.uint8)),
    "8 bits": (8, np.pad(COLOURS, ((0, 0), (0, 1))).astype(np.uint8)),
    "8 bits in words": (8, COLOURS),
}


@pytest.mark.parametrize("kind", PALETTES)
def test_palette_dicom_is_rgb(tmp_path: Path, kind: str) -> None:
    bits, tables = PALETTES[kind]
    names = [f"{channel}PaletteColorLookupTable" for channel in ("Red", "Green", "Blue")]
    header: dict[str, Any] = {f"{name}Descriptor": [3, 5, bits] for name in names}
    header |= {f"{name}Data": entries.tobytes() for name, entries in zip(names, tables, strict=True)}
    # What lies below the first entry or above the last one is shown as that.
    made = shown(tmp_path, np.array([[4, 5, 6, 7, 9]], dtype=np.uint8), "PALETTE COLOR", **header)
    assert made.tolist() == [[[0, 0, 0], [0, 0, 0], [255, 128, 64], [10, 20, 30], [10, 20, 30]]]


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


def packed_as(syntax: str) -> bytes:
    """A file that says that its pixels are stored in another way."""
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    data = dcmread(io.BytesIO(dicom(RAMP)))
    data.file_meta.TransferSyntaxUID = syntax
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
    "no decoder": (
        lambda: packed_as("1.2.840.10008.1.2.4.70"),
        r"decodes the DICOM file's JPEG Lossless.*pip install 'pylibjpeg\[all\]'",
    ),
    "too large": (lambda: dicom(RAMP, Rows=20000, Columns=20000), f"400000000 pixels .*set {LIMIT_VARIABLE}"),
    "ink": (lambda: dicom(np.zeros((2, 2, 4), np.uint8), "CMYK", SamplesPerPixel=4), "neither RGB nor YBR"),
    "syntax without pixels": (lambda: packed_as("1.2.840.10008.1.2.4.100"), "no known package decodes"),
    "padding alone": (lambda: dicom(np.full((2, 2), 7, np.uint16), PixelPaddingValue=7), "every pixel .* is padding"),
    "values in the upper bits": (lambda: dicom(RAMP, BitsStored=12, HighBit=15), r"end at bit 15 and not 11 \(HighBit"),
    "name in another place": (misplaced_name, "DICOM file cannot be decoded .BytesLengthException."),
}


@pytest.mark.parametrize("kind", DICOM_FAULTS)
def test_dicom_that_cannot_be_used_is_one_sentence(tmp_path: Path, kind: str) -> None:
    make, message = DICOM_FAULTS[kind]
    check_refused(tmp_path / "a.dcm", make(), message)


# What pydicom ships as its own test data; what it would download is not asked for.


def shipped() -> dict[str, Path]:
    import pydicom.data

    folder = Path(pydicom.data.__file__).parent / "test_files"
    return {file.stem: file for file in sorted(folder.glob("*.dcm"))}


SHIPPED = shipped()
REFUSED = {  # of those in no other form; by the first words of why
    "holds no image": (
        "UN_sequence",
        "DICOMDIR-empty",
        "empty_charset_LEI",
        "priv_SQ",
        "reportsi",
        "rtplan",
        "test-SR",
    ),
    "is named as DICOM but is not": ("no_meta", "ExplVR_LitEndNoMeta"),
    "frames; export the one": ("examples_ybr_color", "rtdose", "rtdose_rle", "SC_rgb_rle_2frame"),
    "cannot be decoded": ("MR_truncated", "badVR"),
}
TWINS = {  # how far the compressed ones may be from the first
    ("MR_small", 0): ("MR_small_RLE", "MR_small_bigendian", "MR_small_expb", "MR_small_implicit", "MR_small_padded"),
    ("MR_small_RLE", 0): ("MR_small_jp2klossless",),
    ("SC_rgb_rle", 0): ("SC_rgb_rle_16bit", "SC_rgb_rle_32bit", "SC_rgb_gdcm_KY"),
    ("SC_rgb_rle", 12): ("SC_rgb_dcmtk_+eb+cr", "SC_rgb_jpeg_dcmtk", "SC_ybr_full_422_uncompressed"),
    ("SC_rgb_small_odd", 0): ("SC_rgb_small_odd_big_endian",),
    ("SC_rgb_small_odd", 4): ("SC_rgb_small_odd_jpeg",),
    ("liver_1frame", 0): ("liver_expb_1frame",),
    ("rtdose_1frame", 0): ("rtdose_expb_1frame", "rtdose_rle_1frame"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_file_of_pydicom_shows_a_picture_or_says_why_not(
    name: str, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    try:
        picture = pixels(SHIPPED[name])
    except UnusableImage as error:
        assert error.sentence == fault(SHIPPED[name]) and len(error.sentence) < 220
        expected = next((why for why, names in REFUSED.items() if name in names), "")
        assert expected in error.sentence
        assert "no installed package decodes" not in error.sentence or "pip install 'pylibjpeg[all]'" in error.sentence
        return
    assert not any(name in names for names in REFUSED.values())
    assert picture.max() > picture.min(), "a picture of one colour"
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.parametrize(
    ("first", "other", "most"), [(first, other, most) for (first, most), names in TWINS.items() for other in names]
)
def test_compressed_twins_show_the_same_picture(first: str, other: str, most: int) -> None:
    one, two = pixels(SHIPPED[first]).astype(int), pixels(SHIPPED[other]).astype(int)
    assert one.shape == two.shape and np.abs(one - two).max() <= most


def test_missing_pydicom_says_what_to_install(write: Write) -> None:
    # A new interpreter in which pydicom cannot be imported.
    program = (
        "import sys; sys.modules['pydicom'] = None; from mmedpo.data import images; images.fault(eval(sys.argv[1]))"
    )
    image = repr({"bytes": None, "path": str(write("DICOM"))})
    run = subprocess.run([sys.executable, "-c", program, image], capture_output=True, text=True)
    assert "InputError: DICOM files are read with pydicom: pip install 'mmedpo[dicom]'" in run.stderr
