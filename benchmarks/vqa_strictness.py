"""Scores of the protocols for answers of known worth, on the closed questions of VQA-RAD's official test split.

Run      python benchmarks/vqa_strictness.py path/to/vqa-rad
Source   a folder with `qa.jsonl` (split, answer, answer_type, question); eval/med_vqa/contradictions.json
Reads    a Markdown table of closed accuracy in per cent. The gold answer, bare or in a sentence, deserves 100; a
         constant "yes" what the split holds of it; a sentence that contradicts the gold answer 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from mmedpo.evaluation.metrics import med_vqa

STYLES = (
    "The answer is {}.", "{}, as the image shows.", "**{}**", "Answer: {}\n\nRead with care.", "I would say {}",
)  # fmt: skip
PROTOCOLS = ("strict", "strict@3", "paper", "llava_med")
CONTRADICTIONS = Path(__file__).parents[1] / "eval" / "med_vqa" / "contradictions.json"


class Answered(NamedTuple):
    """Predictions, references and questions, one each a row."""

    predictions: list[str]
    references: list[str]
    questions: list[str]


def closed_answers(folder: Path) -> Answered:
    """The gold answers of the closed test questions, as predictions and references."""
    lines = (folder / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "test" and row["answer_type"].strip() == "CLOSED"]
    gold = [str(row["answer"]) for row in rows]
    return Answered(gold, gold, [row["question"] for row in rows])


def answers(gold: Answered) -> dict[str, Answered]:
    """Answers by what the predictions are."""
    rows = json.loads(CONTRADICTIONS.read_text(encoding="utf-8"))
    contradictions = ([row[name] for row in rows] for name in ("prediction", "reference", "question"))
    return {
        "the gold answer": gold,
        **{
            f"`{style!r}`": gold._replace(predictions=[style.format(answer) for answer in gold.references])
            for style in STYLES
        },
        '"yes" everywhere': gold._replace(predictions=["yes"] * len(gold.references)),
        "contradicting sentences": Answered(*contradictions),
    }


def accuracies(gold: Answered) -> dict[str, dict[str, float]]:
    """Closed accuracy in [0, 1] by what the predictions are, and by protocol."""
    return {kind: {name: _accuracy(answered, name) for name in PROTOCOLS} for kind, answered in answers(gold).items()}


def _accuracy(answered: Answered, protocol: str) -> float:
    predictions, references, questions = answered
    found = med_vqa.compute(predictions, references, ["closed"] * len(references), protocol, questions)
    return found["closed_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    gold = closed_answers(parser.parse_args().folder)
    print(f"{len(gold.questions)} closed questions; {', '.join(med_vqa.DEFINITIONS[name] for name in PROTOCOLS)}\n")
    print(f"| prediction | {' | '.join(f'`{name}`' for name in PROTOCOLS)} |")
    print("|---" * (len(PROTOCOLS) + 1) + "|")
    for kind, found in accuracies(gold).items():
        print(f"| {kind} | {' | '.join(f'{100 * value:.1f}' for value in found.values())} |")


if __name__ == "__main__":
    main()
