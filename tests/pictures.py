"""Image files of every kind, made for the test at hand, some of them written by hand."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmedpo.data.images import fault, open_rgb, pixels
from mmedpo.errors import InputError

HEIGHT, WIDTH = 24, 40
NAME = "Doe^Jane"  # of a patient, in the headers of all DICOM files here


def colours(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def png_file(height: int, width: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand (the PNG specification, section 11): kinds and sizes that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen_bit_colour() -> bytes:
    values = np.random.default_rng(0).integers(0, 2**16, (HEIGHT, WIDTH, 3)).astype(">u2")
    return png_file(HEIGHT, WIDTH, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))


def dicom(
    values: np.ndarray, photometric: str = "MONOCHROME2", compressed: Any = None, elements: Iterable[Any] = (),
    **header: Any,
) -> bytes:  # fmt: skip
    """A DICOM file; `header` sets further elements by keyword, `elements` are pydicom's."""
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
    data.PhotometricInterpretation = photometric
    if values.dtype.kind == "f":
        data.FloatPixelData = values.tobytes()
    else:
        data.PixelRepresentation = int(values.dtype.kind == "i")
        data.PixelData = values.tobytes()
    for name, value in header.items():
        setattr(data, name, value)
    for element in elements:
        data.add(element)
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


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number  # 6: turn by 90 degrees clockwise
    return exif


def tiff(*pages: tuple[np.ndarray, dict[int, Any]]) -> bytes:
    """A TIFF written by hand, a page for each (values, tags): palettes, alphas and photometric kinds that Pillow does
    not write. Tags besides the size are given by number, as whole numbers of 16 bits."""
    data = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for values, tags in pages:
        height, width, *samples = values.shape
        count = samples[0] if samples else 1
        entries = {256: [width], 257: [height], 258: [8 * values.itemsize] * count, 259: [1], 262: [1], 277: [count],
                   278: [height]} | {tag: np.atleast_1d(given).tolist() for tag, given in tags.items()}  # fmt: skip
        entries[279], entries[273] = [values.nbytes], [len(data)]
        data += values.tobytes()
        places = {}
        for tag, numbers in entries.items():
            places[tag] = len(data)
            data += struct.pack(f"<{len(numbers)}I" if tag in (273, 279) else f"<{len(numbers)}H", *numbers)
            data += b"\0" * (-len(data) % 4)
        struct.pack_into("<I", data, link, len(data))
        data += struct.pack("<H", len(entries))
        for tag in sorted(entries):
            numbers, wide = entries[tag], tag in (273, 279)
            size = len(numbers) * (4 if wide else 2)
            value = data[places[tag] : places[tag] + 4] if size <= 4 else struct.pack("<I", places[tag])
            data += struct.pack("<HHI", tag, 4 if wide else 3, len(numbers)) + bytes(value)
        link = len(data)
        data += b"\0\0\0\0"
    return bytes(data)


ALPHA = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))  # 0 on the left, 255 on the right


def on_black(values: np.ndarray, alpha: np.ndarray = ALPHA) -> np.ndarray:
    """uint8 H x W x 3: each channel times alpha, rounded; by integers, (2 c a + 255) / 510 cut to whole numbers."""
    colour = values if values.ndim == 3 else np.stack([values] * 3, axis=-1)
    return ((2 * colour.astype(int) * alpha[..., None] + 255) // 510).astype(np.uint8)


def layered(mode: str, format: str, **options: Any) -> bytes:
    """The colours with ALPHA, as mode LA, PA or RGBA."""
    picture = Image.fromarray(colours()).convert({"LA": "L", "PA": "P"}.get(mode, "RGB")).convert(mode)
    picture.putalpha(Image.fromarray(ALPHA))
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


KINDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "1 bit": ("a.png", lambda: saved("1")),
    "grey": ("a.png", lambda: saved("L")),
    "grey with transparency": ("a.png", lambda: layered("LA", "PNG")),
    "grey with a transparent grey": ("a.png", lambda: saved("L", transparency=7)),
    "grey JPEG": ("a.jpg", lambda: saved("L", "JPEG")),
    "16-bit grey": ("a.png", lambda: deep("uint16", "PNG")),
    "16-bit grey TIFF": ("a.tif", lambda: deep("uint16", "TIFF")),
    "32-bit TIFF": ("a.tif", lambda: deep("int32", "TIFF")),
    "float TIFF": ("a.tiff", lambda: deep("float32", "TIFF")),
    "16-bit colour": ("a.png", sixteen_bit_colour),
    "colour": ("a.png", lambda: saved("RGB")),
    "opaque colour with alpha": ("a.png", lambda: saved("RGBA")),
    "colour with transparency": ("a.png", lambda: layered("RGBA", "PNG")),
    "transparent WebP": ("a.webp", lambda: layered("RGBA", "WEBP", lossless=True, exact=True)),
    "transparent TIFF": ("a.tif", lambda: layered("RGBA", "TIFF")),
    "grey TIFF with transparency": ("a.tif", lambda: layered("LA", "TIFF")),
    "transparent and turned": ("a.png", lambda: layered("RGBA", "PNG", exif=orientation(6))),
    "palette": ("a.png", lambda: saved("P")),
    "palette with transparency": ("a.png", lambda: saved("P", transparency=bytes(range(256)))),
    "palette with alpha": ("a.tif", lambda: layered("PA", "TIFF")),
    "GIF": ("a.gif", lambda: saved("P", "GIF")),
    "transparent GIF": ("a.gif", lambda: saved("P", "GIF", transparency=7)),
    "colour JPEG": ("a.jpeg", lambda: saved("RGB", "JPEG")),
    "CMYK JPEG": ("a.jpg", lambda: saved("CMYK", "JPEG")),
    "CMYK TIFF": ("a.tif", lambda: saved("CMYK", "TIFF")),
    "WebP": ("a.webp", lambda: saved("RGB", "WEBP")),
    "BMP": ("a.bmp", lambda: saved("RGB", "BMP")),
    "turned": ("a.png", lambda: saved("RGB", exif=orientation(6))),
    "DICOM": ("a.dcm", lambda: dicom(np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH))),
    "colour DICOM": ("a.DCM", lambda: dicom(colours(), "RGB")),
}
COLOURLESS = {
    *("1 bit", "grey", "grey with transparency", "grey with a transparent grey", "grey TIFF with transparency"),
    *("grey JPEG", "16-bit grey", "16-bit grey TIFF", "32-bit TIFF", "float TIFF", "DICOM"),
}


def read(image: dict[str, Any]) -> np.ndarray:
    """The image as training sees it: decoded by the library that reads the dataset, then made RGB."""
    from datasets import Image as Reader

    return np.asarray(Reader().decode_example(image).convert("RGB"))


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
