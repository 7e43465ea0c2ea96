"""Grey values and palettes of DICOM files: rescaling, windows, lookup tables and padding (PS3.3, C.7.6.3 and C.11).

An empty or invalid element counts as absent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mmedpo.data.image_modes import UnusableError, eight_bits

CHANNELS = ("Red", "Green", "Blue")


def grey(values: np.ndarray, header: Any) -> np.ndarray:
    """Return stored values of one sample as shown, uint8 H x W; padding is black and not part of the range.

    Values pass the modality's table or slope, then the VOI table, the first usable window, or their own range.

    Raises:
        UnusableError: every pixel is padding.
    """
    padding = _padding(values, header)
    if padding is not None and padding.all():
        raise UnusableError("every pixel of the DICOM file is padding; export it anew or drop the row")
    shown = _windowed(_rescaled(values, header), header, padding)
    shown = 255 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown
    return shown if padding is None else np.where(padding, np.uint8(0), shown)


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


def coloured(values: np.ndarray, header: Any) -> np.ndarray:
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
