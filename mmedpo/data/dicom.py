"""DICOM files as a viewer shows them, with pydicom (`pip install 'mmedpo[dicom]'`).

Only header elements that the pixels need are read. None is quoted, since errors and warnings of pydicom may name the
patient. An empty or invalid element counts as absent.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmedpo.data.image_modes import WIDE_PIXEL, UnusableError, eight_bits, most_bytes, refuse_bombs, upper_bits
from mmedpo.errors import InputError

SUFFIXES = (".dcm", ".dicom")
MARK = b"DICM"  # at byte 128
CHANNELS = ("Red", "Green", "Blue")
BLOCK = 2**14  # bytes inflated at a time
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG segments with the frame's size; 0xF7 is JPEG-LS
PACKAGES = "pip install 'pylibjpeg[all]' or export it uncompressed"


def read(data: bytes) -> np.ndarray:
    """Return the picture of a DICOM file, uint8 H x W or H x W x 3 (DICOM PS3.3, C.7.6.3 and C.11).

    Grey values pass the modality's table or slope, then the VOI table, the first usable window, or their own range.
    Padding is black and not part of that range.

    Raises:
        UnusableError: no picture, several frames, or no installed package decodes the pixels.
        InputError: pydicom is missing, or the limit variable is no number.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise InputError(f"DICOM files are read with pydicom: pip install 'mmedpo[dicom]' ({error}).") from None
    from PIL import Image as pillow

    try:
        with _silence():
            return _picture(dcmread(_Stream(data)))
    except (InputError, UnusableError, pillow.DecompressionBombError):
        raise
    except InvalidDicomError:
        raise UnusableError("the file is named as DICOM but is not; replace the file or drop the row") from None
    except Exception as error:  # any kind; its text may quote the header
        kind = type(error).__name__
        raise UnusableError(f"the DICOM file cannot be decoded ({kind}); export it anew or drop the row") from None


class _Stream(io.BytesIO):
    """A file in memory that limits deflated data: pydicom reads the rest of it at once and inflates without a limit."""

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        if size is None or size < 0:
            _refuse_inflating(found)
        return found


def _refuse_inflating(packed: bytes) -> None:
    """Raise DecompressionBombError if deflated data exceed `most_bytes`."""
    from PIL import Image as pillow

    most, inflater, count = most_bytes(), zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(packed), BLOCK):
        data = packed[start : start + BLOCK]
        while data:
            count += len(inflater.decompress(data, 64 * BLOCK))
            if count > most:
                raise pillow.DecompressionBombError(f"it inflates to more than the limit of {most} bytes")
            data = inflater.unconsumed_tail


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _picture(header: Any) -> np.ndarray:
    """Return the picture of a pydicom dataset."""
    if not header.get("Rows") or not header.get("Columns"):
        raise UnusableError("the DICOM file holds no image; drop the row")
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise UnusableError(f"the DICOM file holds {frames} frames; export the one that the row is about")
    bits, high = header.get("BitsStored"), header.get("HighBit")
    if bits is not None and high is not None and high != bits - 1:
        raise UnusableError(f"the DICOM file's values end at bit {high} and not {bits - 1} (HighBit); export it anew")
    stored = int(header.get("SamplesPerPixel") or 1) * -(-int(header.get("BitsAllocated") or 8) // 8)
    refuse_bombs(header.Rows * header.Columns, max(WIDE_PIXEL, stored))
    _flatten_frame(header)
    kind = str(header.PhotometricInterpretation).upper()
    if not kind.startswith(("MONOCHROME", "PALETTE", "RGB", "YBR")):
        raise UnusableError("the DICOM file's colours are neither RGB nor YBR; export it as RGB")
    values = _decoded(header)
    if kind == "PALETTE COLOR":
        return _coloured(values, header)
    if values.ndim == 3:
        return upper_bits(values)
    padding = _padding(values, header)
    if padding is not None and padding.all():
        raise UnusableError("every pixel of the DICOM file is padding; export it anew or drop the row")
    grey = _windowed(_rescaled(values, header), header, padding)
    grey = 255 - grey if kind == "MONOCHROME1" else grey
    return grey if padding is None else np.where(padding, np.uint8(0), grey)


def _flatten_frame(header: Any) -> None:
    """Copy window and rescaling of an enhanced file's only frame to the top level, where other files have them."""
    for group in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for frame in (header.get(group) or [])[:1]:
            for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
                for item in (frame.get(name) or [])[:1]:
                    header.update(item)


def _decoded(header: Any) -> np.ndarray:
    """Return stored values, int or float, H x W or H x W x 3 (YBR converted to RGB)."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UnusableError("the DICOM file does not say how its pixels are stored; export it anew")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UnusableError("no known package decodes the DICOM file's pixels; export it uncompressed") from None
    if not decoder.is_available:
        raise UnusableError(f"no installed package decodes the DICOM file's {syntax.name}; {PACKAGES}")
    if syntax.is_encapsulated:
        _refuse_other_size(header)
    try:
        values: np.ndarray = header.pixel_array
    except Exception as error:
        if not decoder.missing_dependencies:
            raise
        why = f"no installed package decodes the DICOM file's {syntax.name} ({type(error).__name__})"
        raise UnusableError(f"{why}; {PACKAGES}") from None
    return values


def _refuse_other_size(header: Any) -> None:
    """Raise UnusableError if compressed pixels declare another size than the header, since only that was limited."""
    from pydicom.encaps import get_frame

    declared = _codestream_size(get_frame(header.PixelData, 0, number_of_frames=1))
    if declared and (declared[:2] != (header.Rows, header.Columns) or declared[2] > 4):
        raise UnusableError(
            "the DICOM file's pixels are compressed at another size than its header says; export it anew"
        )


def _codestream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Return height, width and components from the header of a JPEG or JPEG 2000 codestream, or None."""
    if (start := frame.find(b"\xff\x4f\xff\x51")) >= 0:  # JPEG 2000: SOC, SIZ
        if len(frame) < start + 42:
            return None
        width, height, left, top = struct.unpack_from(">4I", frame, start + 8)
        return height - top, width - left, struct.unpack_from(">H", frame, start + 40)[0]
    place = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        if frame[place + 1] in FRAME_MARKERS:
            height, width, components = struct.unpack_from(">HHB", frame, place + 5)
            return height, width, components
        place += 1 if frame[place + 1] == 0xFF else 2 + int.from_bytes(frame[place + 2 : place + 4])
    return None


def _numbers(header: Any, keyword: str) -> list[float]:
    """Return the numbers of an element, NaN for null values; empty where it is absent or invalid."""
    try:
        element = header.get(keyword)
        values = element if isinstance(element, (list, tuple)) or hasattr(element, "__iter__") else [element]
        return [math.nan if value is None else float(value) for value in values]
    except (ValueError, TypeError, OverflowError):
        return []


def _number(header: Any, keyword: str) -> float | None:
    """Return an element's first number if it is finite, else None."""
    found = _numbers(header, keyword)
    return found[0] if found and math.isfinite(found[0]) else None


def _padding(values: np.ndarray, header: Any) -> np.ndarray | None:
    """Return the padded pixels, bool H x W; None where the header names no padding."""
    for kind in ("", "Float", "DoubleFloat"):
        ends = [_number(header, f"{kind}PixelPadding{end}") for end in ("Value", "RangeLimit")]
        if ends[0] is not None:
            known = [end for end in ends if end is not None]
            if not kind and values.dtype.kind in "iu":  # element and pixels may differ in sign
                known = np.array(known).astype(np.int64).astype(values.dtype).tolist()
            return (values >= min(known)) & (values <= max(known))
    return None


def _rescaled(values: np.ndarray, header: Any) -> np.ndarray:
    """Return values in the modality's unit."""
    if table := _table(header.get("ModalityLUTSequence"), values):
        return table[0]
    slope, intercept = _number(header, "RescaleSlope") or 1.0, _number(header, "RescaleIntercept") or 0.0
    return values if (slope, intercept) == (1, 0) else values * slope + intercept


def _windowed(values: np.ndarray, header: Any, padding: np.ndarray | None) -> np.ndarray:
    """Return values through the VOI table or window, uint8 H x W."""
    if table := _table(header.get("VOILUTSequence"), values):
        return eight_bits(table[0], 0, 2 ** table[1] - 1)
    windows = zip(_numbers(header, "WindowCenter"), _numbers(header, "WindowWidth"), strict=False)
    centre, width = next((pair for pair in windows if all(map(math.isfinite, pair)) and pair[1] > 0), (0.0, 0.0))
    if not width:
        return eight_bits(values, padding=padding)
    function = str(header.get("VOILUTFunction") or "").upper()
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return eight_bits(1 / (1 + np.exp(-4 * (values - centre) / width)), 0, 1)
    if function != "LINEAR_EXACT" and width >= 1:
        centre, width = centre - 0.5, width - 1
    return eight_bits(values, centre - width / 2, centre + width / 2)


def _table(sequence: Any, values: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Return values through a sequence's table, and the bits of its entries; None without a table."""
    item = sequence[0] if sequence else {}
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if not descriptor or not data:
        return None
    count, first, bits = descriptor[0] or 2**16, descriptor[1], descriptor[2]
    table = _entries(data, count) if isinstance(data, bytes) else np.asarray(data, dtype=np.int64).reshape(-1)
    if first > max(values.max(), 2**15 - 1):  # a negative number read as unsigned
        first -= 2**16
    # Files often have entries of 8 bits, or of more than the descriptor says.
    depth = max(int(table.max()).bit_length(), 8)
    bits = depth if depth == 8 or depth > bits else bits
    return _looked_up(np.rint(values).astype(np.int64), table, first), bits


def _coloured(values: np.ndarray, header: Any) -> np.ndarray:
    """Return values through the header's palette, uint8 H x W x 3."""
    from pydicom.pixels import apply_color_lut

    if "SegmentedRedPaletteColorLookupTableData" in header:
        made = apply_color_lut(values, header)[..., :3]
        return (made >> 8 if made.max() > 255 else made).astype(np.uint8)
    count, first, _ = header.RedPaletteColorLookupTableDescriptor
    little = bool(header.file_meta.TransferSyntaxUID.is_little_endian)
    data = [header[f"{name}PaletteColorLookupTableData"].value for name in CHANNELS]
    tables = [_entries(entries, count or 2**16, little) for entries in data]
    made = np.stack([_looked_up(values.astype(np.int64), table, first) for table in tables], axis=-1)
    # Files often store 8-bit entries in 16-bit words, whatever the descriptor says.
    return (made >> 8 if max(table.max() for table in tables) > 255 else made).astype(np.uint8)


def _entries(data: bytes, count: int, little: bool = True) -> np.ndarray:
    """Return a table's `count` entries, of 8 or 16 bits by its length."""
    kind = ("<u2" if little else ">u2") if len(data) >= 2 * count else "u1"
    return np.frombuffer(data, kind, min(count, len(data) // np.dtype(kind).itemsize))


def _looked_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    return table[np.clip(values - first, 0, len(table) - 1)]
