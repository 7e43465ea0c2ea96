"""Accuracy by `strict@3` and `strict@4` of answers of known worth to VQA-RAD's closed questions that offer options.

Run      python benchmarks/choice_answers.py path/to/vqa-rad
Source   a folder with `qa.jsonl` (answer, answer_type, question); both splits, since such questions are few
Reads    a Markdown table in per cent, and answers a second of user CPU time. The gold answer deserves 100 in every
         style, also beside the other option; the other option, both, an echo, a hedge and a refusal deserve 0.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path

from mmedpo.data.choices import offered
from mmedpo.evaluation.metrics import closed, med_vqa

PROTOCOLS = ("strict@3", "strict")
RIGHT = (
    "{gold}", "{gold}.", "**{gold}**", "The answer is {gold}.", "Assistant: {gold}", "<answer>{gold}</answer>",
    "It is {gold}.", "The image shows {gold}.", "Based on the image, it appears to be {gold}.", "Yes, {gold}.",
    "{gold}, not {other}", "{gold} rather than {other}", "It is {gold}, as opposed to {other}.",
    "Not {other}, but {gold}.", "It is not {other}; it is {gold}.", "I believe this is {gold}, unlike {other}.",
)  # fmt: skip
WRONG = (
    "{other}", "It is {other}, not {gold}.", "{other} rather than {gold}", "Not {gold}, but {other}.",
    "It is not {gold}.", "neither {gold} nor {other}",
)  # fmt: skip
UNREAD = (
    "{gold} or {other}", "Both {gold} and {other}.", "It could be {gold} or {other}.", "It may be {gold}.",
    "Is it {gold} or {other}?", "I cannot tell whether it is {gold} or {other}.", "Unable to say if it is {gold}.",
)  # fmt: skip
Asked = tuple[str, str, str]  # question, gold answer, another option


def questions(folder: Path) -> list[Asked]:
    """The closed questions with options, of which the gold answer is one."""
    found = []
    for row in map(json.loads, (folder / "qa.jsonl").read_text(encoding="utf-8").splitlines()):
        options, gold = offered(row["question"]), str(row["answer"])
        chosen = closed.gold_option(gold, options, False) if row["answer_type"].strip() == "CLOSED" else None
        if isinstance(chosen, int):
            found.append((row["question"], gold.lower(), options[chosen - 1]))
    return found


def accuracy(asked: list[Asked], style: str, protocol: str) -> float:
    """Closed accuracy in [0, 1] of answers in one style."""
    texts, golds, _ = zip(*asked, strict=True)
    predictions = [style.format(gold=gold, other=other) for _, gold, other in asked]
    found = med_vqa.compute(predictions, golds, ["closed"] * len(golds), protocol, texts)
    return found["closed_accuracy"]


def speed(asked: list[Asked], protocol: str) -> float:
    """Answers a second of user CPU time, each question and style thrice."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    for style in RIGHT * 3:
        accuracy(asked, style, protocol)
    return 3 * len(RIGHT) * len(asked) / (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    asked = questions(parser.parse_args().folder)
    names = " | ".join(med_vqa.DEFINITIONS[name] for name in PROTOCOLS)
    print(f"{len(asked)} questions\n\n| prediction | deserves | {names} |")
    print("|---" * (len(PROTOCOLS) + 2) + "|")
    for worth, styles in ((100, RIGHT), (0, WRONG), (0, UNREAD)):
        for style in styles:
            found = [100 * accuracy(asked, style, protocol) for protocol in PROTOCOLS]
            print(f"| `{style}` | {worth} | {' | '.join(f'{value:.1f}' for value in found)} |")
    speeds = [f"{med_vqa.DEFINITIONS[name]} {speed(asked, name):,.0f}" for name in PROTOCOLS]
    print(f"\nAnswers a second: {', '.join(speeds)}")


if __name__ == "__main__":
    main()
