"""Conversion of an image in any of Pillow's modes to 8-bit grey or RGB, the same for every step."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

LIMIT_VARIABLE = "MMEDPO_MAX_IMAGE_PIXELS"
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
SUBFILE_TYPE, OLD_SUBFILE_TYPE, PHOTOMETRIC, DESCRIPTION, COLOUR_MAP = 254, 255, 262, 270, 320  # TIFF tags
# MPO opens as JPEG. Other formats of Pillow run programs (EPS: Ghostscript) or decode to another size than declared.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
PAGES = 1000  # most pages of a TIFF; Pillow compares each with all before
COLOUR_PIXEL, WIDE_PIXEL = 4, 8  # bytes of a pixel in memory: colour in Pillow; more than 8 bits, or float64 grey
DECODED = "decoded"
GREY_ALPHA = "LA;16B"  # Pillow's packing of PNG grey with alpha of 16 bits, which it opens as RGBA
OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}  # last letter of "RGB;16B"
_filters = threading.Lock()
IMAGEJ_STACK = re.compile(r"\AImageJ=.*?^images=(\d+)", re.DOTALL | re.MULTILINE)


class UnusableError(Exception):
    """Unusable image; the message is the sentence of a fault."""


def open_image(data: bytes) -> Image:
    """Open an image file without decoding it, within a limit of bytes in memory (`most_bytes`).

    The environment variable `LIMIT_VARIABLE` sets Pillow's `Image.MAX_IMAGE_PIXELS`, whose warnings are silenced.

    Raises:
        InputError: the variable is no positive number.
        DecompressionBombError: the decoded image would exceed the limit.
    """
    from PIL import Image as pillow

    _set_limit()
    with ignoring_warnings(pillow.DecompressionBombWarning):
        opened = pillow.open(io.BytesIO(data), formats=FORMATS)
    wide = is_deep(opened) or any(";16" in str(tile) for tile in getattr(opened, "tile", None) or [])
    refuse_bombs(opened.width * opened.height, WIDE_PIXEL if wide else COLOUR_PIXEL)
    return opened


@contextmanager
def ignoring_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings, in one thread at a time: their filters belong to the whole process."""
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def refuse_bombs(count: int, each: int) -> None:
    """Raise DecompressionBombError if `count` pixels of `each` bytes exceed `most_bytes`."""
    from PIL import Image as pillow

    if count * each > (most := most_bytes()):
        raise pillow.DecompressionBombError(f"{count} pixels of {each} bytes exceed the limit of {most} bytes")


def most_bytes() -> float:
    """Return the most bytes of an image in memory: Pillow's limit, twice `Image.MAX_IMAGE_PIXELS`, in colour."""
    from PIL import Image as pillow

    _set_limit()
    return 2 * COLOUR_PIXEL * (pillow.MAX_IMAGE_PIXELS or math.inf)


def _set_limit() -> None:
    from PIL import Image as pillow

    if limit := os.environ.get(LIMIT_VARIABLE):
        if not limit.isdecimal() or int(limit) == 0:
            raise InputError(f"{LIMIT_VARIABLE} is {limit!r}; give a number of pixels, such as 400000000.")
        pillow.MAX_IMAGE_PIXELS = int(limit)


def upright_size(opened: Image) -> tuple[int, int]:
    """Return width and height in pixels of `plain`, from the header alone.

    Raises:
        UnusableError: several frames or pages.
    """
    _select_page(opened)
    if opened.format == "TIFF":  # Pillow gives the upright size
        return opened.size
    # Pillow decodes a whole PNG to look for missing EXIF.
    known = not {"exif", "xmp"}.isdisjoint(opened.info)
    turned = known and opened.getexif().get(ORIENTATION, 1) >= 5
    return (opened.height, opened.width) if turned else (opened.width, opened.height)


def plain(opened: Image) -> Image:
    """Return an opened image in mode L or RGB, upright by its EXIF orientation, without `info`.

    | opened as | becomes |
    |---|---|
    | 1, L | L |
    | P, RGB, CMYK (Adobe's inverted JPEG too), YCbCr, ... | RGB; a TIFF's palette of 8-bit entries is read as 8-bit |
    | with transparency (LA, PA, RGBA, premultiplied La, RGBa, or a colour key: PNG's tRNS, GIF) | laid on black: each \
channel times alpha, rounded to whole numbers; medical images have dark backgrounds |
    | more than 8 bits of grey (I;16, I, F) | L, scaled by its own range; a colour key is black and not in the range |
    | WhiteIsZero TIFF of any depth | inverted first |
    | 16 bits of grey with alpha | grey scaled by its own range, then laid on black |
    | 16 bits a channel of RGB | RGB and alpha, the upper 8 of the bits in use (often 12 of 16); the upper 8 of 16 for \
an image that was decoded before |

    Raises:
        UnusableError: several frames or pages, transparent everywhere, or pixels that are no numbers.
    """
    from PIL import ImageOps

    _select_page(opened)
    tags, packing = _tags(opened), _packing(opened)
    image = _picture(ImageOps.exif_transpose(_loaded(opened)), tags, packing)
    image.info = {}
    return image


def _loaded(opened: Any) -> Image:
    """Return the decoded image; 16 bits a channel are reduced to the upper 8 of the bits in use."""
    from PIL import Image as pillow

    is_grey, deep = _packing(opened) == GREY_ALPHA, _lower_bytes(opened)
    if opened.format == "TIFF" and getattr(opened, "filename", ""):  # Pillow scrambles a rotated memory map
        name, opened.filename = opened.filename, ""
        opened.load()
        opened.filename = name
    if deep is None:
        return opened
    if is_grey:
        high, low, alpha, alpha_low = np.moveaxis(np.asarray(deep, dtype=np.uint16), -1, 0)
        grey, alpha = high << 8 | low, alpha << 8 | alpha_low
        layers = [eight_bits(grey, padding=alpha == 0 if alpha.any() else None), upper_bits(alpha)]
    else:
        values = np.asarray(opened).astype(np.uint16) << 8 | np.asarray(deep)
        layers = [
            *np.moveaxis(upper_bits(values[..., :3]), -1, 0),
            *map(upper_bits, np.moveaxis(values[..., 3:], -1, 0)),
        ]
    made = pillow.merge("LA" if is_grey else opened.mode, [pillow.fromarray(layer) for layer in layers])
    made.info = dict(opened.info)
    return made


def _lower_bytes(opened: Any) -> Image | None:
    """Return the lower bytes of an image of 16 bits a channel, of which Pillow decodes only the upper ones.

    Grey with alpha gives all four bytes. None for other images, and for decoded ones.
    """
    tiles = getattr(opened, "tile", None) or []
    packings = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in tiles if tile.args]
    if not packings or not re.fullmatch(r"(LA|RGBA?|RGBX);16[BLN]", str(packings[0])):
        return None
    place = opened.fp.tell()
    opened.fp.seek(0)
    twin: Any = open_image(opened.fp.read())
    opened.fp.seek(place)
    twin.seek(opened.tell())
    # Two-byte grey and alpha are read as RGBA's four bytes; for RGB the other byte order gives the lower bytes.
    other = "RGBA" if packings[0] == GREY_ALPHA else packings[0][:-1] + OTHER_BYTE[packings[0][-1]]
    twin.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:])) for tile in twin.tile
    ]
    twin.load()
    return twin


def upper_bits(values: np.ndarray) -> np.ndarray:
    """Return the upper 8 of the bits in use of unsigned values, uint8; files may use fewer bits than they store."""
    return (values >> max(int(values.max(initial=0)).bit_length() - 8, 0)).astype(np.uint8)


def _picture(image: Image, tags: Any, packing: str) -> Image:
    from PIL import Image as pillow

    if is_deep(image):
        values = np.asarray(image, dtype=np.float64)
        key = image.info.get("transparency")
        padding = values == key if isinstance(key, int) else None
        return pillow.fromarray(eight_bits(-values if tags.get(PHOTOMETRIC) == 0 else values, padding=padding))
    if image.mode in ("P", "PA") and max(entries := tags.get(COLOUR_MAP, (256,))) < 256:
        image.putpalette(bytes(np.reshape(entries, (3, -1)).T.ravel().tolist()))
    if image.has_transparency_data:
        return _on_black(image, packing)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def is_plain(opened: Image, may_be_turned: bool = True) -> bool:
    """Return True if any reader decodes the file to the pixels of `plain`.

    Args:
        may_be_turned: look for an orientation, for which Pillow decodes a PNG.

    Raises:
        UnusableError: several frames or pages.
    """
    _select_page(opened)
    if opened.mode not in ("L", "RGB") or opened.has_transparency_data or "16" in _packing(opened):
        return False
    return not may_be_turned or opened.getexif().get(ORIENTATION, 1) == 1


def is_deep(image: Image) -> bool:
    """Return True for more than 8 bits of grey (16-bit and 32-bit integers, floats)."""
    return image.mode[0] in "IF"


def eight_bits(
    values: np.ndarray, low: float | None = None, high: float | None = None, padding: np.ndarray | None = None
) -> np.ndarray:
    """Scale [low, high], by default the range of the values, to 0 .. 255; return uint8, truncated.

    Args:
        padding: bool, of the shape of `values`; these pixels become black and are not in the range.

    Raises:
        UnusableError: NaN or infinite values outside the padding.
    """
    shown = values if padding is None else values[~padding]
    if not np.isfinite(shown).all():
        raise UnusableError("the image has NaN or infinite pixels; replace it or drop the row")
    if not shown.size:
        return np.zeros(values.shape, np.uint8)
    low = float(shown.min() if low is None else low)
    high = float(shown.max() if high is None else high)
    values = values if padding is None else np.where(padding, low, values)
    scaled = np.clip((values - low) * 255 / ((high - low) or 1e-12), 0, 255).astype(np.uint8)
    return scaled if padding is None else np.where(padding, np.uint8(0), scaled)


def _select_page(opened: Image) -> None:
    """Select the only page, or raise UnusableError for several frames or pages.

    A TIFF's reduced copies of a page (thumbnails, pyramids) do not count, nor pictures after the first of an MPO file
    (a phone's depth map or preview).
    """
    if opened.format == "TIFF":
        with suppress(EOFError):  # `n_frames` would read all pages without a limit
            for number in range(PAGES + 1):
                opened.seek(number)
            raise UnusableError(f"the image has more than {PAGES} pages; export the one that the row is about")
    count, page = getattr(opened, "n_frames", 1), 0
    if opened.format == "MPO":
        count = 1
    elif opened.format == "TIFF":
        pages = [number for number in range(count) if not _is_reduced(opened, number)] or [0]
        count, page = len(pages), pages[0]
        opened.seek(page)
        stack = IMAGEJ_STACK.match(str(_tags(opened).get(DESCRIPTION, "")))
        count = max(count, int(stack[1]) if stack else 1)  # ImageJ stores a stack as one page
    if count > 1:
        raise UnusableError(f"the image has {count} frames or pages; export the one that the row is about")


def _is_reduced(opened: Image, number: int) -> bool:
    opened.seek(number)
    tags = _tags(opened)
    return bool(tags.get(SUBFILE_TYPE, 0) & 1 or tags.get(OLD_SUBFILE_TYPE) == 2)


def _tags(opened: Image) -> Any:
    return getattr(opened, "tag_v2", {})


def _packing(opened: Image) -> str:
    """Return the packing of a PNG file's pixels in Pillow's terms ("L;4", "RGB;16B", ...), `DECODED` after decoding."""
    if opened.format != "PNG":
        return ""
    tiles = getattr(opened, "tile", None)
    return str(tiles[0].args) if tiles else DECODED


def _on_black(image: Image, packing: str) -> Image:
    from PIL import Image as pillow

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.mode in ("La", "RGBa"):  # premultiplied
        return pillow.merge(mode, [image.getchannel(band) for band in mode])
    if "transparency" in image.info and packing in ("L;2", "L;4"):  # Pillow scales the pixels, not the key
        image.info["transparency"] *= 255 // (2 ** int(packing[-1]) - 1)
    elif packing == DECODED and image.mode == "L" and isinstance(key := image.info.get("transparency"), int):
        # Pixels of 2 or 4 bits were scaled on decoding; a key that fits their bits was not.
        values = np.unique(np.asarray(image))
        step = next((step for step in (85, 17) if not (values % step).any() and key <= 255 // step), 1)
        image.info["transparency"] = key * step
    elif "transparency" in image.info and packing.startswith("RGB;16"):  # the key has 16 bits, the pixels 8
        raise UnusableError("the image has 16 bits a channel and a transparent colour; save it without transparency")
    layered = image.convert("LA" if mode == "L" else "RGBA")
    alpha = layered.getchannel("A")
    colours = layered.convert(mode)
    if alpha.getextrema()[1] == 0 and colours.getcolors(1) is None:  # unlike an empty mask, it hides a picture
        raise UnusableError("the image is transparent everywhere; save it without its alpha channel")
    picture = pillow.new(mode, image.size)
    picture.paste(colours, mask=alpha)
    return picture
