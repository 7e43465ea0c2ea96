"""What image files carry beside their pixels is left out, and the pixels stay: names written here into every place."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from mmedpo.data import image_headers
from mmedpo.data.images import embedded, open_rgb

NAME = b"INVENTED^PATIENT"
COLOURS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E], tags[0x0112] = NAME.decode(), orientation
    return tags


def png(pixels: np.ndarray = COLOURS, **options: object) -> bytes:
    texts = PngInfo()
    texts.add_text("Patient", NAME.decode())
    texts.add_itxt("Also", NAME.decode(), zip=False)
    texts.add_text("Packed", NAME.decode() * 9, zip=True)
    return saved(pixels, "PNG", pnginfo=texts, exif=exif(), **options)


def jpeg(pixels: np.ndarray = COLOURS, **options: object) -> bytes:
    xmp = b"<x:xmpmeta>" + NAME + b"</x:xmpmeta>"
    return saved(pixels, "JPEG", **{"exif": exif(), "comment": NAME, "xmp": xmp, "icc_profile": NAME * 9, **options})


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def thumbnail(data: bytes) -> bytes:
    """A JPEG file whose JFIF header holds a thumbnail of 3 x 2 pixels, and an Adobe segment that says more."""
    assert data[2:4] == b"\xff\xe0"
    rest = data[4 + struct.unpack(">H", data[4:6])[0] :]
    header = b"JFIF\0\x01\x02\x00\x00\x48\x00\x48\x03\x02" + NAME + b"xx"
    return data[:2] + struct.pack(">BBH", 0xFF, 0xE0, len(header) + 2) + header + rest


def hidden(data: bytes, marker: int) -> bytes:
    """A JPEG file with one segment more, right behind its beginning."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(NAME) + 2) + NAME + data[2:]


def packed(data: bytes, tail: Callable[[bytes], bytes]) -> bytes:
    """A PNG file of one IDAT chunk whose content `tail` has changed."""
    at = data.index(b"IDAT") - 4
    length = struct.unpack(">I", data[at : at + 4])[0]
    body = b"IDAT" + tail(data[at + 8 : at + 8 + length])
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:at] + chunk + data[at + length + 12 :]


def interlaced(pixels: np.ndarray) -> bytes:
    """A grey PNG file of seven passes, written by hand: no library here writes one."""
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    lines = [b"\0" + line.tobytes() for x, y, right, down in steps for line in pixels[y::down, x::right] if line.size]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0, 0, 0, 1)),
        (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""),
    ]  # fmt: skip
    return image_headers.PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


FILES: dict[str, Callable[[], bytes]] = {
    "png": png,
    "grey png": lambda: png(GREY),
    "palette png": lambda: png(mode="P", transparency=3),
    "png with a tail": lambda: png() + NAME,
    "jpeg": jpeg,
    "grey jpeg": lambda: jpeg(GREY),
    "progressive jpeg": lambda: jpeg(progressive=True),
    "jpeg with restarts": lambda: jpeg(restart_marker_blocks=1),
    "cmyk jpeg": lambda: jpeg(mode="CMYK"),
    "rgb jpeg": lambda: jpeg(keep_rgb=True),
    "jpeg with a thumbnail": lambda: thumbnail(saved(COLOURS, "JPEG")),
    "jpeg with a tail": lambda: jpeg() + NAME,
    "lines in a jpeg": lambda: hidden(jpeg(), 0xDC),
    "a tail behind the rows of a png": lambda: packed(png(), lambda rows: rows + NAME),
    "tiff": lambda: saved(COLOURS, "TIFF", description=NAME.decode()),
    "webp": lambda: saved(COLOURS, "WEBP", exif=exif(), lossless=True),
    "bmp": lambda: saved(COLOURS, "BMP") + NAME,
}


@pytest.mark.parametrize("kind", FILES)
def test_no_name_stays_and_every_pixel_does(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind.split()[-1] if kind.split()[-1] in ('png', 'jpeg') else 'png'}"
    file.write_bytes(FILES[kind]())
    assert NAME in file.read_bytes()
    held = embedded(file)["bytes"]
    assert NAME not in held
    with Image.open(io.BytesIO(held)) as image:
        image.load()
        assert not image.getexif() and not {"comment", "icc_profile", "exif", "xmp", "Packed"} & image.info.keys()
    assert np.array_equal(np.asarray(open_rgb(held)), np.asarray(open_rgb(file)))


def turned_behind_pixels(pixels: np.ndarray, _: str, exif: Image.Exif) -> bytes:
    """A PNG whose EXIF follows its pixels, as the format allows."""
    held, plain = exif.tobytes().removeprefix(b"Exif\0\0"), saved(pixels, "PNG")
    chunk = struct.pack(">I", len(held)) + b"eXIf" + held + struct.pack(">I", zlib.crc32(b"eXIf" + held))
    return plain[:-12] + chunk + plain[-12:]


@pytest.mark.parametrize(("make", "kind"), [(saved, "PNG"), (saved, "JPEG"), (turned_behind_pixels, "PNG")])
@pytest.mark.parametrize("orientation", [3, 6])
def test_what_only_its_header_turns_upright_is_written_upright(
    make: Callable[..., bytes], kind: str, orientation: int, tmp_path: Path
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(make(COLOURS, kind, exif=exif(orientation)))
    image = embedded(file)
    assert image["path"] == "a.png" and NAME not in image["bytes"]
    with Image.open(file) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    assert np.array_equal(np.asarray(open_rgb(image["bytes"])), upright)
    assert (upright.shape[:2] == COLOURS.shape[1::-1]) == (orientation == 6)


def test_a_file_of_pixels_alone_stays_byte_by_byte() -> None:
    for data in (saved(COLOURS, "PNG"), saved(GREY, "PNG"), saved(COLOURS, "JPEG"), saved(COLOURS, "JPEG", "CMYK")):
        assert image_headers.without(data) == data
    assert image_headers.without(image_headers.without(jpeg()) or b"") == image_headers.without(jpeg())


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (5, 3), (24, 40)])
def test_rows_of_an_interlaced_file_are_known(size: tuple[int, int]) -> None:
    data = interlaced(GREY[: size[0], : size[1]])
    assert np.array_equal(np.asarray(open_rgb(data))[..., 0], GREY[: size[0], : size[1]])
    assert image_headers.without(data) == data
    assert image_headers.without(packed(data, lambda rows: rows + NAME)) is None


def test_a_text_packed_behind_the_rows_does_not_stay(tmp_path: Path) -> None:
    """Compressed with them: it cannot be seen in the file."""
    file = tmp_path / "a.png"
    file.write_bytes(packed(saved(GREY, "PNG"), lambda rows: zlib.compress(zlib.decompress(rows) + NAME)))
    assert image_headers.without(file.read_bytes()) is None
    held = embedded(file)["bytes"]
    assert NAME not in zlib.decompressobj().decompress(held[held.index(b"IDAT") + 4 :])
    assert np.array_equal(np.asarray(open_rgb(held)), np.asarray(open_rgb(file)))


@pytest.mark.parametrize("make", [png, jpeg])
def test_a_file_that_is_cut_off_anywhere_is_not_guessed(make: Callable[[], bytes]) -> None:
    data = make()
    assert all(image_headers.without(data[:length]) is None for length in range(len(data) - 1))


def test_other_formats_are_left_to_others() -> None:
    assert image_headers.without(saved(COLOURS, "TIFF")) is None and image_headers.without(b"") is None


def test_a_chunk_keeps_its_checksum() -> None:
    data = image_headers.without(png()) or b""
    length = struct.unpack(">I", data[8:12])[0]
    assert struct.unpack(">I", data[16 + length : 20 + length])[0] == zlib.crc32(data[12 : 16 + length])
