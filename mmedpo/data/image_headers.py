"""Removal of metadata from PNG and JPEG files: EXIF, XMP, comments, a scanner's notes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

PNG = b"\x89PNG\r\n\x1a\n"
PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"sBIT"}  # PNG chunks that stay
TEXTS = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # PNG chunks that may hold EXIF or XMP
JPEG = b"\xff\xd8"
SCAN, END = 0xDA, 0xD9
# JPEG segments that stay: frame headers, Huffman or arithmetic tables, end, scans, quantisation, restart intervals.
STORED = {*range(0xC0, 0xD0), END, SCAN, 0xDB, 0xDD}
# Application segments about colours, with their length without a thumbnail; all others are metadata.
COLOURS = {0xE0: (b"JFIF\0", 14), 0xEE: (b"Adobe", 12)}
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by PNG colour type
# Passes of an interlaced PNG: first column and row, and the steps to the next ones.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def without(data: bytes) -> bytes | None:
    """Return a PNG or JPEG file without metadata and without data after its end; None for other or broken files.

    The remaining bytes, and so the pixels, are unchanged. EXIF orientation is removed too: pass upright images only.
    """
    try:
        if data.startswith(PNG):
            kept = [(name, chunk) for name, chunk in _chunks(data) if name in PIXELS]
            _check_rows(kept)
            return PNG + b"".join(chunk for _, chunk in kept)
        if data.startswith(JPEG):
            return JPEG + b"".join(_plain(marker, part) for marker, part in _segments(data))
    except (struct.error, zlib.error, ValueError, KeyError):
        pass
    return None


def may_be_turned(data: bytes) -> bool:
    """Return False for a PNG file without a chunk that could hold an orientation, wherever in the file it is."""
    try:
        return not data.startswith(PNG) or any(name in TEXTS for name, _ in _chunks(data))
    except (struct.error, ValueError):
        return True


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, bytes) of each chunk of a PNG file, up to the first IEND."""
    at, name = len(PNG), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        if at + length + 12 > len(data):
            raise ValueError("cut off")
        yield name, data[at : at + length + 12]
        at += length + 12


def _check_rows(chunks: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise ValueError unless a PNG file's compressed data are exactly its rows."""
    width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][8:21])
    size = 0
    for x, y, right, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = max(0, -(-(width - x) // right)), max(0, -(-(height - y) // down))
        size += rows * (1 + -(-columns * depth * CHANNELS[colours] // 8)) if columns else 0
    stream = zlib.decompressobj()
    found = stream.decompress(b"".join(chunk[8:-4] for name, chunk in chunks if name == b"IDAT"), size + 1)
    if len(found) != size or not stream.eof or stream.unused_data:
        raise ValueError("more than the rows")


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, bytes) of each segment of a JPEG file, scans with their data, up to the first end of an image."""
    at, marker = len(JPEG), 0
    while marker != END:
        fill, marker = struct.unpack_from(">BB", data, at)
        if fill != 0xFF:
            raise ValueError("no marker")
        if marker == 0xFF:  # padding
            at += 1
            continue
        end = at + 2 if marker == END else at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        end = _scan_end(data, end) if marker == SCAN else end
        yield marker, data[at:end]
        at = end


def _plain(marker: int, segment: bytes) -> bytes:
    """Return a JPEG segment without metadata, empty where nothing is left."""
    if marker in STORED:
        return segment
    name, length = COLOURS.get(marker, (b"", 0))
    if not length or not segment[4:].startswith(name) or len(segment) < 4 + length:
        return b""
    kept = segment[4 : 4 + length]
    if marker == 0xE0:
        kept = kept[:-2] + b"\0\0"  # a thumbnail of no size
    return struct.pack(">BBH", 0xFF, marker, length + 2) + kept


def _scan_end(data: bytes, at: int) -> int:
    """Return the end of a scan's data: the first marker that is neither a stuffed byte nor a restart."""
    while (at := data.index(b"\xff", at)) + 1 < len(data):
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    raise ValueError("cut off")
