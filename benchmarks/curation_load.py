"""CPU time and memory of a whole curation as the source grows: both kinds of pairs, offline stand-ins for all models.

Run      python benchmarks/curation_load.py --rows 1000 10000 --output benchmarks/results/curation_load.json
Source   made on the spot: `few`: 8 small pictures for all questions; `third`: a picture for every three questions. Half
         of the answers are all different, a quarter are reports, and nine in ten questions have a box
Reads    a phase: CPU seconds (user and system, also of threads: a busy machine changes them little) and the largest
         resident memory while it lasted. `growth`: both against the next smaller source; time that is linear grows as
         the rows do. `audit` and `card` end every `mmedpo curate`
Needs    Linux: /proc says and resets the largest memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

SIDE = 48
FINDINGS = ("nodule", "mass", "cyst", "abscess", "fracture")
IMAGES: dict[str, Callable[[int], int]] = {"few": lambda rows: 8, "third": lambda rows: rows // 3}
JUDGES = ("standin:strict", "standin:lenient", "standin:lexical")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--images", nargs="+", choices=IMAGES, default=list(IMAGES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)  # a child's source
    options = parser.parse_args()
    if options.of:
        print(json.dumps(curate(options.of)))
        return
    results = []
    for images in options.images:
        smaller = None
        for rows in sorted(options.rows):
            found = measure(rows, images, options)
            results.append({"images": images, "rows": rows, **found, **growth(rows, found, smaller)})
            smaller = {"rows": rows, **found}
            print(json.dumps(results[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": options.seed, "versions": versions(), "results": results}
        write_json(options.output, record)


def measure(rows: int, images: str, options: argparse.Namespace) -> dict[str, Any]:
    """Curate a source in a child process, whose memory is its own."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source")
        write_source(source, rows, IMAGES[images](rows), options.seed)
        typed = [sys.executable, __file__, "--of", str(source)]
        done = subprocess.run(typed, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The curation of {rows} questions ended with {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # progress bars come first
    return found


def growth(rows: int, found: dict[str, Any], smaller: dict[str, Any] | None) -> dict[str, Any]:
    """How much more than for the next smaller source: rows, CPU seconds without the imports, memory."""
    if smaller is None:
        return {}
    work = [sum(phase["cpu_s"] for name, phase in one["phases"].items() if name != "start") for one in (smaller, found)]
    ratios = {"rows": rows / smaller["rows"], "cpu": work[1] / work[0], "peak": found["peak_mb"] / smaller["peak_mb"]}
    return {"growth": {name: round(ratio, 2) for name, ratio in ratios.items()}}


def curate(source: Path) -> dict[str, Any]:
    """Run the command in this process, each phase measured."""
    from mmedpo import cli
    from mmedpo.curation import pipeline
    from mmedpo.curation import run as whole
    from mmedpo.hub import builders

    phases: dict[str, Any] = {}

    def measured(module: Any, name: str, phase: str | None = None) -> None:
        work = getattr(module, name)

        def run(*given: Any, **named: Any) -> Any:
            phases.setdefault("start", {"cpu_s": round(time.process_time(), 2), "peak_mb": peak()})
            Path("/proc/self/clear_refs").write_text("5")  # the largest memory so far is forgotten
            began = time.process_time()
            done = work(*given, **named)
            label = phase or given[0]  # the name of a step
            phases[label] = {"cpu_s": round(time.process_time() - began, 2), "peak_mb": peak()}
            print(label, phases[label], file=sys.stderr)
            return done

        setattr(module, name, run)

    measured(whole, "open_source", "read")
    measured(pipeline, "run_step")
    measured(pipeline, "_write_rows", "write")
    measured(builders.audit, "audit", "audit")
    measured(builders.cards, "write_dataset_card", "card")
    output = source.with_name("pairs")
    typed = ["curate", "--source", str(source), "--output", str(output), "--chat", "standin:rules", "--judges", *JUDGES]
    try:
        cli.main(typed)
    except SystemExit as ended:
        if ended.code:
            raise
    made = json.loads((output / "manifest.json").read_text())["counts"]
    return {
        "pairs": sum(made.values()), "cpu_s": round(time.process_time(), 2),
        "peak_mb": max(phase["peak_mb"] for phase in phases.values()), "phases": phases,
    }  # fmt: skip


def peak() -> float:
    """Largest resident memory in MB since it was last forgotten."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return round(int(said["VmHWM"].split()[0]) / 1024, 1)


def write_source(folder: Path, rows: int, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)).save(folder / f"{number}.png")
    with (folder / "samples.jsonl").open("w") as table:
        for number in range(rows):
            row = {"id": number, "image": f"{number % images}.png", "question": f"Question {number}?"}
            row |= gold(number)
            if number % 10:
                row["boxes"] = [{"label": "lesion", "x": number % 20, "y": number % 17, "w": 12, "h": 15}]
            table.write(json.dumps(row) + "\n")


def gold(number: int) -> dict[str, str]:
    finding = FINDINGS[number % len(FINDINGS)]
    report = f"The {finding} measures {number % 97} mm. There is no effusion. Study {number}. The heart is normal."
    return [
        {"answer": "yes"},
        {"answer": f"{finding} in the left lung"},
        {"answer": f"gallstone {number} of {number % 89} mm"},  # no rule of the stand-in knows a word of it
        {"answer": report, "task": "report"},
    ][number % 4]


if __name__ == "__main__":
    main()
