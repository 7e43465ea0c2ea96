"""Answers and samples a second, with the prefill of an image shared by its questions and with plain `generate`.

Run     python benchmarks/shared_prefill.py --output benchmarks/results/shared_prefill.json          two cores: 5 min
Model   `small` of train_throughput.py: 576 image tokens, random weights, float32; greedy or samples at temperature 1;
        8 new tokens. The first batch, which verifies sharing, is not timed.
Cases   train, test: 48 questions, as many an image as VQA-RAD's training (9.7) and test questions (2.2) have;
        samples: four samples of each of 8 questions, 8, 2 and 1 an image. Questions have 4 to 12 words.
Arms    `plain`: `generate` over batches of 16, every question with its image; `shared`: `VisionLanguageModel.answer` of
        the same batches. Arms take turns; their texts must be equal.
Reads   median CPU seconds (user) of the rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from train_throughput import SIDE, WORDS, model_and_processor

from mmedpo.models.generation import Sampling
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

GREEDY, SAMPLES = Sampling(8), Sampling(8, temperature=1.0, samples=4, seed=1)
CASES = {  # questions of each image
    "train": (GREEDY, [10, 9, 10, 10, 9]), "test": (GREEDY, [2, 2, 3, 2, 2] * 4 + [2, 2]),
    "samples, 8 an image": (SAMPLES, [8]), "samples, 2 an image": (SAMPLES, [2] * 4),
    "samples, 1 an image": (SAMPLES, [1] * 8),
}  # fmt: skip
BATCH = 16

Batch = list[tuple[Any, str]]


def questions(counts: list[int], rng: np.random.Generator) -> Batch:
    asked = []
    for count in counts:
        image = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
        for length in rng.integers(4, 13, size=count):
            asked.append((image, " ".join(f"word{word}" for word in rng.integers(WORDS, size=length))))
    return asked


def plain(model: VisionLanguageModel, batch: Batch, sampling: Sampling) -> list[list[str]]:
    drawn = {"temperature": sampling.temperature, "top_p": 1.0, "top_k": 0} if sampling.temperature else {}
    inputs = model.encode(batch)
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        tokens = model.model.generate(
            **inputs, max_new_tokens=sampling.max_new_tokens, num_return_sequences=sampling.samples,
            do_sample=bool(drawn), **drawn,
        )[:, inputs["input_ids"].shape[1] :].tolist()  # fmt: skip
    said = [model.reader.read([], own, sampling.max_new_tokens).said or "" for own in tokens]
    return [said[start : start + sampling.samples] for start in range(0, len(said), sampling.samples)]


def timed(answer: Callable[..., Any], asked: Batch, sampling: Sampling) -> tuple[list[Any], float]:
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    said = [answer(asked[start : start + BATCH], sampling) for start in range(0, len(asked), BATCH)]
    return said, resource.getrusage(resource.RUSAGE_SELF).ru_utime - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        for part in model_and_processor("small", options.seed):
            part.save_pretrained(folder)
        model = VisionLanguageModel(folder)
    model.answer(questions([2], rng), Sampling(2))
    results = {}
    for case, (sampling, counts) in CASES.items():
        seconds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            asked = questions(counts, rng)
            expected, one = timed(lambda batch, how: plain(model, batch, how), asked, sampling)
            found, two = timed(model.answer, asked, sampling)
            if found != expected:
                raise SystemExit(f"{case}: the answers differ.")
            seconds.append((one, two))
        before, now = (statistics.median(column) for column in zip(*seconds, strict=True))
        results[case] = {"plain": round(before, 2), "shared": round(now, 2), "ratio": round(before / now, 2)}
        print(case, json.dumps(results[case]), file=sys.stderr, flush=True)
    if options.output:
        record = {"command": " ".join(["python", *sys.argv]), "seed": options.seed, "versions": versions()}
        write_json(options.output, {**record, "results": results})


if __name__ == "__main__":
    main()
