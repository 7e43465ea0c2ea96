"""Map image tokens of a prompt to regions of the image, for the families of docs/families.md.

An image becomes one run of tokens or several: tiles and usually a reduced copy of the whole image. Tokens of a tile are
in row order. Each family's processor resizes, crops or pads differently before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import Floats

if TYPE_CHECKING:
    from PIL.Image import Image

Edges = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Grid:
    """Grid of image tokens.

    Attributes:
        tokens: int64, rows x columns: index of each token among the image's tokens.
        edges: rectangle that the grid covers, in pixels from the top left; padding extends beyond the image.
    """

    tokens: np.ndarray
    edges: Edges


class _UnknownError(Exception):
    """Unexpected layout of image tokens; the message describes it."""


def count(config: Any, inputs: Mapping[str, Any]) -> int:
    """Return the number of image tokens in a prompt of one row."""
    token = getattr(config, "image_token_id", None)
    return 0 if token is None else int((inputs["input_ids"][0] == token).sum())


def grids(config: Any, processor: Any, inputs: Mapping[str, Any], image: Image) -> list[Grid]:
    """Return the grids of the image tokens of a prompt with one image.

    Every token is in one grid, except LLaVA-NeXT's tokens at the ends of lines, which show nothing.

    Args:
        config: configuration of the vision-language model.
        processor: processor of the model.
        inputs: output of `processor` for the prompt, one row.
        image: RGB image of the prompt.

    Raises:
        InputError: an unknown family, or an unexpected layout of the tokens.
    """
    find = FAMILIES.get(config.model_type)
    tokens = count(config, inputs)
    if find is None or not tokens:
        raise InputError(
            f"Model type {config.model_type!r}: the layout of its image tokens is unknown. Supported types are "
            f"{', '.join(FAMILIES)}."
        )
    try:
        return find(config, processor.image_processor, inputs, image, tokens)
    except _UnknownError as why:
        raise InputError(
            f"{type(processor).__name__}: {tokens} image tokens of an image of {image.width} x {image.height} pixels "
            f"do not have the layout of {config.model_type!r} models: {why}. Use the processor's published settings."
        ) from None


def spread(mass: Floats, grids: Sequence[Grid], width: int, height: int) -> Floats:
    """Return attention as a map over the image: each token's mass spread evenly over its region, summed over grids.

    Args:
        mass: weight of each image token.
        grids: grids of the tokens, as `grids` returns them.
        width: width of the image in pixels.
        height: height of the image in pixels.

    Returns:
        height x width, float64. The sum is the mass inside the image, without padding and ends of lines.
    """
    heat = np.zeros((height, width))
    for grid in grids:
        left, top, right, bottom = grid.edges
        rows, columns = grid.tokens.shape
        down = overlaps(np.linspace(top, bottom, rows + 1), height) * rows / (bottom - top)
        across = overlaps(np.linspace(left, right, columns + 1), width) * columns / (right - left)
        heat += down.T @ mass[grid.tokens] @ across
    return heat


def overlaps(edges: Floats, size: int) -> Floats:
    """Return the overlap, n x size, of the intervals between n + 1 edges with each pixel of a line of `size` pixels."""
    pixels = np.arange(size)
    return np.clip(np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels), 0, None)


def _square(first: int, tokens: int, edges: Edges) -> Grid:
    """Return a square grid of `tokens` tokens that starts at index `first`."""
    side = isqrt(tokens)
    if side * side != tokens:
        raise _UnknownError(f"{tokens} tokens do not form a square")
    return Grid(first + np.arange(tokens).reshape(side, side), edges)


def _whole(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """Gemma3, PaliGemma: the image resized to one square."""
    if (tiles := len(inputs["pixel_values"])) != 1:
        raise _UnknownError(f"the image became {tiles} crops (pan and scan?)")
    return [_square(0, tokens, (0, 0, *image.size))]


def _clip(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """LLaVA: the image optionally padded to a square, resized, optionally centre-cropped."""
    return [_square(0, tokens, _clip_edges(processor, *image.size))]


def _clip_edges(processor: Any, width: int, height: int) -> Edges:
    before_x = before_y = 0
    if getattr(processor, "do_pad", False):
        side = max(width, height)
        before_x, before_y = (side - width) // 2, (side - height) // 2
        width = height = side
    size, scaled = processor.size, (width, height)
    if size.shortest_edge and not size.longest_edge:
        short = min(width, height)
        scaled = (int(size.shortest_edge * width / short), int(size.shortest_edge * height / short))
    elif size.height and size.width:
        scaled = (size.width, size.height)
    else:
        raise _UnknownError(f"the image was scaled to {size}")
    crop = (processor.crop_size.width, processor.crop_size.height) if processor.do_center_crop else scaled
    first_x, first_y = ((whole - part) // 2 for whole, part in zip(scaled, crop, strict=True))
    by_x, by_y = width / scaled[0], height / scaled[1]
    return (
        first_x * by_x - before_x, first_y * by_y - before_y,
        (first_x + crop[0]) * by_x - before_x, (first_y + crop[1]) * by_y - before_y,
    )  # fmt: skip


def _any_resolution(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """LLaVA-NeXT: the image resized to a square, then on a padded canvas of tiles with a token at each line's end."""
    from transformers.image_processing_utils import get_patch_output_size
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    size = (image.height, image.width)
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
    columns_there = across * (side // patch)
    numbers = np.arange(down * (side // patch) * columns_there).reshape(1, -1, columns_there)
    kept = unpad_image(numbers, size)[0]  # the model drops the padding with the same function
    (rows, columns), (row, column) = kept.shape, divmod(int(kept[0, 0]), columns_there)
    canvas = (down * side, across * side)
    shown = get_patch_output_size(np.empty((*size, 1)), canvas, "channels_last")
    before = [(whole - part) // 2 for whole, part in zip(canvas, shown, strict=True)]
    top, bottom = ((at * patch - before[0]) * size[0] / shown[0] for at in (row, row + rows))
    left, right = ((at * patch - before[1]) * size[1] / shown[1] for at in (column, column + columns))
    base = (side // patch) ** 2
    if tokens != base + rows * (columns + 1):
        raise _UnknownError(f"{base} and {rows} lines of {columns} were expected")
    large = base + np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1]
    return [_square(0, base, (0, 0, *image.size)), Grid(large, (left, top, right, bottom))]


def _merged(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """Qwen-VL: the image resized to whole multiples of merged patches."""
    frames, *patches = inputs["image_grid_thw"][0].tolist()
    rows, columns = (side // processor.merge_size for side in patches)
    if frames != 1 or rows * columns != tokens:
        raise _UnknownError(f"{frames} frames of {rows} x {columns} were expected")
    return [Grid(np.arange(tokens).reshape(rows, columns), (0, 0, *image.size))]


def _tiles_then_whole(rows: int, columns: int, tiles: int, image: Image, tokens: int) -> list[Grid]:
    """Return the grids of rows x columns tiles followed by the whole image; only the latter without tiles."""
    if tiles != rows * columns + 1 or tokens % tiles:
        raise _UnknownError(f"{tiles} crops; {rows} x {columns} tiles and the whole image were expected")
    each = tokens // tiles
    wide, high = image.width / (columns or 1), image.height / (rows or 1)
    places = [(column * wide, row * high) for row in range(rows) for column in range(columns)]
    edges = [*((x, y, x + wide, y + high) for x, y in places), (0.0, 0.0, *image.size)]
    return [_square(number * each, each, edge) for number, edge in enumerate(edges)]


def _cropped_to_patches(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """InternVL: tiles of a canvas chosen by aspect ratio, then the whole image."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    columns = rows = 0
    if (tiles := len(inputs["pixel_values"])) > 1:
        tile, limits = processor.size, (processor.min_patches, processor.max_patches)
        columns, rows = get_optimal_tiled_canvas((image.height, image.width), (tile.height, tile.width), *limits)
    return _tiles_then_whole(rows, columns, tiles, image, tokens)


def _split(config: Any, processor: Any, inputs: Any, image: Image, tokens: int) -> list[Grid]:
    """Idefics3, SmolVLM: tiles in rows and columns, then the whole image."""
    made = processor([[image]], return_row_col_info=True)
    tiles = inputs["pixel_values"].shape[1]
    rows, columns = (made["rows"][0][0], made["cols"][0][0]) if tiles > 1 else (0, 0)
    return _tiles_then_whole(rows, columns, tiles, image, tokens)


FAMILIES: dict[str, Callable[[Any, Any, Any, Any, int], list[Grid]]] = {
    "llava": _clip, "llava_next": _any_resolution, "qwen2_5_vl": _merged, "qwen3_vl": _merged, "gemma3": _whole,
    "paligemma": _whole, "internvl": _cropped_to_patches, "idefics3": _split, "smolvlm": _split,
}  # fmt: skip
