"""Seconds from `mmedpo train` to its first step, phase by phase, as the dataset grows.

Run      python benchmarks/training_start.py --rows 1000 10000 100000 --output benchmarks/results/training_start.json
         --side 512 for images of 512 pixels; --data FOLDER keeps the datasets that are made, and takes them up again
Dataset  made on the spot and written as curation writes it: 20 pairs an image, each question another; images are JPEG
         files of many sizes; one pair in five is a lesion pair, with a second image of its own, a PNG file
Model    `tiny.build`, so that what is measured is the work around it
Reads    `seconds` and `cpu` (of the process and its children) until the first step begins, its batch made: of `cold`
         (the dataset is not yet in the cache of `datasets`), then of `warm`; `phases`: seconds and CPU of each part,
         without the parts inside it; `peak_mb`: largest resident memory, pages of mapped files included; `own_mb`:
         without them. The reference's log-probabilities are computed in the first epoch, batch by batch, and not here.
"""

from __future__ import annotations

import argparse
import importlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PAIRS_AN_IMAGE, LESIONS = 20, 5
FINDINGS = ("nodule", "mass", "cyst", "abscess", "fracture", "effusion", "nothing of note")
PLACES = ("left lung", "right lung", "liver", "heart", "left kidney")
PHASES = {  # what is timed: the function's module and name
    "dataset": "mmedpo.training.run._pairs",
    "credentialed": "mmedpo.training.record.credentialed_source",
    "processor": "mmedpo.training.run.load_processor",
    "preflight": "mmedpo.training.preflight.check",
    "preflight: weights": "mmedpo.training.preflight.rows._weights",
    "preflight: rules": "mmedpo.training.preflight.rows._rules",
    "preflight: images": "mmedpo.training.preflight.rows._images",
    "preflight: texts": "mmedpo.training.preflight.rows._texts",
    "preflight: lengths": "mmedpo.training.preflight.rows._lengths",
    "preflight: image tokens": "mmedpo.training.preflight.rows.image_tokens",
    "model": "mmedpo.training.run.open_model",
    "trainer": "mmedpo.training.trainer.MMedPOTrainer.__init__",
    "grouping": "mmedpo.training.trainer.lengths_and_kinds",
    "startup check": "mmedpo.training.trainer.verify_optimisations",
    "caches": "mmedpo.training.trainer.MMedPOTrainer.open_reference_cache",
}


def pictures(side: int, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Grey images of about `side` pixels, of low detail and some grain, as JPEG files and pixels."""
    from PIL import Image

    number = 0
    while True:
        width, height = (int(side * scale) for scale in rng.uniform(0.75, 1.25, 2))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize((width, height))
        values = np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width)), 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(values).save(file, "JPEG", quality=90)
        yield {"bytes": file.getvalue(), "path": f"{number}.jpg"}, values
        number += 1


def pairs(rows: int, side: int, seed: int) -> Iterator[dict[str, Any]]:
    from PIL import Image

    from mmedpo import schema

    rng = np.random.default_rng(seed)
    empty = dict.fromkeys(schema._features()["provenance"])
    made = pictures(side, rng)
    for number in range(rows):
        if number % PAIRS_AN_IMAGE == 0:
            image, values = next(made)
        finding, other = (FINDINGS[i] for i in rng.choice(len(FINDINGS), 2, replace=False))
        place = PLACES[rng.integers(len(PLACES))]
        is_lesion, words = number % LESIONS == 0, 40 if number % 10 == 1 else 4
        said = " ".join(PLACES[i] for i in rng.integers(len(PLACES), size=words))
        chosen, rejected = (f"there is {found} in the {place} beside the {said}" for found in (finding, other))
        second = None
        if is_lesion:
            x, y = rng.integers(side // 4, size=2)
            noised, file = values.copy(), io.BytesIO()
            noised[y : y + side // 4, x : x + side // 4] = rng.integers(0, 256, (side // 4, side // 4))
            Image.fromarray(noised).save(file, "PNG", compress_level=0)
            second = [{"bytes": file.getvalue(), "path": f"{number}.png"}]
        yield {
            "id": f"bench-{number}", "images": [image], "rejected_images": second,
            "prompt": [{"role": "user", "content": f"What is seen in the {place} of patient {number}?"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": chosen if is_lesion else rejected}],
            "weight": float(rng.uniform(0.75, 1.25)), "clinical_relevance": float(rng.uniform()),
            "dispreference": schema.DISPREFERENCES[int(is_lesion)], "task": "report" if words > 4 else "open_vqa",
            "source": "benchmark", "license": "cc0-1.0", "provenance": {**empty, "image_id": image["path"]},
        }  # fmt: skip


def write_dataset(folder: Path, rows: int, side: int, seed: int) -> None:
    """As `shards.save` writes it, without its look at each image."""
    from pyarrow.parquet import ParquetWriter

    from mmedpo import schema
    from mmedpo.data import shards

    (folder / "data").mkdir(parents=True)
    made = pairs(rows, side, seed)
    file = folder / "data" / "train-00000-of-00001.parquet"
    with ParquetWriter(file, schema.FEATURES.arrow_schema, **shards.LAYOUT) as writer:
        while some := list(itertools.islice(made, schema.ROWS_AT_ONCE)):
            writer.write_table(shards._table(some, schema.FEATURES))


def write_model(folder: Path) -> None:
    from mmedpo.quickstart import tiny

    words = [*FINDINGS, *PLACES, "there is in the beside What is seen in of patient ?", *map(str, range(1000))]
    model, processor = tiny.build(words)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def child(data: Path, model: Path, output: Path) -> None:
    """Train until the first step begins; print what was measured."""
    began, own = time.monotonic(), _Memory()
    clock = Clock()
    with clock.phase("imports"):
        import mmedpo.training.run as run
    for name, place in PHASES.items():
        clock.wrap(name, place)

    def stop(*_: Any, **__: Any) -> None:
        seconds, cpu = time.monotonic() - began, _cpu()
        clock.phases["the rest"] = [seconds - sum(wall for wall, _ in clock.phases.values()),
                                    cpu - sum(used for _, used in clock.phases.values())]  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found = {"seconds": round(seconds, 1), "cpu": round(cpu, 1), "peak_mb": round(peak), "own_mb": round(own.peak)}
        phases = {name: [round(wall, 2), round(used, 2)] for name, (wall, used) in clock.phases.items()}
        print(json.dumps({**found, "phases": phases}), flush=True)
        os._exit(0)

    run.MMedPOTrainer.training_step = stop  # type: ignore[method-assign]
    settings = {
        "dataset_name": data, "model_name_or_path": model, "output": output, "per_device_train_batch_size": 16,
        "use_peft": "true", "use_cpu": "true", "bf16": "false", "report_to": "none", "dtype": "float32",
        "train_sampling_strategy": "group_by_length", "disable_tqdm": "true", "gradient_checkpointing": "false",
        "loss_type": "sigmoid",
    }  # fmt: skip
    run.main([word for name, value in settings.items() for word in (f"--{name}", str(value))])


class Clock:
    """Wall and CPU seconds of phases, each without those inside it."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self._inner: list[list[float]] = [[0.0, 0.0]]

    def phase(self, name: str) -> Any:
        import contextlib

        @contextlib.contextmanager
        def timed() -> Iterator[None]:
            wall, cpu = time.monotonic(), _cpu()
            self._inner.append([0.0, 0.0])
            yield
            inner, spent = self._inner.pop(), [time.monotonic() - wall, _cpu() - cpu]
            known = self.phases.setdefault(name, [0.0, 0.0])
            for i in (0, 1):
                known[i] += spent[i] - inner[i]
                self._inner[-1][i] += spent[i]

        return timed()

    def wrap(self, name: str, place: str) -> None:
        path, attribute = place.rsplit(".", 1)
        try:
            owner: Any = importlib.import_module(path)
        except ModuleNotFoundError:  # a class
            module, kind = path.rsplit(".", 1)
            owner = getattr(importlib.import_module(module), kind)
        inner = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return inner(*args, **kwargs)

        setattr(owner, attribute, timed)


class _Memory(threading.Thread):
    """Largest resident memory without mapped files, in MB, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text("utf-8")
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            time.sleep(0.1)


def _cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def measure(rows: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    data, model = folder / f"{rows}-{options.side}-{options.seed}", folder / "model"
    if not data.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            write_dataset(Path(scratch) / "data", rows, options.side, options.seed)
            (Path(scratch) / "data").rename(data)
    if not model.exists():
        write_model(model)
    found: dict[str, Any] = {
        "rows": rows,
        "mb": round(sum(file.stat().st_size for file in data.rglob("*.parquet")) / 2**20),
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{scratch}/cache"}
        for start in ("cold", "warm"):
            typed = [sys.executable, __file__, "--child", str(data), str(model), f"{scratch}/{start}"]
            done = subprocess.run(typed, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(done.stderr + done.stdout)
            found[start] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--side", type=int, default=256, help="of the images, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder that keeps the datasets")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", type=Path, nargs=3, metavar=("DATA", "MODEL", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
    from mmedpo.runs.json_files import write_json
    from mmedpo.runs.provenance import versions

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.data or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for rows in options.rows:
            results.append(measure(rows, folder, options))
            print(json.dumps(results[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(["python", *sys.argv]), "seed": options.seed, "side": options.side}
        write_json(options.output, {**record, "versions": versions(), "results": results})


if __name__ == "__main__":
    main()
