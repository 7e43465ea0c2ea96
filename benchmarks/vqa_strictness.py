"""Scores of three protocols for answers of known worth, on the closed questions of VQA-RAD's official test split.

Run      python benchmarks/vqa_strictness.py path/to/vqa-rad
Source   a folder with `qa.jsonl` (split, answer, answer_type); the sentences of eval/med_vqa/contradictions.json
Reads    a Markdown table of closed accuracy in per cent. The gold answer, bare or in a sentence, deserves 100; a
         constant "yes" what the split holds of it; a sentence that contradicts the gold answer 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mmedpo.evaluation.metrics import med_vqa

STYLES = (
    "The answer is {}.", "{}, as the image shows.", "**{}**", "Answer: {}\n\nRead with care.", "I would say {}",
)  # fmt: skip
PROTOCOLS = ("strict", "paper", "llava_med")
CONTRADICTIONS = Path(__file__).parents[1] / "eval" / "med_vqa" / "contradictions.json"


def closed_answers(folder: Path) -> list[str]:
    """The gold answers of the closed test questions."""
    lines = (folder / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "test"]
    return [str(row["answer"]) for row in rows if row["answer_type"].strip() == "CLOSED"]


def answers(gold: list[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Predictions and references by what the predictions are."""
    rows = json.loads(CONTRADICTIONS.read_text(encoding="utf-8"))
    return {
        "the gold answer": (gold, gold),
        **{f"`{style!r}`": ([style.format(answer) for answer in gold], gold) for style in STYLES},
        '"yes" everywhere': (["yes"] * len(gold), gold),
        "contradicting sentences": ([row["prediction"] for row in rows], [row["reference"] for row in rows]),
    }


def accuracies(gold: list[str]) -> dict[str, dict[str, float]]:
    """Closed accuracy in [0, 1] by what the predictions are, and by protocol."""
    return {
        kind: {
            protocol: med_vqa.compute(said, references, ["closed"] * len(said), protocol)["closed_accuracy"]
            for protocol in PROTOCOLS
        }
        for kind, (said, references) in answers(gold).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    gold = closed_answers(parser.parse_args().folder)
    print(f"{len(gold)} closed questions; {', '.join(med_vqa.DEFINITIONS[name] for name in PROTOCOLS)}\n")
    print(f"| prediction | {' | '.join(f'`{name}`' for name in PROTOCOLS)} |")
    print("|---" * (len(PROTOCOLS) + 1) + "|")
    for kind, found in accuracies(gold).items():
        print(f"| {kind} | {' | '.join(f'{100 * value:.1f}' for value in found.values())} |")


if __name__ == "__main__":
    main()
