"""Rejected images: forward-diffusion noise inside a lesion mask (paper, equation 2), other corruptions, and masks.

Equal seed, image, mask and options (`PER` row: and row id) give equal pixels on every run. Two things may differ
elsewhere. The last bit of `exp` and `log1p` depends on the processor; rounding to 8 bits hides it. The stream of normal
numbers depends on NumPy (NEP 19); a test records it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmedpo.data.images import open_image
from mmedpo.data.samples import Box
from mmedpo.errors import InputError

STEPS = 1000
METHODS = ("diffusion", "gaussian", "black", "crop")
DRAWN = METHODS[:2]  # methods that draw normal numbers
PER = ("image", "row")
IMAGES = ("lesion", "all")
PIXELS = 336  # longer side of the model's view, if no target model says: CLIP's in LLaVA
CELLS = 3 / 4  # cells per pixel of the view; cells of 4/3 pixels keep their strength when the image is shrunk
GREY = 16  # most levels between the channels of a grey pixel; JPEG channels differ a little
COLOURED = 1 / 50  # share of a grey image's pixels that may have colour: arrows and labels
RULES = "quantile:Q (pixels above that quantile), fixed:T (above that share of the maximum), otsu; Q and T in [0, 1]"


@dataclass(frozen=True)
class Noise:
    """Corruption of the images of visual pairs.

    Attributes:
        method, step, edge, pixels: as for `corrupt`.
        region: "lesion" (pairs only where one was found) or "image" (the whole image, with or without a lesion).
        reversed: make (x*, y_l) over (x*, y_w) instead of (x, y_w) over (x*, y_w); arXiv 2606.12590.
        images: of several, "lesion" (those with a lesion; all where `whole` needs none and none has one) or "all" (one
            without a lesion as a whole).
        per: "image" (questions about one image and region share the noised image) or "row" (each row has its own).
    """

    method: str = "diffusion"
    step: int = 800
    edge: int = 0
    region: str = "lesion"
    reversed: bool = False
    pixels: int = PIXELS
    per: str = PER[0]
    images: str = IMAGES[0]

    @property
    def whole(self) -> bool:
        return self.region == "image" or self.method == "crop"

    @property
    def dispreference(self) -> str:
        """Kind of pair that it makes (`schema.DISPREFERENCES`)."""
        if self.reversed:
            return "reversed_noise"
        return "image_noise" if self.whole else "lesion_noise"

    def record(self) -> dict[str, Any]:
        own = {**asdict(self), "region": "image" if self.whole else "lesion"}
        return {name: value for name, value in own.items() if name != "images" or value != IMAGES[0]}

    def noised(self, located: Sequence[bool]) -> list[bool]:
        """Return which images are noised, given which ones have a usable lesion; none if a lesion is needed."""
        if not any(located):
            return [self.whole] * len(located)
        return [True] * len(located) if self.images == "all" else [*located]


def generator(seed: int, name: str) -> np.random.Generator:
    """Return the random generator of a row (`name` is its id) or of an image and mask (`name_of`)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def name_of(image: np.ndarray, mask: np.ndarray) -> str:
    """Return a digest of an image's pixels and of its mask, whatever the file is called and the format is."""
    parts = str(image.shape).encode(), image.tobytes(), np.packbits(mask).tobytes()
    return hashlib.sha256(b"".join(parts)).hexdigest()


def schedule() -> np.ndarray:
    """Return the cumulative signal share abar_k for k = 1 .. 1000: float64, falling from 1 to near 0.

    The paper names no schedule. This one is from the authors' earlier project POVID: betas on a sigmoid between 1e-5
    and 0.5e-2.
    """
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    return np.cumprod(1 - betas)


def corrupt(
    image: np.ndarray,
    mask: np.ndarray,
    method: str,
    rng: np.random.Generator,
    step: int = 800,
    edge: int = 0,
    pixels: int | None = None,
) -> np.ndarray:
    """Return the image with its masked part corrupted by one of `METHODS`.

    - `diffusion`: x* = sqrt(abar_k) (x . h) + sqrt(1 - abar_k) (eps . h) + x . (1 - h) on values in [-1, 1] (equation
      2).
    - `gaussian`: N(0, 10) on values in 0 .. 255, clipped at 0; the authors' code lets negative numbers wrap around.
    - `black`: 0.
    - `crop`: mDPO's rejected image (arXiv 2406.11839, table 3), independent of the mask: a random part of 1 to 20 % of
      the area at the image's size, as `RandomResizedCrop(scale=(0.01, 0.2))` of torchvision makes it.

    Noise is drawn for each channel, but once for all channels of a grey image (`is_grey`).

    Args:
        image: uint8 H x W or H x W x C.
        mask: bool H x W, true where the image is corrupted; all true corrupts the whole image.
        rng: the only random generator used.
        step: k in 1 .. 1000, for `diffusion`. The image keeps 86 % of its amplitude at 500, 47 % at 800, 29 % at 1000.
        edge: width of the feathered edge inside the mask, in pixels; 0 is a hard edge. h rises linearly from 0 outside
            to 1 behind the edge. The image's border is no border of the mask.
        pixels: longer side of the image as the model sees it. Noise of a larger image is drawn in square cells of 4/3
            of those pixels, so that its strength does not depend on the image's size. None draws each pixel's.

    Returns:
        uint8 array of the image's shape. Except for `crop`, pixels outside the mask equal the image's.

    Raises:
        InputError: dtypes, shapes or options are not as above.
    """
    _check(image, mask, method, step, edge)
    if method == "crop":
        return _crop(image, rng)
    spoiled = image.copy()
    around = _bounds(mask)
    part, inside = spoiled[around], mask[around]
    signal = part[inside]
    if method == "black":
        made = np.zeros(signal.shape)
    else:
        made = _normal_numbers(image, mask, pixels, rng)
        if method == "diffusion":
            abar = schedule()[step - 1]
            made = (np.sqrt(abar) * (signal / 127.5 - 1) + np.sqrt(1 - abar) * made + 1) * 127.5
        else:
            made = 10 * made
    if edge and not inside.all():
        h = _ramp(inside, edge)[inside]
        made = (h * made.T + (1 - h) * signal.T).T
    part[inside] = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return spoiled


def diffuse(image: np.ndarray, mask: np.ndarray, step: int, rng: np.random.Generator) -> np.ndarray:
    """Return the image corrupted by equation 2 with a hard edge (`corrupt`)."""
    return corrupt(image, mask, "diffusion", rng, step)


def is_grey(image: np.ndarray) -> bool:
    """Return whether a uint8 H x W (x C) image shows no colour.

    At most 1 in 50 of its pixels may have channels more than 16 levels apart. X-rays with a coloured arrow or a slight
    tint are grey; sepia, Doppler and pathology images are not.
    """
    if image.ndim == 2:
        return True
    return bool(np.mean(image.max(axis=2) - image.min(axis=2) > GREY) <= COLOURED)


def box_mask(boxes: Iterable[Box], height: int, width: int) -> np.ndarray:
    """Return a bool H x W mask, true in every pixel that a box touches; parts outside the image are cut off."""
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        top, left = max(int(np.floor(box.y)), 0), max(int(np.floor(box.x)), 0)
        bottom, right = int(np.ceil(box.y + box.height)), int(np.ceil(box.x + box.width))
        mask[top : max(bottom, 0), left : max(right, 0)] = True
    return mask


def check_rule(rule: str) -> tuple[str, float]:
    """Return the name and the number of a mask rule for heat maps (0 for `otsu`).

    Raises:
        InputError: the rule is none of `RULES`.
    """
    name, _, number = rule.partition(":")
    try:
        value = 0.0 if rule == "otsu" else float(number)
    except ValueError:
        value = -1.0
    if (name not in ("quantile", "fixed") and rule != "otsu") or not 0 <= value <= 1:
        raise InputError(f"The mask rule {rule!r} is unknown; use one of: {RULES}.")
    return name, value


def heat_mask(heat: np.ndarray, height: int, width: int, rule: str) -> np.ndarray:
    """Return the hot pixels of a heat map as a bool H x W mask.

    Args:
        heat: real h x w, not negative, over the whole image. It is scaled to height x width by bilinear interpolation
            between the centres of its cells.
        rule: one of `RULES`. `otsu` splits 256 bins of heat at the largest variance between both sides (Otsu 1979). The
            mask always holds the hottest pixels, unless all are equally hot: then it is empty.

    Raises:
        InputError: the heat map is not as above, or the rule is unknown.
    """
    from PIL import Image

    name, value = check_rule(rule)
    if heat.ndim != 2 or not heat.size or heat.dtype.kind not in "buif":
        raise InputError(f"A heat map has 2 dimensions of real numbers, got {heat.dtype} with shape {heat.shape}.")
    if not np.isfinite(heat).all() or heat.min() < 0:
        raise InputError("The heat map contains negative numbers, NaN or infinity; give finite values of at least 0.")
    cells = Image.fromarray((heat / (heat.max() or 1)).astype(np.float32))
    scaled = np.asarray(cells.resize((width, height), Image.Resampling.BILINEAR))
    if scaled.min() == scaled.max():
        return np.zeros((height, width), dtype=bool)
    if name == "quantile":
        value = float(np.quantile(scaled, value))
    elif name == "otsu":
        value = _otsu(scaled)
    return scaled > min(value, np.nextafter(scaled.max(), np.float32(0)))


def pack_mask(mask: np.ndarray) -> bytes:
    """Return a bool H x W mask as a PNG file of 1 bit per pixel; `unpack_mask` is the inverse."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def unpack_mask(data: bytes) -> np.ndarray:
    """Return the bool H x W mask of `pack_mask`'s bytes."""
    return np.array(open_image(data))


def _check(image: np.ndarray, mask: np.ndarray, method: str, step: int, edge: int) -> None:
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise InputError(f"Noise needs a uint8 image of 2 or 3 dimensions, got {image.dtype} with shape {image.shape}.")
    if mask.dtype != bool or mask.shape != image.shape[:2]:
        raise InputError(
            f"Noise needs a bool mask of shape {image.shape[:2]}, got {mask.dtype} with shape {mask.shape}."
        )
    if method not in METHODS:
        raise InputError(f"The noise method {method!r} is unknown; use one of {', '.join(METHODS)}.")
    if not 1 <= step <= STEPS:
        raise InputError(f"The noise step is {step}; it must be in 1 .. {STEPS}.")
    if edge < 0:
        raise InputError(f"The feathered edge is {edge} pixels wide; it must be 0 (a hard edge) or more.")


def _normal_numbers(image: np.ndarray, mask: np.ndarray, pixels: int | None, rng: np.random.Generator) -> np.ndarray:
    """Return standard normal numbers for the masked pixels, n or n x C, equal within a cell.

    Only cells that the mask touches draw numbers, in reading order.
    """
    (height, width), shape = mask.shape, image.shape[2:]
    share = 1.0 if pixels is None or max(mask.shape) <= pixels else CELLS * pixels / max(mask.shape)
    down, across = (max(round(side * share), 1) for side in mask.shape)
    rows, columns = np.nonzero(mask)
    cells = rows * down // height * across + columns * across // width
    touched = np.zeros(down * across, dtype=bool)
    touched[cells] = True
    drawn = rng.standard_normal((np.count_nonzero(touched), *([1] * len(shape) if is_grey(image) else shape)))
    return np.broadcast_to(drawn[np.cumsum(touched)[cells] - 1], (len(cells), *shape))


def _bounds(mask: np.ndarray) -> Any:
    """Return the index of the mask's bounding rectangle, one pixel wider on each side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return np.s_[:0]
    return np.s_[max(rows[0] - 1, 0) : rows[-1] + 2, max(columns[0] - 1, 0) : columns[-1] + 2]


def _ramp(inside: np.ndarray, edge: int) -> np.ndarray:
    """Return h of equation 2: float64 in [0, 1], rising with the distance from the mask's border."""
    from scipy.ndimage import distance_transform_edt

    return np.minimum(distance_transform_edt(inside) / (edge + 1), 1)


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    height, width = image.shape[:2]
    area, ratio = height * width * rng.uniform(0.01, 0.2), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    rows = min(max(round(np.sqrt(area / ratio)), 1), height)
    columns = min(max(round(np.sqrt(area * ratio)), 1), width)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    part = image[top : top + rows, left : left + columns].reshape(rows, columns, -1)
    channels = [
        Image.fromarray(part[..., c]).resize((width, height), Image.Resampling.BILINEAR) for c in range(part.shape[2])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).reshape(image.shape)


def _otsu(values: np.ndarray) -> float:
    counts, edges = np.histogram(values, bins=256)
    heat = counts * (edges[:-1] + edges[1:]) / 2
    below, above = np.cumsum(counts)[:-1], np.cumsum(counts[::-1])[-2::-1]
    difference = np.cumsum(heat)[:-1] / below - np.cumsum(heat[::-1])[-2::-1] / above
    return float(edges[1:-1][np.argmax(below * above * difference**2)])
