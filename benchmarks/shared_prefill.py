"""Answers and samples a second, with the prefill of an image shared by its questions and with plain `generate`.

Run     python benchmarks/shared_prefill.py --output benchmarks/results/shared_prefill.json      CPU time: 10 minutes
        python benchmarks/shared_prefill.py --cases evaluate_test --rounds 1 --images 75 --output
        benchmarks/results/shared_prefill_evaluate_test.json                                      CPU time: 3 minutes
        python benchmarks/shared_prefill.py --cases evaluate_train --rounds 1 --images 20 --output
        benchmarks/results/shared_prefill_evaluate_train.json                                     CPU time: 4 minutes
Model   `small` of train_throughput.py: 576 image tokens, random weights, float32; greedy or samples at temperature 1;
        8 new tokens, of words that the tokenizer has. The first batch, which verifies sharing, is not timed.
Cases   train, test: 48 questions, as many an image as VQA-RAD's training (9.7) and test questions (2.2) have;
        samples8, samples2, samples1: four samples of each of 8 questions, so many an image. Questions have 4 to 12
        words.
        evaluate_train, evaluate_test: all of `mmedpo evaluate` but loading the model, verification of the first batch
        included, on VQA-RAD's official questions, training or test, about the first --images images (or all).
        Skipped where --data is missing.
Arms    `plain`: `generate` over batches of 16, every question with its image; `shared`: `VisionLanguageModel.answer` of
        the same batches. Evaluations: the same with sharing off and on. Arms take turns; their texts must be equal.
Reads   `plain`, `shared`: median CPU seconds of the rounds, user and system; `ratio`: of user seconds; `operations`:
        ratio of matrix operations and attention, counted by torch in one more round: what sharing allows; `share`:
        ratio / operations. Evaluations: `questions` instead.
"""

from __future__ import annotations

import argparse
import json
import operator
import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from train_throughput import SIDE, WORDS, counting, model_and_processor

from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.questions import Asked, read
from mmedpo.models.generation import Sampling
from mmedpo.models.prompts import Sharing
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

GREEDY, SAMPLES = Sampling(8), Sampling(8, temperature=1.0, samples=4, seed=1)
CASES = {  # questions of each image
    "train": (GREEDY, [10, 9, 10, 10, 9]), "test": (GREEDY, [2, 2, 3, 2, 2] * 4 + [2, 2]),
    "samples8": (SAMPLES, [8]), "samples2": (SAMPLES, [2] * 4), "samples1": (SAMPLES, [1] * 8),
}  # fmt: skip
EVALUATIONS = {"evaluate_train": "train", "evaluate_test": "test"}
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
    inputs = model.encode(batch).to(model.device)
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        tokens = model.model.generate(
            **inputs, max_new_tokens=sampling.max_new_tokens, num_return_sequences=sampling.samples,
            do_sample=bool(drawn), **drawn,
        )[:, inputs["input_ids"].shape[1] :].tolist()  # fmt: skip
    said = [model.reader.read([], own, sampling.max_new_tokens).said or "" for own in tokens]
    return [said[start : start + sampling.samples] for start in range(0, len(said), sampling.samples)]


def evaluated(model: VisionLanguageModel, data: Path, split: str, images: int | None, share: bool) -> list[str]:
    """Return the scored answers of an evaluation."""
    asked = read(Asked(data, split=split, official_split=True, skip_faulty=True), None, lambda: model.processor)
    shown = {*list(dict.fromkeys(question.images for question in asked.questions))[:images]}
    asked = replace(asked, questions=[question for question in asked.questions if question.images in shown])
    model.generating = Sharing(model.processor, model.called)
    model.generating.share = model.generating.share if share else ""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(lambda tasks: LocalModel(model), asked, Path(folder), Generation(8, 8, batch_size=BATCH))
        lines = (Path(folder) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["prediction"] for line in lines]


def timed(answer: Callable[[], list[Any]]) -> tuple[list[Any], np.ndarray]:
    """Return the answers, and their user and system seconds."""
    began = resource.getrusage(resource.RUSAGE_SELF)
    said = answer()
    ended = resource.getrusage(resource.RUSAGE_SELF)
    return said, np.array([ended.ru_utime - began.ru_utime, ended.ru_stime - began.ru_stime])


def counted(answer: Callable[[], list[Any]]) -> int:
    """Return the operations of the answers."""
    with counting() as counter:
        answer()
    return int(counter.get_total_flops())


def speaking(model: Any, processor: Any) -> VisionLanguageModel:
    """Return a model as one that answers; it says words of its tokenizer, since other tokens read as ''."""
    with torch.no_grad():
        known = len(processor.tokenizer)
        model.lm_head.weight[:known] *= 10
        model.lm_head.weight[known:] /= 100
    with tempfile.TemporaryDirectory() as folder:
        for part in (model.config, processor):
            part.save_pretrained(folder)
        return VisionLanguageModel(folder, weights=model)


Answering = Callable[[], list[list[str]]]


def arms(model: VisionLanguageModel, asked: Batch, sampling: Sampling) -> tuple[Answering, Answering]:
    """Return the plain and the shared way to the answers."""
    batches = [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]
    return (
        lambda: [said for batch in batches for said in plain(model, batch, sampling)],
        lambda: [said for batch in batches for said in model.answer(batch, sampling)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *EVALUATIONS], default=[*CASES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/vqa-rad"), help="folder of VQA-RAD")
    parser.add_argument("--images", type=int, help="images of an evaluation; all by default")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    model = speaking(*model_and_processor("small", options.seed))
    model.answer(questions([2], rng), Sampling(2))

    def ways(case: str) -> tuple[Callable[[], list[Any]], Callable[[], list[Any]]]:
        if split := EVALUATIONS.get(case):
            off, on = (partial(evaluated, model, options.data, split, options.images, share) for share in (False, True))
            return off, on
        sampling, counts = CASES[case]
        return arms(model, questions(counts, rng), sampling)

    results = {}
    for case in options.cases:
        if case in EVALUATIONS and not options.data.exists():
            print(f"{case}: skipped, {options.data} is missing; name VQA-RAD's folder with --data.", file=sys.stderr)
            continue
        seconds = []
        for _ in range(options.rounds):
            (expected, one), (found, two) = map(timed, ways(case))
            if found != expected or len({*map(str, found)}) < 2:
                raise SystemExit(f"{case}: the answers differ between the arms, or none between questions.")
            seconds.append((one, two))
        before, now = (np.median(column, axis=0).round(2) for column in zip(*seconds, strict=True))
        ratio = before[0] / now[0]
        results[case] = {"plain": before.tolist(), "shared": now.tolist(), "ratio": round(ratio, 2)}
        if case in CASES:
            operations = operator.truediv(*map(counted, ways(case)))
            results[case] |= {"operations": round(operations, 2), "share": round(ratio / operations, 2)}
        else:
            results[case] |= {"questions": len(found)}
        print(case, json.dumps(results[case]), file=sys.stderr, flush=True)
    if options.output:
        record = {"command": " ".join(["python", *sys.argv]), "seed": options.seed, "versions": versions()}
        write_json(options.output, {**record, "results": results})


if __name__ == "__main__":
    main()
