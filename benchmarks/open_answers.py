"""Scores by `strict@3` and `strict@4` of open answers of known worth, on VQA-RAD's official test split.

Run      python benchmarks/open_answers.py path/to/vqa-rad
Source   a folder with `qa.jsonl` (split, answer, answer_type, question)
Reads    a Markdown table in per cent, and answers a second of user CPU time. The gold answer in another style deserves
         a recall of 100, its denial, the other side and function words alone 0.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path

from mmedpo.data.laterality import sides
from mmedpo.evaluation.metrics import med_vqa

PROTOCOLS = ("strict@3", "strict")
NUMBERS = {"0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "3rd": "third", "4th": "fourth"}
SIDES = {"left": "right", "right": "left", "l": "R", "r": "L"}
Change = Callable[[str], str]


def exchanged(pairs: dict[str, str]) -> Change:
    """Return a function that exchanges whole words with their partners, whatever their case."""
    partners = pairs | {value.lower(): key for key, value in pairs.items()}
    either = re.compile(rf"(?<![\w.])(?:{'|'.join(partners)})(?![\w.]*\w)", re.IGNORECASE)
    return lambda text: either.sub(lambda found: partners[found[0].lower()], text)


def plural(text: str) -> str:
    """Return the text with its last word in the plural, where that is a singular of four letters or more."""
    found = re.search(r"(?i)[a-z]{3,}(?:[b-df-rt-z]|(?<!a)e)(?=\W*$)", text)
    if not found or found[0].endswith("ly"):
        return text
    word = found[0]
    many = (
        word[:-1] + "ies"
        if re.search("[^aeiou]y$", word)
        else word + ("es" if re.search("(?:x|ch|sh)$", word) else "s")
    )
    return text[: found.start()] + many + text[found.end() :]


RIGHT: dict[str, Change] = {
    "the gold answer": str,
    "`It is the {}.`": "It is the {}.".format,
    "`The image shows {}, as marked.`": "The image shows {}, as marked.".format,
    "`**{}**`": "**{}**".format,
    "in capitals": str.upper,
    "numbers as words and words as numbers": exchanged(NUMBERS),
    "last word in the plural": plural,
    "hyphens as spaces": lambda text: text.replace("-", " "),
    "`weighted` and `ray` after a hyphen": lambda text: re.sub(r"(?i)\s(?=weighted|ray)|(?<=x)(?=ray)", "-", text),
    "without articles and `of`, `in`, `on`": lambda text: re.sub(r"(?i)\b(?:the|an?|of|in|on) ", "", text),
    "British spelling": exchanged({"hemorrhage": "haemorrhage", "hyperemia": "hyperaemia", "cecum": "caecum"}),
}  # fmt: skip
WRONG: dict[str, Change] = {
    "`It is not {}.`": "It is not {}.".format,
    "`the a of in on and`": lambda _: "the a of in on and",
}
FLIPPED: dict[str, Change] = {
    "the other side": exchanged(SIDES),
    "`It is in the {}.`, the other side": lambda text: f"It is in the {exchanged(SIDES)(text)}.",
    "both sides": lambda text: re.sub(r"(?i)\b(?:left|right|R|L)\b", "left and right", text),
}


def questions(folder: Path) -> list[tuple[str, str]]:
    """The gold answers and questions of the open test questions."""
    lines = (folder / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "test" and row["answer_type"].strip() == "OPEN"]
    return [(str(row["answer"]), row["question"]) for row in rows]


def measured(asked: list[tuple[str, str]], change: Change, protocol: str) -> dict[str, float]:
    """`med_vqa.compute` of changed gold answers."""
    gold, texts = zip(*asked, strict=True)
    return med_vqa.compute([*map(change, gold)], gold, ["open"] * len(gold), protocol, texts)


def table(asked: list[tuple[str, str]]) -> list[tuple[str, int, int, list[float]]]:
    """Answers, questions, those that the change alters, and recall and exact match in [0, 1] by protocol."""
    sided = [row for row in asked if len(sides(row[0])) == 1 and "both" not in sides(row[0])]
    rows = [(name, asked, change) for name, change in (RIGHT | WRONG).items()]
    rows += [(name, sided, change) for name, change in FLIPPED.items()]
    found = []
    for name, own, change in rows:
        scores = [measured(own, change, protocol) for protocol in PROTOCOLS]
        values = [one[key] for one in scores for key in ("open_recall", "open_exact_match")]
        found.append((name, len(own), sum(change(gold) != gold for gold, _ in own), values))
    return found


def speed(asked: list[tuple[str, str]], protocol: str, repeats: int = 40) -> float:
    """Answers a second of user CPU time; each answer is a text of its own."""
    for warm in (True, False):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        for i in range(repeats):
            measured(asked, f"The image shows {{}} in section {i + repeats * warm}.".format, protocol)
    return repeats * len(asked) / (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    asked = questions(parser.parse_args().folder)
    names = [f"{med_vqa.DEFINITIONS[name]} {value}" for name in PROTOCOLS for value in ("recall", "exact")]
    print(f"| prediction | questions | altered | {' | '.join(names)} |")
    print("|---" * (len(names) + 3) + "|")
    for name, count, altered, values in table(asked):
        print(f"| {name} | {count} | {altered} | {' | '.join(f'{100 * value:.1f}' for value in values)} |")
    speeds = [f"{med_vqa.DEFINITIONS[name]} {speed(asked, name):,.0f}" for name in PROTOCOLS]
    print(f"\nAnswers a second: {', '.join(speeds)}")


if __name__ == "__main__":
    main()
