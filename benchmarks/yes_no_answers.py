"""Accuracy by `strict@3` and `strict@4` of answers of known worth to VQA-RAD's yes/no test questions.

Run      python benchmarks/yes_no_answers.py path/to/vqa-rad
Source   a folder with `qa.jsonl` (split, answer, question)
Reads    a Markdown table in per cent: what the gold answer says, stated in ten styles, deserves 100; its contrary in
         the same styles, hedges, refusals and echoes deserve 0. Then answers a second of user CPU time.

Questions are turned round by rules of their own: "Is there X?" becomes "There is (no) X.", "Is the X Y?" "The X is
(not) Y.". The few that cannot be are left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
from pathlib import Path
from typing import NamedTuple

from mmedpo.evaluation.metrics import med_vqa

PROTOCOLS = ("strict@3", "strict")
# Words that a predicate begins with, if it is not the last word alone.
_PREDICATES = frozenset((
    "within", "present", "visible", "visualized", "seen", "obscured", "clearly", "well", "well-defined", "less",
    "wider", "abnormally", "normal", "showing", "taken", "safe", "consistent", "highlighted", "be", "cause", "given",
))  # fmt: skip
_VERBS = "show|look|appear|represent|have|receive"
_DETERMINERS = frozenset(("the", "a", "an", "these", "this"))

STYLES = (
    "{said}.", "{word}, {lower}.", "{lower}", "The image shows that {lower}.", "Assistant: {said}.",
    "{said}. The image is of good quality.", "<answer>{said}</answer>", "**Answer:** {said}\n\nRead with care.",
    "Based on the image, {lower}.", "I believe that {lower}.",
)  # fmt: skip
UNREAD = (
    "I cannot determine whether {lower}.", "It is possible that {lower}.", "It is unclear if {lower}.", "yes or no",
    "[yes, no]", "I am unable to provide a definitive yes or no answer.",
)  # fmt: skip
# Answers per question by which speed is measured: a third each bare, with a statement, and a statement alone.
MIXED = ("{word}", "{word}.", "{word}, {lower}.", "{word}. {said}.", "{said}.", "The image shows that {lower}.")


class Statements(NamedTuple):
    """What a question asks, stated and denied, in lower case."""

    yes: str
    no: str


def statements(question: str) -> Statements | None:
    """Return the statements that a yes/no question asks about; None if it cannot be turned round."""
    text = " ".join(question.strip(" ?").split())
    text = text[:1].lower() + text[1:]
    if found := re.fullmatch(r"(is|are) there ((?:an? |any )?)(.+)", text):
        verb, article, thing = found.groups()
        return Statements(f"there {verb} {article if article != 'any ' else ''}{thing}", f"there {verb} no {thing}")
    if found := re.fullmatch(r"(?:can|do) you (see|evaluate) (.+)", text):
        return Statements(f"you can {found[1]} {found[2]}", f"you cannot {found[1]} {found[2]}")
    if found := re.fullmatch(r"evidence of (.+)", text):
        return Statements(f"there is evidence of {found[1]}", f"there is no evidence of {found[1]}")
    auxiliary, _, rest = text.partition(" ")
    if found := re.fullmatch(rf"(.+?) ({_VERBS}) (.+)", rest) if auxiliary in ("does", "do", "did") else None:
        subject, verb, thing = found.groups()
        past = {"does": "has" if verb == "have" else f"{verb}s", "do": verb, "did": f"{verb}d"}[auxiliary]
        return Statements(f"{subject} {past} {thing}", f"{subject} {auxiliary} not {verb} {thing}")
    heads = rest.split(" ")
    if (
        auxiliary not in ("is", "are", "was", "can", "has")
        or " and is " in rest
        or heads[0] == "anything"
        or "is" in heads
    ):
        return None
    first = 2 if heads[0] in _DETERMINERS else 1
    if heads[0] in ("this", "these") and heads[1] not in ("image", "patient", "modality"):
        split = 1
    elif heads[:3] == ["the", "image", "of"]:
        split = 2
    else:
        split = next((i for i in range(first, len(heads)) if heads[i] in _PREDICATES), len(heads) - 1)
    subject, predicate = " ".join(heads[:split]), " ".join(heads[split:])
    return Statements(f"{subject} {auxiliary} {predicate}", f"{subject} {auxiliary} not {predicate}") if split else None


class Asked(NamedTuple):
    """A question with its gold answer, and the statements that it asks about."""

    question: str
    gold: str
    states: Statements

    def answer(self, style: str, word: str) -> str:
        """Return the answer that says `word` to the question."""
        lower = self.states.yes if word == "yes" else self.states.no
        return style.format(word=word.capitalize(), said=lower[:1].upper() + lower[1:], lower=lower)


def questions(folder: Path) -> tuple[list[Asked], int]:
    """The yes/no test questions that can be turned round, and how many others there are."""
    lines = (folder / "qa.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "test"]
    rows = [row for row in rows if str(row["answer"]).strip().lower() in ("yes", "no")]
    found = [(row["question"], row["answer"].strip().lower(), statements(row["question"])) for row in rows]
    asked = [Asked(question, gold, states) for question, gold, states in found if states]
    return asked, len(rows) - len(asked)


def accuracy(asked: list[Asked], style: str, protocol: str, contrary: bool = False) -> float:
    """Closed accuracy in [0, 1] of answers in one style that say the gold answer, or its contrary."""
    words = [{"yes": "no", "no": "yes"}[one.gold] if contrary else one.gold for one in asked]
    predictions = [one.answer(style, word) for one, word in zip(asked, words, strict=True)]
    golds, texts = [one.gold for one in asked], [one.question for one in asked]
    return med_vqa.compute(predictions, golds, ["closed"] * len(asked), protocol, texts)["closed_accuracy"]


def table(asked: list[Asked]) -> list[str]:
    """The lines of the table."""
    lines = ["| answer | gold: strict@3 | gold: strict@4 | contrary: strict@3 | contrary: strict@4 |", "|---" * 5 + "|"]
    for style in (*STYLES, *UNREAD):
        found = [accuracy(asked, style, name, contrary) for contrary in (False, True) for name in PROTOCOLS]
        lines.append(f"| `{style!r}` | {' | '.join(f'{100 * value:.1f}' for value in found)} |")
    return lines


def speed(asked: list[Asked], protocol: str, styles: tuple[str, ...] = MIXED) -> float:
    """Answers a second of user CPU time."""
    predictions = [one.answer(style, one.gold) for one in asked for style in styles] * 5
    golds, texts = ([getattr(one, name) for one in asked for _ in styles] * 5 for name in ("gold", "question"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    med_vqa.compute(predictions, golds, ["closed"] * len(golds), protocol, texts)
    return len(golds) / (resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    asked, others = questions(parser.parse_args().folder)
    print(f"{len(asked)} yes/no questions, {others} others could not be turned round\n")
    print("\n".join(table(asked)))
    for kind, styles in (("mixed", MIXED), ("statements alone", MIXED[4:])):
        best = [max(speed(asked, name, styles) for _ in range(5)) for name in PROTOCOLS]
        times = best[0] / best[1]
        print(f"\nAnswers a second, {kind}: strict@3 {best[0]:,.0f}, strict@4 {best[1]:,.0f} ({times:.1f} x)")


if __name__ == "__main__":
    main()
