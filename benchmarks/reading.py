"""Cost of reading a source before the work: each image decoded once, and again when a run is resumed.

Run     python benchmarks/reading.py --images data/nih-bbox --output benchmarks/results/reading.json
Source  images of any folder, repeated under other names: `png` as they are, `jpeg` enlarged to 3056 x 2544, the size of
        MIMIC-CXR's
Arms    `alone`: in this process, as small sources are; `processes`: by one process a core; `resumed`: the same command
        again. In turn, `--repeats` times; medians
Read    `cpu`: user and system seconds of all processes an image; `command`: of the command's own process alone, which
        bounds how many cores help; `wall`: by the clock, which other load falsifies
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from mmedpo.data import reading
from mmedpo.data.images import SUFFIXES
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

SIZE = 3056, 2544  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder with images, at any depth")
    parser.add_argument("--count", type=int, default=400, help="how many PNG; a quarter as many JPEG")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = sorted(file for file in options.images.rglob("*") if file.suffix.lower() in SUFFIXES)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        record = {
            "command": " ".join(sys.argv), "source": options.images.name, "repeats": options.repeats,
            "cores": len(os.sched_getaffinity(0)),
            "png": arms(copies(found, options.count, folder / "png"), folder, options.repeats),
            "jpeg": arms(enlarged(found, options.count // 4, folder / "jpeg"), folder, options.repeats),
            "versions": versions(),
        }  # fmt: skip
    print(json.dumps(record, indent=2))
    if options.output:
        write_json(options.output, record)


def copies(found: list[Path], count: int, folder: Path) -> list[Path]:
    folder.mkdir()
    return [
        Path(shutil.copy(found[number % len(found)], folder / f"{number}{found[number % len(found)].suffix}"))
        for number in range(count)
    ]


def enlarged(found: list[Path], count: int, folder: Path) -> list[Path]:
    folder.mkdir()
    files = [folder / f"{number}.jpg" for number in range(count)]
    for number, file in enumerate(files[: len(found)]):
        with Image.open(found[number]) as opened:
            opened.convert("L").resize(SIZE).save(file, quality=95)
    for number, file in enumerate(files[len(found) :]):
        shutil.copy(files[number % len(found)], file)
    return files


def arms(files: list[Path], folder: Path, repeats: int) -> dict[str, Any]:
    asked = [("image", file) for file in files]
    time.sleep(reading.SETTLED / 1e9)
    measured: dict[str, list[dict[str, float]]] = {"alone": [], "processes": [], "resumed": []}
    results = []
    for repeat in range(repeats):
        known = folder / f"{files[0].parent.name}-{repeat}.ledger"
        for name, work in (
            ("alone", lambda: {one: reading.read(*one) for one in asked}),
            ("processes", lambda known=known: reading.read_files(asked, known)),
            ("resumed", lambda known=known: reading.read_files(asked, known)),
        ):
            found, took = timed(work, len(files))
            results.append(found)
            measured[name].append(took)
    size = sum(file.stat().st_size for file in files) / len(files)
    return {
        "images": len(files), "kilobytes_an_image": round(size / 1000),
        "equal": all(one == results[0] for one in results),
        **{
            name: {f"{kind}_ms": round(median(one[kind] for one in all_of), 2) for kind in all_of[0]}
            for name, all_of in measured.items()
        },
    }  # fmt: skip


def timed(work: Callable[[], Any], count: int) -> tuple[Any, dict[str, float]]:
    """Return the result of the work, and its milliseconds an image."""
    before, start = spent(), time.perf_counter()
    found = work()
    wall, after = time.perf_counter() - start, spent()
    own, children = (after[kind] - before[kind] for kind in (0, 1))
    return found, {"cpu": (own + children) * 1000 / count, "command": own * 1000 / count, "wall": wall * 1000 / count}


def spent() -> tuple[float, float]:
    """Return user and system seconds of this process, and of its ended children."""
    used = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, children = (one.ru_utime + one.ru_stime for one in used)
    return own, children


if __name__ == "__main__":
    main()
