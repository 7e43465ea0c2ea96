"""DICOM files: what is shown of them, what is refused, and that nothing of their headers is said or kept."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data.dicom import DECODERS
from mmedpo.data.images import LIMIT_VARIABLE, UnusableImage, embedded, fault, is_embedded, pixels, size
from mmedpo.data.sources import read_source
from tests.pictures import NAME, check_refused, colours, dicom, saved

Write = Callable[[str], Path]
MakeSource = Callable[..., Path]

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


SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
DICOM_FAULTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "frames": (lambda: dicom(np.zeros((6, 4), np.uint8), Rows=2, NumberOfFrames=3), "has 3 frames"),
    "no rows": (lambda: dicom(RAMP, Rows=None), "has no pixels or ends before them"),
    "rows of 0": (lambda: dicom(RAMP, Rows=0), "has no pixels"),
    "rows without pixels": (lambda: dicom(RAMP, Rows=9000, Columns=9000), "do not fit its header or are damaged"),
    "segmentation": (lambda: dicom(RAMP, SOPClassUID=SEGMENTATION), r"is not a picture \(Segmentation Storage\)"),
    "dose without a kind": (lambda: dicom(RAMP, SOPClassUID=NAME, Modality="RTDOSE"), r"is not a picture \(RTDOSE\)"),
    "not DICOM": (lambda: saved("L"), "has a DICOM name but is not DICOM"),
    "half": (lambda: dicom(RAMP)[:-4], "do not fit its header or are damaged"),
    "half of compressed pixels": (lambda: packed_as("1.2.840.10008.1.2.4.50"), "do not fit its header or are damaged"),
    "two samples": (lambda: dicom(np.zeros((2, 2, 2), np.uint8), "RGB", SamplesPerPixel=2), "of three samples"),
    "grey of three samples": (lambda: dicom(colours()), "neither RGB nor YBR of three samples"),
    "colour of one sample": (lambda: dicom(RAMP, "RGB"), "greys are of an unknown kind"),
    "colour of half height": (lambda: dicom(colours(), "YBR_PARTIAL_420"), "neither RGB nor YBR"),
    "no photometric": (lambda: dicom(RAMP, PhotometricInterpretation=None), "greys are of an unknown kind"),
    "12 bits side by side": (lambda: dicom(RAMP, BitsAllocated=12, BitsStored=12, HighBit=11), "do not fit its header"),
    "own syntax": (lambda: packed_as("1.2.3.4"), "no package decodes the DICOM file's pixels; export"),
    "too large": (lambda: dicom(RAMP, Rows=20000, Columns=20000), f"400000000 pixels .*set {LIMIT_VARIABLE}"),
    "ink": (lambda: dicom(np.zeros((2, 2, 4), np.uint8), "CMYK", SamplesPerPixel=4), "neither RGB nor YBR"),
    "video": (lambda: packed_as("1.2.840.10008.1.2.4.100"), r"pixels \(MPEG2 Main Profile / Main Level, 1.2.840"),
    "padding alone": (lambda: dicom(np.full((2, 2), 7, np.uint16), PixelPaddingValue=7), "every pixel .* is padding"),
    "values in the upper bits": (lambda: dicom(RAMP, BitsStored=12, HighBit=15), r"HighBit is 15, but must be 11"),
    "name in another place": (misplaced_name, "DICOM file cannot be decoded .BytesLengthException."),
}


@pytest.mark.parametrize("kind", DICOM_FAULTS)
def test_dicom_that_cannot_be_used_is_one_sentence(tmp_path: Path, kind: str) -> None:
    make, message = DICOM_FAULTS[kind]
    check_refused(tmp_path / "a.dcm", make(), message)


def test_an_error_and_its_causes_do_not_name_the_patient() -> None:
    with pytest.raises(UnusableImage) as caught:
        pixels(misplaced_name())
    assert NAME not in "".join(traceback.format_exception(caught.value))


def test_files_read_in_threads_leave_warnings_and_loggers_as_they_were() -> None:
    logger = logging.getLogger("pydicom")
    before = [*warnings.filters], logger.disabled, logger.propagate
    with ThreadPoolExecutor(8) as pool:
        found = {*pool.map(fault, [misplaced_name(), saved("L")] * 50)}
    assert len(found) == 2 and ([*warnings.filters], logger.disabled, logger.propagate) == before


@pytest.mark.parametrize(
    ("syntax", "lacking", "name"),
    [("51", "no", "JPEG Extended"), ("70", "no", "JPEG Lossless"), ("81", "no", "JPEG-LS Lossy Image Compression"),
     ("90", "pillow", "JPEG 2000 Image Compression"), ("203", "no", "High-Throughput JPEG 2000 Image Compression")],
)  # fmt: skip
def test_missing_decoder_is_named_with_its_licence(
    monkeypatch: pytest.MonkeyPatch, syntax: str, lacking: str, name: str
) -> None:
    from pydicom.pixels import get_decoder

    number = f"1.2.840.10008.1.2.4.{syntax}"
    decoder = get_decoder(number)
    monkeypatch.setattr(decoder, "_available", {lacking: None} if lacking != "no" else {})
    packages = next(packages for start, (_, packages) in DECODERS.items() if decoder.UID.keyword.startswith(start))
    sentence = str(fault(packed_as(number)))
    assert f"{number}; install {packages}" in sentence and name.split(" Lossy")[0] in sentence and "(" in packages


def test_missing_pydicom_says_what_to_install(write: Write) -> None:
    # A new interpreter in which pydicom cannot be imported.
    program = (
        "import sys; sys.modules['pydicom'] = None; from mmedpo.data import images; images.fault(eval(sys.argv[1]))"
    )
    image = repr({"bytes": None, "path": str(write("DICOM"))})
    run = subprocess.run([sys.executable, "-c", program, image], capture_output=True, text=True)
    assert "InputError: DICOM files are read with pydicom: pip install 'mmedpo[dicom]'" in run.stderr


# In a source, DICOM goes by its content: exports have names such as IM000001, I10.IMA and 1.2.840.5.


def bare(values: np.ndarray, implicit: bool, little: bool) -> bytes:
    """A DICOM file without preamble and transfer syntax, as of ACR-NEMA."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset

    data = Dataset()
    data.update(dcmread(io.BytesIO(dicom(values if little else values.byteswap()))))
    buffer = io.BytesIO()
    data.save_as(buffer, implicit_vr=implicit, little_endian=little)
    return buffer.getvalue()


NAMES: dict[str, Callable[[], bytes]] = {
    "IM000001": lambda: dicom(RAMP),
    "I10.IMA": lambda: dicom(RAMP + 1),
    "1.2.840.5": lambda: dicom(RAMP * 3),
    "scan.png": lambda: dicom(RAMP**2),
    "implicit": lambda: bare(RAMP, True, True),
    "explicit.img": lambda: bare(RAMP, False, True),
    "big": lambda: bare(RAMP[::-1], False, False),
}


def test_dicom_under_any_name_is_read_if_the_table_names_it(make_source: MakeSource) -> None:
    faulty = {"notes.txt": b"no image", "dose": dicom(RAMP, Modality="RTDOSE"), "flat": dicom(RAMP * 0)}
    made = {name: make() for name, make in NAMES.items()}
    names = [*made, *faulty, "sub"]
    rows = [{"id": name, "image": name, "question": "Is it clear?", "answer": "yes"} for name in names]
    source = make_source(rows, images=made | faulty)
    (source / "sub").mkdir()
    read = read_source(source)
    shown = {sample.id: pixels(sample.images[0].file).tolist() for sample in read.samples}
    assert shown == {name: pixels(data).tolist() for name, data in made.items()}
    assert shown["implicit"] == shown["explicit.img"] == shown["IM000001"] == shown["big"][::-1]
    texts = [given.sentence for given in read.faults]
    right = ["or a DICOM file; add", "or a DICOM file; add", "not a picture (RTDOSE)", "has one colour everywhere"]
    assert len(texts) == 4 and all(words in text for words, text in zip(right, texts, strict=True))
    kept = embedded(source / "scan.png")
    assert kept["path"] == "scan.png" and is_embedded(kept["bytes"]) and not is_embedded(made["scan.png"])
    assert size({"bytes": made["big"], "path": None}) == (3, 2)
