"""Image files: reading them as RGB, checking them, and writing what a dataset holds.

DICOM files are read with pydicom (`pip install 'mmedpo[dicom]'`); only their pixels are used, never their header.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo import headers
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT_VARIABLE = "MMEDPO_MAX_IMAGE_PIXELS"
ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", *DICOM_SUFFIXES)


class _UnusableError(Exception):
    """An image that cannot be used; the message is a fault's whole sentence."""


class UnusableImage(InputError):
    """An image that cannot be used; `sentence` is its fault's."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(f"{name}: {sentence}." if name else f"{sentence}.")
        self.sentence = sentence


def open_rgb(file: Path | bytes) -> Image:
    """An image file, or its bytes, as RGB, upright.

    More than 8 bits a channel are scaled by the image's own range, where a conversion would clip them; DICOM is shown
    through its own window. Transparency is dropped.

    Raises:
        UnusableImage: in the words of `fault`.
        InputError: no image's fault: pydicom is missing, or the limit variable is no number.
    """
    return _open(file).convert("RGB")


def pixels(path: Path) -> np.ndarray:
    """The pixels of `open_rgb`: uint8 H x W where they have no colour, however they are stored, else H x W x 3.

    Raises:
        InputError: the file cannot be used, in the words of `fault`.
    """
    values = np.asarray(_open(path))
    if values.ndim == 3 and all((values[..., 0] == values[..., channel]).all() for channel in (1, 2)):
        return values[..., 0]
    return values


def digest(image: Image) -> str:
    """SHA-256 of an image's size and RGB pixels: equal for equal pictures, however their files are written."""
    picture = image.convert("RGB")
    return hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.tobytes()).hexdigest()


def is_deep(image: Image) -> bool:
    """True for more than 8 bits a channel (16-bit greyscale, 32-bit integers, floats)."""
    return image.mode[0] in "IF"


def fault(image: Any) -> str | None:
    """Why an undecoded image ({"bytes", "path"}) cannot be used, or None if it decodes to the end.

    Raises:
        InputError: no image's fault: pydicom is missing, or the limit variable is no number.
    """
    try:
        data, path = image["bytes"], image["path"]
        _decode(Path(path).read_bytes() if data is None else data, dicom=data is None and _is_dicom(Path(path)))
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly every kind on damaged files
        return _sentence(error)
    return None


def embedded(path: Path) -> dict[str, Any]:
    """An image file as a dataset holds it ({"bytes", "path"}), with the pixels of `open_rgb`: PNG and JPEG files
    without what is no pixel in them (`headers.without`); all others become an 8-bit PNG, and so do more than 8 bits a
    channel, which few processors read, and pictures that only their header turns upright."""
    data = path.read_bytes()
    if not _is_dicom(path):
        with open_image(data) as opened:
            plain = not is_deep(opened) and opened.getexif().get(ORIENTATION, 1) == 1
        if plain and (stripped := headers.without(data)):
            return {"bytes": stripped, "path": path.name}
    return png(pixels(path), path.stem)


def png(pixels: np.ndarray, stem: str) -> dict[str, Any]:
    """uint8 H x W or H x W x 3 as a PNG file in memory, {"bytes", "path"}.

    Equal pixels give equal bytes with one Pillow; another one may carry another zlib, which packs them differently.
    """
    from PIL import Image as pillow

    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{stem}.png"}


def open_image(data: bytes) -> Image:
    """The file as Pillow opens it, not yet decoded. Pillow refuses twice `Image.MAX_IMAGE_PIXELS`, for which
    `LIMIT_VARIABLE` is set in the environment, and is silent below that.

    Raises:
        InputError: the variable is no positive number.
    """
    from PIL import Image as pillow

    _set_limit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        return pillow.open(io.BytesIO(data))


def _set_limit() -> None:
    from PIL import Image as pillow

    if limit := os.environ.get(LIMIT_VARIABLE):
        if not limit.isdecimal() or int(limit) == 0:
            raise InputError(f"{LIMIT_VARIABLE} is {limit!r}; give a number of pixels, such as 400000000.")
        pillow.MAX_IMAGE_PIXELS = int(limit)


def _open(file: Path | bytes) -> Image:
    try:
        if isinstance(file, bytes):
            return _decode(file, dicom=False)
        return _decode(file.read_bytes(), _is_dicom(file))
    except InputError:
        raise
    except Exception as error:
        raise UnusableImage("" if isinstance(file, bytes) else file.name, _sentence(error)) from error


def _is_dicom(path: Path) -> bool:
    return path.suffix.lower() in DICOM_SUFFIXES


def _sentence(error: Exception) -> str:
    """What `fault` says of an image that could not be decoded."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    if isinstance(error, _UnusableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "the image is in no known format; replace the file or drop the row"
    if isinstance(error, pillow.DecompressionBombError):
        return f"the image is too large ({error}); if the file can be trusted, set {LIMIT_VARIABLE} to its pixels"
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return f"the image cannot be decoded ({why}); replace the file or drop the row"


def _decode(data: bytes, dicom: bool) -> Image:
    """The image in mode L or RGB, upright; raises whatever its decoder raises."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if not data:
        raise _UnusableError("the image is in no known format: it has 0 bytes; replace the file or drop the row")
    if dicom:
        return pillow.fromarray(_dicom(data))
    with open_image(data) as opened:
        image = ImageOps.exif_transpose(opened)
        if is_deep(image):
            return pillow.fromarray(_eight_bits(np.asarray(image, dtype=np.float64)))
        image.info.pop("transparency", None)  # RGB has none, and Pillow would warn of every file
        return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def _eight_bits(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Scale [low, high], by default the values' own range, to 0 .. 255, cut to whole numbers."""
    if not np.isfinite(values).all():
        raise _UnusableError("the image holds pixels that are no numbers (NaN or infinite); replace it or drop the row")
    low = float(values.min() if low is None else low)
    high = float(values.max() if high is None else high)
    return np.clip((values - low) * 255 / ((high - low) or 1), 0, 255).astype(np.uint8)


def _dicom(data: bytes) -> np.ndarray:
    """The pixels of a DICOM file, uint8 H x W or H x W x 3, as a viewer shows them (DICOM PS3.3, C.7.6.3 and C.11)."""
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise InputError(f"DICOM files are read with pydicom: pip install 'mmedpo[dicom]' ({error}).") from None
    from PIL import Image as pillow

    try:
        return _shown(dcmread(io.BytesIO(data)))
    except (InputError, _UnusableError, pillow.DecompressionBombError):
        raise
    except InvalidDicomError:
        raise _UnusableError("the file is named as DICOM but is not; replace the file or drop the row") from None
    except Exception as error:  # its text is left out, since pydicom's errors quote the header, and so the patient
        kind = type(error).__name__
        raise _UnusableError(f"the DICOM file cannot be decoded ({kind}); export it anew or drop the row") from None


def _shown(header: Any) -> np.ndarray:
    """The picture of a pydicom dataset."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder

    if not header.get("Rows") or not header.get("Columns"):
        raise _UnusableError("the DICOM file holds no image; drop the row")
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise _UnusableError(f"the DICOM file holds {frames} frames; export the one that the row is about")
    _refuse_bombs(header.Rows * header.Columns)
    syntax = header.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        how = "pip install 'pylibjpeg[all]' or export it uncompressed"
        raise _UnusableError(f"no installed package decodes the DICOM file's {syntax.name}; {how}")
    values = header.pixel_array
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, header)
    if values.ndim == 3:
        return (values[..., :3] >> 8 * (values.itemsize - 1)).astype(np.uint8)
    grey = _windowed(apply_modality_lut(values, header), header)
    return 255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey


def _windowed(values: np.ndarray, header: Any) -> np.ndarray:
    """Grey values through the header's VOI table, else its first window, else by their own range; uint8."""
    from pydicom.pixels import apply_voi, apply_windowing

    if header.get("VOILUTSequence"):
        depth = header.VOILUTSequence[0].LUTDescriptor[2]
        return _eight_bits(apply_voi(np.rint(values).astype(np.int64), header), 0, 2**depth - 1)
    if header.get("WindowCenter") is None or header.get("WindowWidth") is None:
        return _eight_bits(values)
    with np.errstate(over="ignore"):  # a sigmoid's ends
        black, white = apply_windowing(np.array([-1e30, 1e30]), header)
    return _eight_bits(apply_windowing(values, header), black, white)


def _refuse_bombs(count: int) -> None:
    """Pillow's own limit, for images that it does not open."""
    from PIL import Image as pillow

    _set_limit()
    most = 2 * (pillow.MAX_IMAGE_PIXELS or math.inf)
    if count > most:
        raise pillow.DecompressionBombError(f"{count} pixels exceed the limit of {most}")
