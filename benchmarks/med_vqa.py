"""Time and memory of the `med_vqa` metric on one core, alone and through `evaluate.load(...).compute`.

Run      OMP_NUM_THREADS=1 python benchmarks/med_vqa.py --answers 100000 --output benchmarks/results/med_vqa.json
Source   drawn on the spot: short and sentence-long answers, half of them to closed questions
Reads    seconds for each protocol, and the largest resident memory of the process
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import evaluate

from mmedpo.evaluation.metrics import med_vqa
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

METRIC = Path(__file__).parents[1] / "eval" / "med_vqa"
WORDS = ("left", "right", "lower", "lobe", "lung", "heart", "nodule", "of", "the", "in", "a", "not", "no", "enlarged")


def draw(count: int, seed: int) -> dict[str, list[str]]:
    """Columns of `count` answers: every third a word or two, the others sentences of 8 to 20 words."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    kinds = ["closed" if i % 2 else "open" for i in range(count)]
    return {
        "predictions": [text(1, 2) if i % 3 else f"{rng.choice(('Yes', 'No'))}, {text(8, 20)}." for i in range(count)],
        "references": [rng.choice(("yes", "no")) if kind == "closed" else text(1, 4) for kind in kinds],
        "answer_types": kinds,
    }


def seconds(compute: Callable[..., object], **arguments: object) -> float:
    began = time.perf_counter()
    compute(**arguments)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    columns = draw(asked.answers, asked.seed)
    metric = evaluate.load(str(METRIC))
    found = {
        "answers": asked.answers,
        "seconds": {name: seconds(med_vqa.compute, **columns, protocol=name) for name in med_vqa.PROTOCOLS},
        "seconds_through_evaluate": {
            name: seconds(metric.compute, **columns, protocol=name) for name in med_vqa.PROTOCOLS
        },
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(found, indent=2))
    if asked.output:
        asked.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": asked.seed, "versions": versions(), "results": found}
        write_json(asked.output, record)


if __name__ == "__main__":
    main()
