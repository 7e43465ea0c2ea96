"""Cost of noising beside reading and writing the image: throughput against bare decode + encode with Pillow.

Run     python benchmarks/noising.py [--images FOLDER]
Source  any source folder with boxes, each boxed image once; without one, phantoms enlarged to 1024 x 1024, with grain
Prints  JSON. `bare` opens, decodes and writes each file as PNG in memory, with Pillow alone, in its own mode; the arms
        do what curation does (`noiser.Noiser`). Both compress as datasets do, in CPU time of one core, a file at
        a time in turn. Read `share_of_bare`: the arm's images per second over those of `bare`, the median of the
        repeats with the least and the most. Required: 0.8 for lesion boxes.
        `noising_ms` is `corrupt` alone, and `png_kb` the size of the PNGs: what is noise compresses worse.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, features

from mmedpo.curation.localize import Region
from mmedpo.curation.noise import Noise, corrupt, generator
from mmedpo.curation.noiser import Noiser
from mmedpo.data import images
from mmedpo.data.samples import Box, Sample
from mmedpo.data.sources import read_source
from mmedpo.quickstart import phantom

SIDE = 1024
ARMS = {
    "lesion": Noise(),
    "lesion, edge 16": Noise(edge=16),
    "lesion, gaussian": Noise(method="gaussian"),
    "lesion, black": Noise(method="black"),
    "image": Noise(region="image"),
    "crop": Noise(method="crop"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a source folder with boxes")
    parser.add_argument("--limit", type=int, default=44, help="how many images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            samples = boxed(arguments.images, arguments.limit)
        else:
            samples = enlarged_phantoms(Path(folder) / "phantoms", arguments.limit, arguments.seed)
        record = {
            "images": len(samples), "source": arguments.images.name if arguments.images else "phantoms",
            "seed": arguments.seed, "repeats": arguments.repeats, **measure(samples, arguments.repeats, arguments.seed),
            "versions": {name: version(name) for name in ("mmedpo", "numpy", "pillow")}
            | {"zlib": features.version("zlib"), "python": platform.python_version(), "machine": platform.machine()},
        }  # fmt: skip
    print(json.dumps(record, indent=2))


def boxed(folder: Path, limit: int) -> list[Sample]:
    """One sample an image with boxes; its boxes are those of all its questions."""
    by_image: dict[Path, Sample] = {}
    for sample in read_source(folder).samples:
        if sample.boxes:
            known = by_image.get(sample.images[0].file, sample)
            by_image[sample.images[0].file] = with_boxes(known, known.boxes + sample.boxes)
    return list(by_image.values())[:limit]


def with_boxes(sample: Sample, boxes: Iterable[Box]) -> Sample:
    return replace(sample, images=(replace(sample.images[0], boxes=tuple(dict.fromkeys(boxes))),))


def enlarged_phantoms(folder: Path, limit: int, seed: int) -> list[Sample]:
    phantom.write(folder, {"train": 2 * limit}, seed)
    factor, rng, samples = SIDE / phantom.SIZE, np.random.default_rng(seed), boxed(folder, limit)
    for number, sample in enumerate(samples):
        smooth = np.asarray(
            Image.open(sample.images[0].file).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float
        )
        grain = np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255)
        Image.fromarray(grain.astype(np.uint8)).save(sample.images[0].file)
        boxes = (Box(b.label, factor * b.x, factor * b.y, factor * b.width, factor * b.height) for b in sample.boxes)
        samples[number] = with_boxes(sample, boxes)
    return samples


def bare(sample: Sample) -> int:
    buffer = io.BytesIO()
    Image.open(sample.images[0].file).save(buffer, "PNG", compress_level=images.STORED_LEVEL)
    return len(buffer.getvalue())


def measure(samples: list[Sample], repeats: int, seed: int) -> dict[str, Any]:
    arms: dict[str, Callable[[Sample], int]] = {"bare": bare} | {
        name: lambda sample, noise=noise: len(Noiser(noise, seed)(sample, Region(boxes=sample.boxes))[0]["bytes"])  # type: ignore[misc]
        for name, noise in ARMS.items()
    }
    seconds = {name: [0.0] * repeats for name in arms}
    sizes = dict.fromkeys(arms, 0)
    for repeat in range(-1, repeats):  # the first one warms up
        for sample in samples:
            for name, work in arms.items():
                start = time.process_time()
                size = work(sample)
                spent = time.process_time() - start
                if repeat >= 0:
                    seconds[name][repeat] += spent
                    sizes[name] += size
    alone = dict.fromkeys(ARMS, 0.0)
    for sample in samples:
        pixels = images.pixels(sample.images[0].file)
        for name, noise in ARMS.items():
            mask = np.ones(pixels.shape[:2], bool) if noise.whole else Region(sample.boxes).pixels(*pixels.shape[:2])
            start = time.process_time()
            corrupt(pixels, mask, noise.method, generator(seed, sample.id), step=noise.step, edge=noise.edge)
            alone[name] += time.process_time() - start
    shares = {name: [b / t for b, t in zip(seconds["bare"], seconds[name], strict=True)] for name in ARMS}
    count = len(samples)
    return {
        "images_per_second": {name: round(count / median(spent), 2) for name, spent in seconds.items()},
        "share_of_bare": {name: [round(f(share), 3) for f in (median, min, max)] for name, share in shares.items()},
        "noising_ms": {name: round(1000 * spent / count, 2) for name, spent in alone.items()},
        "png_kb": {name: round(size / repeats / count / 1000) for name, size in sizes.items()},
    }


if __name__ == "__main__":
    main()
