"""Memory and time of a whole curation as the source grows: both kinds of pairs, offline stand-ins for all models.

Run      python benchmarks/curation.py --rows 1000 10000 --output benchmarks/results/curation.json
Source   made on the spot: one 256 x 256 grey picture of chance for every five questions, a box a question
Reads    `peak_mb`: largest resident memory of the curating process (its import of PyTorch is most of it);
         `seconds`: of the whole command. Streaming keeps the first flat and the second linear in rows.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from mmedpo.workdir import versions, write_json

SIDE = 256
FINDINGS = ("nodule", "mass", "cyst", "abscess", "fracture")


def write_source(folder: Path, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    with (folder / "samples.jsonl").open("w") as table:
        for number in range(rows):
            picture = folder / f"{number // 5}.png"
            if not picture.exists():
                Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(picture)
            box = {"label": "lesion", "x": int(rng.integers(180)), "y": int(rng.integers(180)), "w": 40, "h": 50}
            answer = ("yes", "no", f"{FINDINGS[number % 5]} in the left lung")[number % 3]
            row = {"id": number, "image": picture.name, "question": f"Question {number}?", "answer": answer}
            table.write(json.dumps({**row, "boxes": [box]}) + "\n")


def measure(rows: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        write_source(Path(scratch) / "source", rows, seed)
        typed = [
            sys.executable,
            "-m",
            "mmedpo.cli",
            "curate",
            "--source",
            f"{scratch}/source",
            "--chat",
            "standin:rules",
        ]
        typed += ["--judges", "standin:strict", "standin:lenient", "standin:lexical"]
        began = time.monotonic()
        done = subprocess.run([*typed, "--output", f"{scratch}/pairs"], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        made = json.loads(Path(scratch, "pairs", "manifest.json").read_text())["counts"]
    return {"questions": rows, "pairs": sum(made.values()), "seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = []
    for rows in sorted(options.rows):
        found = measure(rows, options.seed)
        # The largest of all children so far, so that sources must grow.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        results.append({**found, "peak_mb": round(peak, 1), "ms_a_question": round(1000 * found["seconds"] / rows, 2)})
        print(json.dumps(results[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": options.seed, "versions": versions(), "results": results}
        write_json(options.output, record)


if __name__ == "__main__":
    main()
