"""Speed and memory of answering: this project's batches against plain `generate` loops, on mixed lengths.

Run      python benchmarks/generation.py --output benchmarks/results/generation.json
Memory   python benchmarks/generation.py --memory 1000 10000 --output benchmarks/results/generation_memory.json
Model    a LLaVA of random weights, made on the spot (--width, --layers): speed depends on shapes, not on what is said.
         Its answers end where a drawn length says, the same in all arms: closed 1-3 tokens, open 2-24, reports 60-240,
         3 : 2 : 1 of each, in the order of their images; questions have 4 to 60 words.
Arms     `one_by_one`: `generate` for each question in the given order; `given_order`: batches of --batch-size in that
         order, left-padded; `ours`: `LocalModel`. All greedy, and their answers must be equal.
Reads    `speedup`: seconds of an arm over ours (required: 2 for a plain loop in the given order); medians of --repeats
         rounds, arms taking turns. `peak_mb`: largest resident memory of a whole `mmedpo evaluate`, flat in questions.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from curation_load import write_source
from PIL import Image

from mmedpo.data.images import open_rgb
from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.predict import batches
from mmedpo.evaluation.questions import Question, QuestionSet
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.quickstart import tiny
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

TASKS = {"closed_vqa": (1, 3), "open_vqa": (2, 24), "report": (60, 240)}  # answers' lengths in tokens
AN_IMAGE = ("closed_vqa",) * 3 + ("open_vqa",) * 2 + ("report",)
WORDS = [f"word{number}" for number in range(200)]
SIDE = 256
LONGEST = 256


class Lengths:
    """Makes answers of `model` end after the number of tokens set for the question's number, until `end`."""

    def __init__(self, model: VisionLanguageModel, lengths: list[int]) -> None:
        self.model, self.lengths, self.stop = model, torch.tensor(lengths), model.processor.tokenizer.eos_token_id
        self.rows, self.step = torch.tensor([0]), 0
        self._hook = model.model.lm_head.register_forward_hook(self._limit)
        self._generate = model.model.generate
        model.model.generate = self._begin

    def end(self) -> None:
        self._hook.remove()
        del self.model.model.generate

    def _begin(self, **inputs: Any) -> Any:
        texts = self.model.processor.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        numbers = [re.search(r"\d+", text) for text in texts]  # none where only the image is computed
        self.rows, self.step = torch.tensor([int(found[0]) if found else 0 for found in numbers]), 0
        return self._generate(**inputs)

    def _limit(self, module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        over = (self.step >= self.lengths[self.rows]).to(logits.device)
        logits[:, -1, self.stop] = torch.where(over, 1e4, -1e4).to(logits)
        self.step += 1
        return logits


def build(width: int, layers: int, count: int, folder: Path) -> VisionLanguageModel:
    """`tiny.build`'s model with a language model of this size."""
    from transformers import LlavaForConditionalGeneration

    small, processor = tiny.build([*WORDS, *map(str, range(count)), "Question"])
    config = small.config
    for name, value in {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "head_dim": width // 8,
        "num_attention_heads": 8, "num_key_value_heads": 8,
    }.items():  # fmt: skip
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return VisionLanguageModel(str(folder))


def draw(count: int, seed: int, folder: Path) -> tuple[QuestionSet, list[int]]:
    """Questions in the order of their images, and the lengths of their answers."""
    chance, pixels = random.Random(seed), np.random.default_rng(seed)
    questions, lengths = [], []
    for number in range(count):
        task, image = AN_IMAGE[number % len(AN_IMAGE)], folder / f"{number // len(AN_IMAGE)}.png"
        if not image.exists():
            Image.fromarray(pixels.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(image)
        text = " ".join(["Question", str(number), *chance.choices(WORDS, k=chance.randint(2, 58))])
        questions.append(Question(str(number), (image,), image.name, None, task, text, "yes"))
        lengths.append(chance.randint(*TASKS[task]))
    return QuestionSet(questions, open_rgb, {}), lengths


def in_given_order(model: VisionLanguageModel, asked: QuestionSet, size: int) -> dict[str, str]:
    """A plain loop: no more than processor, `generate` and decoding."""
    processor = model.processor
    found: dict[str, str] = {}
    unspoken = [i for i in processor.tokenizer.all_special_ids if i != processor.tokenizer.eos_token_id]
    for start in range(0, len(asked.questions), size):
        batch = asked.questions[start : start + size]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}],
                add_generation_prompt=True,
            )
            for question in batch
        ]
        images = [[*map(open_rgb, question.images)] for question in batch]
        inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            output = model.model.generate(
                **inputs.to(model.device), max_new_tokens=LONGEST, do_sample=False, suppress_tokens=unspoken
            )
        said = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found |= {question.id: text.strip() for question, text in zip(batch, said, strict=True)}
    return found


def ours(model: VisionLanguageModel, asked: QuestionSet, size: int) -> dict[str, str]:
    found: dict[str, dict[str, Any]] = {}
    generation = Generation(LONGEST, LONGEST, batch_size=size)
    LocalModel(model).answer(batches(asked.questions, generation), asked, generation, set(), found.update)
    return {id_: line["prediction"] for id_, line in found.items()}


def speed(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        asked, lengths = draw(options.questions, options.seed, Path(scratch))
        model = build(options.width, options.layers, options.questions, Path(scratch) / "model")
        found = compare(model, asked, lengths, options.batch_size, options.repeats)
    return {"parameters": sum(parameter.numel() for parameter in model.model.parameters()), **found}


def compare(
    model: VisionLanguageModel, asked: QuestionSet, lengths: list[int], size: int, repeats: int, one_by_one: bool = True
) -> dict[str, Any]:
    """Return speed and differences of the arms' answers; `one_by_one` may be left out."""
    arms: dict[str, Callable[[], dict[str, str]]] = {
        "one_by_one": lambda: in_given_order(model, asked, 1),
        "given_order": lambda: in_given_order(model, asked, size),
        "ours": lambda: ours(model, asked, size),
    }
    if not one_by_one:
        del arms["one_by_one"]
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    answers: dict[str, dict[str, str]] = {}
    limits = Lengths(model, lengths)
    try:
        for _ in range(repeats):
            for name, arm in arms.items():
                began = time.perf_counter()
                answers[name] = arm()
                seconds[name].append(time.perf_counter() - began)
    finally:
        limits.end()
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "seconds": {name: [round(second, 2) for second in found] for name, found in seconds.items()},
        "questions_per_second": {name: round(len(lengths) / second, 2) for name, second in medians.items()},
        "speedup": {name: round(medians[name] / medians["ours"], 2) for name in medians},
        "answers_unlike_ours": {
            name: sum(found[id_] != answers["ours"][id_] for id_ in found) for name, found in answers.items()
        },
    }


def memory(rows: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        write_source(Path(scratch) / "source", rows, rows // 5, seed)
        model, processor = tiny.build(WORDS)
        model.save_pretrained(f"{scratch}/model")
        processor.save_pretrained(f"{scratch}/model")
        typed = [sys.executable, "-m", "mmedpo.cli", "evaluate", "--model", f"{scratch}/model", "--max_new_tokens", "4"]
        began = time.monotonic()
        where = ["--source", f"{scratch}/source", "--output", f"{scratch}/answers"]
        done = subprocess.run([*typed, *where], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
    # The largest of all children so far, so that sources must grow.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"questions": rows, "seconds": round(time.monotonic() - began, 1), "peak_mb": round(peak, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, nargs="+", metavar="QUESTIONS", help="measure memory instead")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = [memory(rows, options.seed) for rows in sorted(options.memory)] if options.memory else speed(options)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    record = {"command": " ".join(sys.argv), "settings": settings, "versions": versions(), "results": found}
    print(json.dumps(record, indent=2))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.output, record)


if __name__ == "__main__":
    main()
