"""Images of pages as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data import images
from mmedpo.errors import InputError

PICTURE_SIDE = 512  # pixels; larger images are scaled down
SMALL_SIDE = 128  # pixels; smaller images are enlarged without smoothing


def picture(
    file: Path | bytes, boxes: Sequence[Mapping[str, Any]] = (), side: int = PICTURE_SIDE
) -> dict[str, Any] | None:
    """Return an image as a data URI of at most `side` pixels a side, with its boxes; None if it cannot be decoded."""
    try:
        picture = images.open_rgb(file)
    except InputError:
        return None
    width, height = picture.size
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    small = max(width, height) <= SMALL_SIDE
    picture.save(buffer, format="PNG" if small else "JPEG", quality=85)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"src": source, "width": width, "height": height, "small": small, "boxes": boxes}
