"""Time and memory of `mmedpo audit` and `mmedpo compare` as pairs and questions grow.

Run      python benchmarks/audit_compare_load.py --rows 10000 50000 --output benchmarks/results/audit_compare_load.json
Against  --before CHECKOUT: another checkout of this project does the same in turn; answers must be equal to 1e-9
Source   made on the spot. A preference dataset: one 128 x 128 grey PNG for every ten pairs, half of the pairs wrong
         answers that two judges scored, half noised lesions, each with a noised image of its own; texts of 1 to 80
         words. Two evaluations of as many questions about a fifth as many images: in ten five are closed, one asks for
         a report. An image has one organ and one modality; kinds of questions are mixed.
Reads    of each command in its own process: `seconds` of processor time (user and system), `peak_mb` of resident
         memory; medians of --repeats rounds. `speedup`: seconds before over seconds now. Linear is a `ms_a_row` that
         stays as it is while rows grow.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmedpo import schema
from mmedpo.data import shards
from mmedpo.data.images import open_rgb
from mmedpo.evaluation.questions import Question, QuestionSet
from mmedpo.evaluation.rescore import score_predictions
from mmedpo.evaluation.score import Scoring
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import versions

HERE = Path(__file__).parents[1]
SIDE, LESION = 128, 32
A_PICTURE, AN_IMAGE = 10, 5  # pairs about one picture, questions about one image
FINDINGS = ("nodule", "effusion", "opacity", "pneumothorax", "fracture", "mass", "edema", "T₂‑weighted lesion")
ORGANS = ("lung", "heart", "brain", "liver", "kidney", "spine")
MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
WORDS = [word for line in (
    "the heart lungs is are normal enlarged clear without focal consolidation pleural effusion evidence of acute",
    "disease mild moderate severe bilateral left right lower upper lobe opacity may represent mediastinal silhouette",
    "within limits osseous structures intact degenerative changes thoracic spine calcified granuloma unchanged tube",
) for word in line.split()]  # fmt: skip
COMMANDS: dict[str, list[str]] = {
    "audit": ["audit", "{data}/pairs"],
    "compare": ["compare", "{data}/start", "{data}/mmedpo"],
}
# A small process between: the largest memory of a child begins with that of the process that starts it.
LAUNCH = """
import json, os, subprocess, sys
_, status, used = os.wait4(subprocess.Popen(sys.argv[1:], stdout=2).pid, 0)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""
ANSWERS = {"audit": "audit.json", "compare": "comparison.json"}


def sentence(chance: random.Random, least: int, most: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(least, most))).capitalize() + "."


def ask(chance: random.Random, number: int) -> tuple[str, str, str, str]:
    """Task, question, right answer and wrong answer."""
    finding, other = chance.sample(FINDINGS, 2)
    if number % 10 == 9:
        return "report", "Describe the image.", sentence(chance, 20, 80), sentence(chance, 20, 80)
    if number % 2:
        gold, wrong = chance.choice((("yes", "no"), ("no", "yes"), ("Yes, it is.", "No, there is none.")))
        return "closed_vqa", f"Is there a {finding} in case {number}?", gold, wrong
    where = sentence(chance, 1, 10)
    return "open_vqa", f"What is seen at place {number}?", f"{finding} in {where}", f"{other}, {where}"


def png(pixels: np.ndarray, name: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": name}


def pairs(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows as `mmedpo curate` writes them: the two pairs of a question, the questions of a picture."""
    chance, rng = random.Random(seed), np.random.default_rng(seed)
    for number in range(count):
        visual = number % 2 == 1
        if number % A_PICTURE == 0:
            rough = Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).resize((SIDE, SIDE))
            pixels = np.clip(np.asarray(rough) + rng.normal(0, 5, (SIDE, SIDE)), 0, 255).astype(np.uint8)
            image = png(pixels, f"{number}.png")
        if not visual:
            task, question, gold, wrong = ask(chance, number // 2)
        x, y = map(int, rng.integers(0, SIDE - LESION, 2))
        noised = pixels.copy()
        noised[y : y + LESION, x : x + LESION] = rng.integers(0, 256, (LESION, LESION))
        score = chance.randint(0, 10) / 10
        said = [
            {"round": turn, "judge": f"judge-{judge}", "rationale": sentence(chance, 5, 20),
             "score": None if chance.random() < 0.02 else min(1.0, score + 0.1 * chance.randint(0, 1))}
            for turn in range(1, chance.randint(2, 4)) for judge in "abc"
        ]  # fmt: skip
        box = {"label": "lesion", "x": x, "y": y, "width": LESION, "height": LESION, "confidence": 1.0}
        provenance = dict.fromkeys(schema.FEATURES["provenance"]) | {
            "sample_id": str(number // 2), "image_id": f"{number // A_PICTURE}.png", "seed": seed,
            "patient_id": f"patient {number // (2 * A_PICTURE)}",
        }  # fmt: skip
        provenance |= (
            {"rejected_by": "diffusion", "localizer": "boxes", "boxes": [box], "noise": "diffusion", "noise_step": 800,
             "mask_coverage": (LESION / SIDE) ** 2}
            if visual
            else {"rejected_by": "a model", "prompt_version": "inject@1", "judgements": said, "agreed": True,
                  "candidates": [sentence(chance, 1, 20) for _ in range(4)]}
        )  # fmt: skip
        kind = schema.DISPREFERENCES[visual]
        yield {
            "id": f"load/{number // 2}/{kind}", "images": [image],
            "rejected_images": [png(noised, f"{number}-noised.png")] if visual else None,
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": gold}],
            "rejected": [{"role": "assistant", "content": gold if visual else wrong}],
            "weight": 0.75 + score / 2, "clinical_relevance": score, "dispreference": kind, "task": task,
            "source": "load", "license": "cc0-1.0", "provenance": provenance,
        }  # fmt: skip


def evaluations(count: int, seed: int, folder: Path) -> None:
    """Two evaluation folders: the second one is right a little more often."""
    chance = random.Random(seed)
    asked, wrong = [], []
    for number in range(count):
        task, text, gold, other = ask(chance, number)
        image, kind = number // AN_IMAGE, chance.choice(["presence", "position", "size", "organ system", None])
        named = (
            f"{image}.png",
            f"patient {image // 2}",
            task,
            text,
            gold,
            kind,
            ORGANS[image % 6],
            MODALITIES[image % 4],
        )
        asked.append(Question(str(number), (Path(named[0]),), *named, f"{image:064x}"))
        wrong.append(other)
    questions = QuestionSet(asked, open_rgb, {"source": "load", "split": "test"})
    for name, right in (("start", 0.5), ("mmedpo", 0.52)):
        lines = [
            json.dumps({"id": one.id, "prediction": one.reference if chance.random() < right else other}) + "\n"
            for one, other in zip(asked, wrong, strict=True)
        ]
        made = folder / f"{name}.jsonl"
        made.write_text("".join(lines), encoding="utf-8")
        (folder / name).mkdir()
        scoring = Scoring(meteor_variant="nltk_exact_stem")
        score_predictions(questions, made, folder / name, scoring, {"name": name, "command": ""})


def run(command: str, data: Path, output: Path, checkout: Path) -> dict[str, float]:
    """Processor seconds and largest resident memory of one command in a process of its own."""
    typed = [word.format(data=data) for word in COMMANDS[command]]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LAUNCH, sys.executable, "-m", "mmedpo.cli", *typed, "--output", str(output)],
        env=environment, cwd=data, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, kilobytes = json.loads(done.stdout)
    return {"seconds": round(seconds, 2), "peak_mb": round(kilobytes / 1024, 1)}


def measure(rows: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    checkouts = {"now": HERE} | ({"before": options.before.resolve()} if options.before else {})
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        if "audit" in options.commands:
            shards.save(pairs(rows, options.seed), data / "pairs")
        if "compare" in options.commands:
            evaluations(rows, options.seed, data)
        for command in options.commands:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
            for turn in range(options.repeats):
                for name, checkout in checkouts.items():
                    found[name].append(run(command, data, data / f"{command}-{name}-{turn}", checkout))
            answers = {name: answer(data / f"{command}-{name}-0" / ANSWERS[command]) for name in checkouts}
            yield {"command": command, "rows": rows} | summary(found, answers)


def summary(found: dict[str, list[dict[str, float]]], answers: dict[str, Any]) -> dict[str, Any]:
    medians = {
        name: {key: statistics.median(turn[key] for turn in turns) for key in turns[0]} for name, turns in found.items()
    }
    if len(medians) == 1:
        return medians
    ratios = [before["seconds"] / now["seconds"] for before, now in zip(found["before"], found["now"], strict=True)]
    equal = answers["before"] == answers["now"]
    return {**medians, "speedup": [round(ratio, 2) for ratio in ratios], "equal_answers": equal}


def answer(file: Path) -> Any:
    """What a command found, to nine decimals, without the version and the command line."""
    found = json.loads(file.read_text(), parse_float=lambda digits: round(float(digits), 9))
    return {key: value for key, value in found.items() if key not in ("versions", "command")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10000, 50000], help="of pairs and of questions")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--before", type=Path, help="checkout of another version, measured in turn")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = []
    for rows in options.rows:
        for found in measure(rows, options):
            milliseconds = round(1000 * found["now"]["seconds"] / rows, 3)
            results.append(found | {"ms_a_row": milliseconds})
            print(json.dumps(results[-1]), flush=True)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"command": " ".join(sys.argv), "seed": options.seed, "versions": versions(), "results": results}
        write_json(options.output, record)


if __name__ == "__main__":
    main()
