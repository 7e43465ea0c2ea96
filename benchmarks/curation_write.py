"""Speed of the writing phase: rows on one core against bare decode, noise and encode; and two tasks against one.

Run     python benchmarks/curation_write.py [--images FOLDER] --output benchmarks/results/curation_write.json
Source  any source folder with boxes, each boxed image once; without one, phantoms enlarged to 1024 x 1024, with grain.
        `visual`: a lesion pair an image; `both`: a text pair as well
Bare    opens and decodes each file, noises the lesion, and writes it as PNG in memory, with Pillow alone: `default` at
        its own compression, `same` at that of the dataset
One     CPU time (user and system) of `rows.dataset_rows` into `shards.write`, in turn with both bare arms. Read
        `share_of_bare`: bare seconds over those of writing the same images, the median of the repeats with the least
        and the most. Required: 0.8
Two     all files written by one process or by two that take every other file, in turn, both started before. `speed_up`:
        `wall` by the least wall times, which other load of the machine falsifies; `cpu` by the CPU time of one process
        over the longer one of the two, as if each had a core of its own. `cpu_of_one_over_both`: 1 if tasks cost
        nothing
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from noising import boxed, enlarged_phantoms
from PIL import Image

from mmedpo.curation import rows
from mmedpo.curation.localize import Region, bounded
from mmedpo.curation.noise import Noise, corrupt, generator
from mmedpo.curation.row_sizes import row_sizes
from mmedpo.data import images, shards
from mmedpo.data.samples import Sample
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

NOISE, SEED, FILES = Noise(), 0, 8
KINDS = {"visual": (NOISE.dispreference,), "both": (rows.TEXT_PAIR, NOISE.dispreference)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a source folder with boxes")
    parser.add_argument("--limit", type=int, default=44, help="how many images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if options.images:
            samples = boxed(options.images, options.limit)
        else:
            samples = enlarged_phantoms(folder / "phantoms", options.limit, SEED)
        record = {
            "command": " ".join(sys.argv), "images": len(samples),
            "source": options.images.name if options.images else "phantoms", "repeats": options.repeats,
            **{name: one_core(samples, kinds, folder / name, options.repeats) for name, kinds in KINDS.items()},
            "two_tasks": two_tasks(samples, folder / "tasks", options.repeats), "versions": versions(),
        }  # fmt: skip
    print(json.dumps(record, indent=2))
    if options.output:
        write_json(options.output, record)


class Job:
    """A dataset to be written: its pairs, and the files that they are cut into."""

    def __init__(self, samples: Sequence[Sample], kinds: Sequence[str], files: int) -> None:
        located = {one.id: bounded(Region(boxes=one.boxes), one, 1.0).record() for one in samples}
        told = {one.id: {"text": "no such thing", "made_by": "m"} for one in samples}
        self.steps: Any = {"dispute": told, "locate": located, "judge": {}, "sample": {}}
        self.pairs = [rows.Pair(one, kind, 0.5) for one in samples for kind in kinds]
        sizes = [*row_sizes(self.pairs, located, NOISE, SEED)]
        self.lengths = shards.cut(sizes, f"{sum(size for _, size in sizes) // files // 1000 + 1}KB")

    def write(self, folder: Path, rank: int = 0, tasks: int = 1) -> float:
        """Write every `tasks`-th file from `rank` on; return the CPU time."""
        start, rest = time.process_time(), iter(self.pairs)
        makers = rows.Makers(None, None, "boxes", None, NOISE, SEED)
        for number, length in enumerate(self.lengths):
            some = [(pair, 1.0, self.steps) for pair in islice(rest, length)]
            if number % tasks == rank:
                made = rows.dataset_rows(some, makers, False)
                shards.write(made, folder, "train", number, len(self.lengths))
        return time.process_time() - start


def bare(samples: Sequence[Sample], level: int) -> float:
    """Noise the images with Pillow alone; return the CPU time."""
    start = time.process_time()
    for sample in samples:
        with Image.open(sample.images[0].file) as opened:
            pixels = np.asarray(opened.convert("L") if opened.mode != "RGB" else opened)
        mask = Region(boxes=sample.boxes).pixels(*pixels.shape[:2])
        made = corrupt(pixels, mask, NOISE.method, generator(SEED, sample.id), NOISE.step, NOISE.edge, NOISE.pixels)
        Image.fromarray(made).save(io.BytesIO(), "PNG", compress_level=level)
    return time.process_time() - start


def one_core(samples: Sequence[Sample], kinds: Sequence[str], folder: Path, repeats: int) -> dict[str, Any]:
    job = Job(samples, kinds, 1)
    seconds: dict[str, list[float]] = {"default": [], "same": [], "write": []}
    for repeat in range(-1, repeats):  # the first one warms up
        spent = {"default": bare(samples, 6), "same": bare(samples, images.STORED_LEVEL), "write": job.write(folder)}
        shutil.rmtree(folder)
        for name, times in seconds.items():
            times += [spent[name]] if repeat >= 0 else []
    shares = {
        name: [under / over for under, over in zip(seconds[name], seconds["write"], strict=True)]
        for name in ("default", "same")
    }
    return {
        "rows": len(job.pairs), "rows_per_second": round(len(job.pairs) / median(seconds["write"]), 1),
        "share_of_bare": {name: [round(f(share), 2) for f in (median, min, max)] for name, share in shares.items()},
    }  # fmt: skip


def two_tasks(samples: Sequence[Sample], folder: Path, repeats: int) -> dict[str, Any]:
    job = Job(samples, KINDS["both"], FILES)
    wall: dict[int, list[float]] = {1: [], 2: []}
    spent: dict[int, list[list[float]]] = {1: [], 2: []}
    made: list[dict[str, bytes]] = []
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"))) for _ in range(2)]
        for repeat in range(-1, repeats):  # the first one starts the processes
            for tasks in wall:
                start = time.perf_counter()
                done = [pools[rank].submit(job.write, folder, rank, tasks) for rank in range(tasks)]
                cpu = [one.result() for one in done]
                if repeat >= 0:
                    wall[tasks].append(time.perf_counter() - start)
                    spent[tasks].append(cpu)
                made.append({file.name: file.read_bytes() for file in folder.rglob("*.parquet")})
                shutil.rmtree(folder)

    def ratio(over: Any) -> float:
        return round(median(map(sum, spent[1])) / median(map(over, spent[2])), 2)

    return {
        "files": len(job.lengths), "equal_bytes": all(one == made[0] for one in made),
        "wall_seconds": {f"{tasks} tasks": round(min(times), 2) for tasks, times in wall.items()},
        "speed_up": {"wall": round(min(wall[1]) / min(wall[2]), 2), "cpu": ratio(max)},
        "cpu_of_one_over_both": ratio(sum),
    }  # fmt: skip


if __name__ == "__main__":
    main()
