"""One reader for all images: the same RGB pixels are stored, noised, trained on, shown and evaluated.

`open_rgb` reads a file, a dataset's image or an image in memory. `image_modes` converts modes, `dicom` reads DICOM.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.data import dicom, image_headers, image_modes
from mmedpo.data.image_modes import LIMIT_VARIABLE, WIDE_PIXEL, UnusableError, is_deep, open_image, refuse_bombs
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LIMIT_VARIABLE", "is_deep", "open_image"]
STORED_LEVEL = 4  # of zlib, for PNG files of datasets: a third of the time of its default 6, 1 % smaller to 3 % larger
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", *dicom.SUFFIXES)

Source = (
    Path | str | bytes | Mapping[str, Any] | Any
)  # a file, its bytes, a dataset's {"bytes", "path"}, or an image of Pillow


class Stored(dict[str, Any]):
    """An image as a dataset stores it, {"bytes", "path"}; `is_sound` once it was decoded or encoded here."""

    is_sound = False


class UnusableImage(InputError):
    """Unusable image; `sentence` is that of its fault."""

    def __init__(self, name: str, sentence: str) -> None:
        super().__init__(f"{name}: {sentence}." if name else f"{sentence}.")
        self.sentence = sentence


def open_rgb(image: Source, allow_flat: bool = True) -> Image:
    """Return an image as RGB, upright, transparency on black (`image_modes.plain`); DICOM through its own window.

    Args:
        image: a file, its bytes, an undecoded image of a dataset ({"bytes", "path"}), or an image of Pillow. A copy
            of the latter has lost further pages, and that a 16-bit TIFF was WhiteIsZero.
        allow_flat: accept an image of one colour, such as an empty mask; as a picture it holds no information.

    Raises:
        UnusableImage: the image cannot be used, with the sentence of `fault`, or is flat.
        InputError: pydicom is missing, or the limit variable is no number.
    """
    opened = _open(image)
    picture = opened if opened.mode == "RGB" else opened.convert("RGB")
    if not allow_flat and all(low == high for low, high in picture.getextrema()):  # type: ignore[misc]
        sentence = "the image has one colour everywhere; replace the file or drop the row"
        raise UnusableImage(image.name if isinstance(image, Path) else "", sentence)
    return picture


def pixels(image: Source) -> np.ndarray:
    """Return the pixels of `open_rgb`: uint8 H x W without colour, else H x W x 3.

    Raises:
        UnusableImage, InputError: as `open_rgb`.
    """
    values = np.asarray(_open(image))
    if isinstance(image, Stored):
        image.is_sound = True
    if values.ndim == 3 and all((values[..., 0] == values[..., channel]).all() for channel in (1, 2)):
        return values[..., 0]
    return values


def digest(image: Image) -> str:
    """Return the SHA-256 of an image's size and RGB pixels; the file format does not matter."""
    picture = image if image.mode == "RGB" else open_rgb(image)
    return hashlib.sha256(f"{picture.width}x{picture.height}".encode() + picture.tobytes()).hexdigest()


def file_digest(image: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a dataset's undecoded image; equal pixels in another file have another one."""
    return hashlib.sha256(_file(image)).hexdigest()


def size(image: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Return width and height in pixels of a dataset's image, upright, from its header; None if it is unusable.

    Raises:
        InputError: the limit variable is no number.
    """
    if image is None:
        return None
    try:
        data = _file(image)
        if dicom.is_dicom(data):
            return _open(data).size
        with open_image(data) as opened:
            return image_modes.upright_size(opened)
    except UnusableImage:
        return None
    except InputError:
        raise
    except Exception:  # decoders raise many kinds on damaged files
        return None


def fault(image: Source) -> str | None:
    """Return why an image cannot be used, or None if it decodes completely.

    Raises:
        InputError: pydicom is missing, or the limit variable is no number.
    """
    try:
        _open(image)
    except UnusableImage as error:
        return error.sentence
    return None


def embedded(path: Path) -> Stored:
    """Return an image file as a dataset stores it; any reader decodes the pixels of `open_rgb`.

    PNG and JPEG files of 8-bit grey or RGB keep their bytes without metadata (`image_headers.without`). All others
    become a PNG.

    Raises:
        UnusableImage, InputError: as `open_rgb`.
    """
    with _decoder_errors(path):
        data = path.read_bytes()
        if not _is_dicom(path, data):
            with open_image(data) as opened:
                is_plain = image_modes.is_plain(opened, image_headers.may_be_turned(data))
            if is_plain and (stripped := image_headers.without(data)):
                return Stored(bytes=stripped, path=path.name)
    return png(pixels(path), path.stem, STORED_LEVEL)


def is_embedded(data: bytes) -> bool:
    """Return True for a file as `embedded` stores it: no metadata, and any reader decodes the pixels of `open_rgb`.

    Raises:
        UnusableImage, InputError: as `open_rgb`.
    """
    if dicom.is_dicom(data):
        return False
    with _decoder_errors(data), open_image(data) as opened:
        return image_modes.is_plain(opened) and image_headers.without(data) == data


def png(pixels: np.ndarray, stem: str, level: int = 6) -> Stored:
    """Return uint8 H x W or H x W x 3 as a PNG file in memory, compressed at a level of zlib.

    Equal pixels give equal bytes with the same Pillow; another version may compress with another zlib.
    """
    from PIL import Image as pillow

    buffer = io.BytesIO()
    pillow.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    made = Stored(bytes=buffer.getvalue(), path=f"{stem}.png")
    made.is_sound = True
    return made


def _file(image: Mapping[str, Any]) -> bytes:
    data: bytes = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return data


def _open(image: Source) -> Image:
    """Return the image in mode L or RGB, upright."""
    with _decoder_errors(image):
        return _decode(image)


@contextmanager
def _decoder_errors(image: Source) -> Iterator[None]:
    """Raise any error of a decoder as UnusableImage; decoders raise many kinds on damaged files."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise UnusableImage(image.name if isinstance(image, Path) else "", _sentence(error)) from error


def _is_dicom(image: bytes | Path, data: bytes) -> bool:
    return dicom.is_dicom(data) or (isinstance(image, Path) and image.suffix.lower() in dicom.SUFFIXES)


def _sentence(error: Exception) -> str:
    """Return the sentence of a fault for an image that could not be decoded."""
    from PIL import Image as pillow
    from PIL import UnidentifiedImageError

    if isinstance(error, UnusableError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "the image has an unknown format; replace the file or drop the row"
    if isinstance(error, pillow.DecompressionBombError):
        return f"the image is too large ({error}); if you trust the file, set {LIMIT_VARIABLE} to its number of pixels"
    why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return f"the image cannot be decoded ({why}); replace the file or drop the row"


def _decode(image: Source) -> Image:
    from PIL import Image as pillow

    if isinstance(image, pillow.Image):
        is_ready = type(image) is pillow.Image and image.mode in ("L", "RGB") and not image.info
        return image if is_ready else image_modes.plain(image)
    if isinstance(image, Mapping):
        image = image["path"] if image["bytes"] is None else image["bytes"]
    if image is None:
        raise UnusableError("the image is missing; give one or drop the row")
    image = image if isinstance(image, bytes) else Path(image)
    data = image if isinstance(image, bytes) else image.read_bytes()
    if not data:
        raise UnusableError("the image has an unknown format: it has 0 bytes; replace the file or drop the row")
    if _is_dicom(image, data):
        return pillow.fromarray(dicom.read(data))
    with open_image(data) as opened:
        return image_modes.plain(opened)


def read_heat(file: Path) -> np.ndarray:
    """Return a heat map, float64 h x w, 0 (cold) or more: a picture in [0, 1], or the values of a `.npy` array.

    Raises:
        InputError: the file cannot be read, or its array is not two-dimensional, finite and non-negative.
    """
    if file.suffix.lower() != ".npy":
        return np.asarray(open_rgb(file).convert("L")) / 255
    try:
        with file.open("rb") as opened:
            refuse_bombs(file.stat().st_size, 1)
            heat = np.lib.format.read_array(opened, allow_pickle=False)
        refuse_bombs(heat.size, WIDE_PIXEL)
    except Exception as error:  # NumPy raises many kinds on damaged files
        raise InputError(f"{file.name}: the array cannot be read ({error}); save it again with numpy.save.") from None
    if heat.ndim != 2 or not heat.size or heat.dtype.kind not in "buif":
        actual = f"this is {heat.dtype} of shape {heat.shape}"
        raise InputError(f"{file.name}: a heat map has 2 dimensions of real numbers; {actual}.")
    if not 0 <= heat.min() <= heat.max() < math.inf:
        raise InputError(f"{file.name}: a heat map has no NaN, no infinity and nothing below 0; correct it.")
    return heat.astype(np.float64)
