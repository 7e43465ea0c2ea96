"""Strength of noise at a model's input, for one image at several sizes.

Run     python benchmarks/noise_strength.py [--images FOLDER] [--sizes 512,1024,3000] [--aspect 1.0]
Source  any source folder with boxes, the first box of each of --limit images; without one, enlarged phantoms
Prints  JSON. Each picture is scaled to the sizes (longer side), its lesion noised, and original and noised image go
        through image processors of transformers with the families' published sizes. A number is the correlation of
        the two inside the lesion there, its mean over images: `pixel` with noise of every pixel, `cells` as curation
        draws it. `all` are all pictures that the model gets, tiles too, `overview` the whole image in one. `spread` is
        the largest less the least of the sizes. Required: 0.05 for `cells`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import transformers as tf
from noising import boxed, enlarged_phantoms
from PIL import Image

from mmedpo.curation.noise import box_mask, corrupt, generator
from mmedpo.data import images
from mmedpo.data.samples import Box
from mmedpo.models import model_input

CLIP: dict[str, Any] = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
PROCESSORS: dict[str, Callable[[], Any]] = {
    "LLaVA (CLIP, 336, cropped)": lambda: tf.CLIPImageProcessorPil(**CLIP),
    "LLaVA-NeXT (336, tiles)": lambda: tf.LlavaNextImageProcessorPil(**CLIP),
    "PaliGemma (SigLIP, 224)": lambda: tf.SiglipImageProcessorPil(size={"height": 224, "width": 224}),
    "Gemma3 (SigLIP, 896)": lambda: tf.Gemma3ImageProcessorPil(size={"height": 896, "width": 896}),
    "InternVL (448, tiles)": lambda: tf.GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=12
    ),
    "Idefics3 (364, tiles)": lambda: tf.Idefics3ImageProcessorPil(),
    "Qwen2-VL (budget 1 megapixel)": lambda: tf.Qwen2VLImageProcessorPil(),
    "Qwen2-VL (budget 12.8 megapixels)": lambda: tf.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 3136, "longest_edge": 12845056}
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a source folder with boxes")
    parser.add_argument("--limit", type=int, default=8, help="how many images")
    parser.add_argument("--sizes", default="512,1024,3000")
    parser.add_argument("--aspect", type=float, default=1.0, help="height of the part that is taken, of its width")
    parser.add_argument("--only", default="", help="processors whose name begins so")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    processors = {name: make() for name, make in PROCESSORS.items() if name.startswith(arguments.only)}
    found: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for picture, box in pictures(arguments, Path(folder)):
            for size in sizes:
                for key, value in measure(picture, box, size, processors, arguments.seed):
                    found.setdefault(key, {}).setdefault(size, []).append(value)
    table = [
        {"processor": name, "seen": seen, "noise": noise} | means(values)
        for (name, seen, noise), values in sorted(found.items())
    ]
    print(json.dumps({"images": arguments.limit, "aspect": arguments.aspect, "table": table}, indent=1))


def means(values: dict[int, list[float]]) -> dict[str, Any]:
    mean = {str(size): round(float(np.nanmean(found)), 3) for size, found in values.items()}
    return {**mean, "spread": round(max(mean.values()) - min(mean.values()), 3)}


def pictures(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[Image.Image, Box]]:
    """Grey pictures of the aspect, cut about their first box, each with that box."""
    if arguments.images:
        samples = boxed(arguments.images, arguments.limit)
    else:
        samples = enlarged_phantoms(folder / "phantoms", arguments.limit, arguments.seed)
    for sample in samples[: arguments.limit]:
        picture, box = images.open_rgb(sample.images[0].file).convert("L"), sample.boxes[0]
        height = min(round(picture.width * arguments.aspect), picture.height)
        top = min(max(round(box.y + box.height / 2 - height / 2), 0), picture.height - height)
        part = picture.crop((0, top, picture.width, top + height))
        yield part, Box(box.label, box.x, box.y - top, box.width, box.height)


def measure(
    picture: Image.Image, box: Box, size: int, processors: dict[str, Any], seed: int
) -> Iterator[tuple[tuple[str, str, str], float]]:
    """The correlations of one picture at one size, each with its processor, what is seen, and the kind of noise."""
    by = size / max(picture.size)
    scaled = picture.resize([round(side * by) for side in picture.size], Image.Resampling.LANCZOS)
    pixels = np.asarray(scaled)
    mask = box_mask([Box("", *(by * side for side in (box.x, box.y, box.width, box.height)))], *pixels.shape)
    for name, processor in processors.items():
        for kind, side in (("pixel", None), ("cells", model_input.longer_side(processor))):
            noised = corrupt(pixels, mask, "diffusion", generator(seed, box.label), pixels=side)
            three = [Image.fromarray(made).convert("RGB") for made in (pixels, noised, mask)]
            views = [model_input.views(processor, made) for made in three]
            tall = [np.concatenate([view.reshape(-1, 3) for view in own]) for own in views]
            yield (name, "all", kind), model_input.correlation(tall[0], tall[1], tall[2][:, 0] > 240)
            if len(views[0]) > 1:
                before, after, inside = (model_input.overview(processor, made) for made in three)
                yield (name, "overview", kind), model_input.correlation(before, after, inside[..., 0] > 240)


if __name__ == "__main__":
    main()
