"""DICOM files as a viewer shows them, with pydicom (`pip install 'mmedpo[dicom]'`).

Only header elements that the pixels need are read. None is quoted, since errors and warnings of pydicom may name the
patient. `dicom_values` makes grey and colour of stored values.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mmedpo.data.dicom_values import coloured, grey
from mmedpo.data.image_modes import (
    WIDE_PIXEL,
    UnusableError,
    ignoring_warnings,
    most_bytes,
    refuse_bombs,
    upper_bits,
)
from mmedpo.errors import InputError

SUFFIXES = (".dcm", ".dicom")
MARK = b"DICM"  # at byte 128
# First bytes of a file without preamble, as of ACR-NEMA: element (0002 or 0008, 00xx), little or big endian.
BARE = (b"\x02\0", b"\x08\0"), (b"\0\x02", b"\0\x08")
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SAMPLES = {  # per pixel
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3,
    "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3,
}  # fmt: skip
NO_PICTURES = ("SEG", "RTDOSE")  # modalities that store values as pixels
# Transfer syntaxes by the start of their keyword: plugins of pydicom that decode all of their files, and what to
# install with its licence. Pillow decodes JPEG of 8 bits and most of JPEG 2000.
DECODERS = {
    "JPEGExtended": ({"pylibjpeg"}, "pylibjpeg and pylibjpeg-libjpeg (GPL-3.0)"),
    "JPEGLossless": ({"gdcm", "pylibjpeg"}, "pylibjpeg and pylibjpeg-libjpeg (GPL-3.0), or python-gdcm (Apache-2.0)"),
    "JPEGLS": ({"pyjpegls", "gdcm", "pylibjpeg"}, "pyjpegls (MIT)"),
    "JPEG2000": ({"pylibjpeg", "gdcm"}, "pylibjpeg and pylibjpeg-openjpeg (MIT)"),
    "HTJ2K": ({"pylibjpeg"}, "pylibjpeg and pylibjpeg-openjpeg (MIT)"),
}
BLOCK = 2**14  # bytes inflated at a time
FRAME_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG segments with the frame's size; 0xF7 is JPEG-LS


def is_dicom(data: bytes) -> bool:
    """Return True for a DICOM file by its first 132 bytes; it may have any name, and no preamble (`BARE`)."""
    little, big = BARE
    bare = (data[:2] in little and data[3:4] == b"\0") or (data[:2] in big and data[2:3] == b"\0")
    return data[128:132] == MARK or bare


def read(data: bytes) -> np.ndarray:
    """Return the picture of a DICOM file, uint8 H x W or H x W x 3.

    Raises:
        UnusableError: no picture, several frames, or no installed package decodes the pixels.
        InputError: pydicom is missing, or the limit variable is no number.
    """
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise InputError(f"DICOM files are read with pydicom: pip install 'mmedpo[dicom]' ({error}).") from None
    from PIL import Image as pillow

    if not is_dicom(data):
        raise UnusableError("the file has a DICOM name but is not DICOM; replace the file or drop the row")
    try:
        with _silence():
            return _picture(dcmread(_Stream(data), force=True))
    except (InputError, UnusableError, pillow.DecompressionBombError):
        raise
    except Exception as error:  # any kind; its text may quote the header
        kind = type(error).__name__
        raise UnusableError(f"the DICOM file cannot be decoded ({kind}); export it again or drop the row") from None


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
                raise pillow.DecompressionBombError(f"it is larger than the limit of {most} bytes when decompressed")
            data = inflater.unconsumed_tail


@contextmanager
def _silence() -> Iterator[None]:
    """Keep warnings and logs of pydicom from terminal and log files."""
    logger = logging.getLogger("pydicom")
    with ignoring_warnings():
        before = logger.disabled, logger.propagate
        logger.disabled, logger.propagate = True, False  # the latter for its child loggers
        try:
            yield
        finally:
            logger.disabled, logger.propagate = before


def _picture(header: Any) -> np.ndarray:
    """Return the picture of a pydicom dataset."""
    _refuse_others(header)
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise UnusableError(f"the DICOM file has {frames} frames; export the one that the row is about")
    bits, high = header.get("BitsStored"), header.get("HighBit")
    if bits is not None and high is not None and high != bits - 1:
        raise UnusableError(f"the DICOM file's HighBit is {high}, but must be {bits - 1}; export it again")
    count = int(header.get("SamplesPerPixel") or 1)
    refuse_bombs(header.Rows * header.Columns, max(WIDE_PIXEL, count * -(-int(header.get("BitsAllocated") or 8) // 8)))
    kind = header.PhotometricInterpretation = str(header.get("PhotometricInterpretation") or "").upper()
    if SAMPLES.get(kind) != count:
        what = "colours are neither RGB nor YBR of three samples" if count > 1 else "greys are of an unknown kind"
        raise UnusableError(f"the DICOM file's {what} (PhotometricInterpretation); export it again")
    _flatten_frame(header)
    values = _decoded(header)
    if kind == "PALETTE COLOR":
        return coloured(values, header)
    return grey(values, header) if values.ndim == 2 else upper_bits(values)


def _refuse_others(header: Any) -> None:
    """Raise UnusableError for segmentations, doses, plans, reports, waveforms, presentation states and the like."""
    from pydicom.uid import UID

    kind = UID(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    modality = str(header.get("Modality") or "").upper()
    is_known = kind.type == "SOP Class"  # else `name` is the file's own text
    found = kind.name if is_known and not {"Image", "Volume"} & set(kind.name.split()) else ""
    if found or modality in NO_PICTURES:
        raise UnusableError(f"the DICOM file is not a picture ({found or modality}); name an image or drop the row")
    if not header.get("Rows") or not header.get("Columns") or not any(name in header for name in PIXELS):
        raise UnusableError("the DICOM file has no pixels or ends before them; replace the file or drop the row")


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

    syntax = header.file_meta.TransferSyntaxUID = _syntax(header)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        name = f" ({_name(syntax)})" if syntax.keyword else ""
        raise UnusableError(f"no package decodes the DICOM file's pixels{name}; export it as an image") from None
    plugins, packages = next((DECODERS[key] for key in DECODERS if syntax.keyword.startswith(key)), (None, ""))
    lacking = f"no installed package decodes the DICOM file's {_name(syntax)}; install {packages}"
    if not decoder.is_available:
        raise UnusableError(f"{lacking}, or export it uncompressed")
    if syntax.is_encapsulated:
        _refuse_other_size(header)
    # GDCM ends the process on some damaged JPEG files: it is asked only where nothing else is installed.
    available = set(decoder.available_plugins)
    failed = ""
    for plugin in sorted(available - {"gdcm"} or available, reverse=True) or [""]:
        header.pixel_array_options(decoding_plugin=plugin)
        try:
            values: np.ndarray = header.pixel_array
        except Exception as error:
            failed = type(error).__name__
            continue
        if values.shape in ((header.Rows, header.Columns), (header.Rows, header.Columns, 3)):
            return values
    if plugins and not plugins & available:
        raise UnusableError(f"{lacking}, or replace the file if it is damaged")
    why = f" ({failed})" if failed else ""
    sentence = f"the DICOM file's pixels do not fit its header or are damaged{why}"
    raise UnusableError(f"{sentence}; export it again or drop the row")


def _name(syntax: Any) -> str:
    """Return the short name and number of a registered transfer syntax."""
    return f"{re.split('[,(]', syntax.name)[0].strip()}, {syntax}"


def _syntax(header: Any) -> Any:
    """Return the transfer syntax; of a file that names none, the one by which pydicom could read its header."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if syntax := header.file_meta.get("TransferSyntaxUID"):
        return syntax
    is_implicit, is_little = header.original_encoding
    if "PixelData" in header and header["PixelData"].is_undefined_length:
        raise UnusableError("the DICOM file does not say how its pixels are compressed; export it again")
    return ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian


def _refuse_other_size(header: Any) -> None:
    """Raise UnusableError if compressed pixels declare another size than the header, since only that was limited."""
    from pydicom.encaps import get_frame

    declared = _codestream_size(get_frame(header.PixelData, 0, number_of_frames=1))
    if declared and (declared[:2] != (header.Rows, header.Columns) or declared[2] > 4):
        raise UnusableError("the DICOM file's pixels have another size than its header; export it again")


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
