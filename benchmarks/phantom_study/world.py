"""A world in which the clinical relevance of every pair is known: phantoms with cosmetic details, questions of known
importance, wrong answers of known severity, and noise that hits, grazes or misses its lesion.

Nothing in it is a patient. The truth of a pair (`Pair.severity`, `Pair.covered`) is never shown to training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mmedpo.curation.noise import box_mask, corrupt
from mmedpo.data.samples import Box
from mmedpo.quickstart import phantom

IMPORTANCE = {"critical": 1.0, "moderate": 0.5, "cosmetic": 0.1}  # of a question, in the primary outcome
RELEVANCE = {"critical": 0.9, "moderate": 0.5, "cosmetic": 0.2, "not wrong": 0.0}  # of a rejected response
NOT_WRONG = 0.07  # share of rejected responses, as measured in released files (5 to 8 %)
ALSO_SAID = 0.15  # share of the start's gold answers in other words
CRITICAL = ("effusion", "pneumothorax")
OTHER_WORDS = {
    "nodule": "coin lesion", "effusion": "pleural fluid", "opacity": "consolidation", "pneumothorax": "free air",
    "narrow": "slim", "wide": "broad", "top": "upper edge", "bottom": "lower edge",
    "yes": "yes it is", "no": "no it is not",
}  # fmt: skip
OPENING = "it seems to be"  # of the free style, in which a language model answers
SEVERITIES_OF_REPORTS = (0.4, 0.3, 0.3)  # critical, moderate, cosmetic
MISSES, HALVES = 0.2, 0.2  # shares of a detector's boxes, of "mixed"


@dataclass(frozen=True)
class Shown:
    """A phantom: grey image (uint8, 64 x 64), its lesions, and its details by name."""

    number: int
    pixels: np.ndarray
    lesions: tuple[phantom.Lesion, ...]
    details: dict[str, str]


@dataclass(frozen=True)
class Question:
    """A question about a phantom. `importance` is a key of `IMPORTANCE`; `lesions` are those it asks about."""

    shown: Shown
    text: str
    answer: str
    task: str
    importance: str
    lesions: tuple[phantom.Lesion, ...] = ()

    @cached_property
    def accepted(self) -> tuple[str, ...]:
        """The gold answer, and the same in other words."""
        return self.answer, in_other_words(self.answer)


@dataclass(frozen=True)
class Pair:
    """A preference pair and its truth.

    Attributes:
        rejected: rejected response; the chosen one for a visual pair.
        severity: how wrong it is, a key of `RELEVANCE`; "" for a visual pair.
        noised: noised image of a visual pair.
        covered: share of the lesion's box that is noised, of a visual pair.
        preferred: the chosen response, where it is not the gold answer.
    """

    question: Question
    rejected: str
    severity: str = ""
    noised: np.ndarray | None = None
    covered: float = 0.0
    preferred: str = ""
    reversed: bool = False

    @property
    def chosen(self) -> str:
        return self.preferred or self.question.answer

    @property
    def truth(self) -> float:
        """The pair's clinical relevance in [0, 1]."""
        return RELEVANCE[self.severity] if self.severity else self.covered


def in_other_words(answer: str) -> str:
    """Return the answer with its last known word replaced; a right answer, in other words."""
    words = answer.split()
    if words[-1] == "zone" and len(words) == 3:
        return f"{words[1]} zone on the {words[0]}"
    for place in reversed(range(len(words))):
        if (bare := words[place].rstrip(".")) in OTHER_WORDS:
            return " ".join([*words[:place], OTHER_WORDS[bare] + words[place][len(bare) :], *words[place + 1 :]])
    raise ValueError(answer)


def free(answer: str) -> str:
    """Return an answer in the free style."""
    return f"{OPENING} {answer}"


def draw(number: int, rng: np.random.Generator) -> Shown:
    """Draw a phantom with a marker at the top or bottom, a narrow or wide frame, and maybe a lead below the chest."""
    pixels, lesions = phantom.draw(rng)
    details = {
        "frame": str(rng.choice(["narrow", "wide"])), "marker": str(rng.choice(["top", "bottom"])),
        "lead": str(rng.choice(["yes", "no"])),
    }  # fmt: skip
    image = pixels.copy()
    frame = 2 if details["frame"] == "narrow" else 5
    image[:, :frame] = image[:, -frame:] = 230
    if details["lead"] == "yes":
        image[60:62, ::2] = 255
    row, column = (2 if details["marker"] == "top" else 57), rng.integers(8, 52)
    image[row : row + 5, column : column + 5] = 255
    return Shown(number, image, tuple(lesions), details)


def report(shown: Shown) -> str:
    """Return the phantom's report: a sentence a lung, one about the frame and one about the marker."""
    details = shown.details
    said = f"The frame is {details['frame']}. The marker is at the {details['marker']}."
    return f"{phantom.report([*shown.lesions])} {said}"


def questions(shown: Shown, rng: np.random.Generator) -> list[Question]:
    """Return the questions about a phantom: those of `quickstart.phantom`, three cosmetic ones, and the report."""
    found = []
    for row in phantom.questions([*shown.lesions], rng):
        text, task = str(row["question"]), str(row["task"])
        about = tuple(lesion for lesion in shown.lesions if phantom._box(lesion) in row["boxes"])  # type: ignore[operator]
        critical = any(name in text for name in (*CRITICAL, "clear", "seen")) and not text.startswith("Where")
        answer = report(shown) if task == "report" else str(row["answer"])
        importance = "critical" if critical or task == "report" else "moderate"
        found.append(Question(shown, text, answer, task, importance, about))
    details = shown.details
    for text, answer, task in (
        ("Is there a lead?", details["lead"], "closed_vqa"),
        ("How is the frame?", details["frame"], "open_vqa"),
        ("Where is the marker?", details["marker"], "open_vqa"),
    ):
        found.append(Question(shown, text, answer, task, "cosmetic"))
    return found


def wrong(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """Return a rejected response and its severity."""
    answer = question.answer
    if rng.random() < NOT_WRONG:
        return in_other_words(answer), "not wrong"
    if question.task == "report":
        return _wrong_report(question, rng)
    if question.importance == "cosmetic" or question.task == "closed_vqa":
        opposite = {"yes": "no", "narrow": "wide", "top": "bottom"}
        opposite |= {said: other for other, said in opposite.items()}
        return opposite[answer], question.importance
    if answer in phantom.FINDINGS:
        said = str(rng.choice([other for other in phantom.FINDINGS if other != answer]))
        return said, "critical" if {answer, said} & {*CRITICAL} else "moderate"
    side, zone, _ = answer.split()
    if rng.random() < 0.5:
        return f"{_other(side, phantom.SIDES, rng)} {zone} zone", "critical"
    return f"{side} {_other(zone, phantom.ZONES, rng)} zone", "moderate"


def _wrong_report(question: Question, rng: np.random.Generator) -> tuple[str, str]:
    """Return the report with one sentence wrong: a finding, a zone, or a detail."""
    text, lesions = question.answer, question.lesions
    severity = str(rng.choice(["critical", "moderate", "cosmetic"], p=SEVERITIES_OF_REPORTS))
    if severity == "critical":
        side = str(rng.choice(phantom.SIDES))
        clear = f"The {side} lung is clear."
        for lesion in lesions:
            if lesion.side == side:
                return text.replace(phantom.sentence(lesion), clear), severity
        return text.replace(clear, f"There is an effusion in the {side} lower zone."), severity
    if severity == "moderate" and lesions:
        lesion = lesions[rng.integers(len(lesions))]
        zone = _other(lesion.zone, phantom.ZONES, rng)
        return text.replace(lesion.place, f"{lesion.side} {zone} zone"), severity
    frame = question.shown.details["frame"]
    return text.replace(f"is {frame}.", f"is {'wide' if frame == 'narrow' else 'narrow'}."), "cosmetic"


def _other(value: str, known: Sequence[str], rng: np.random.Generator) -> str:
    return str(rng.choice([one for one in known if one != value]))


def text_pairs(asked: Sequence[Question], rng: np.random.Generator) -> list[Pair]:
    """Return a pair of each question."""
    return [Pair(question, *wrong(question, rng)) for question in asked]


def in_style(pairs: Sequence[Pair], chosen: str) -> list[Pair]:
    """Return text pairs whose rejected responses have the free style; the chosen ones are "gold" or "corrected"."""
    return [
        replace(pair, rejected=free(pair.rejected), preferred=free(pair.chosen) if chosen == "corrected" else "")
        for pair in pairs
    ]


def visual_pairs(
    asked: Sequence[Question], rng: np.random.Generator, detector: str = "mixed", step: int = 800,
    grid: int | None = None,
) -> list[Pair]:  # fmt: skip
    """Return a pair of each question about lesions: the same answer, and the image noised where the detector says.

    Args:
        detector: "hit" (the lesions' boxes), "missed" (boxes of their size that touch no lesion), "whole" (all of the
            image), or "mixed": of boxes a share of `MISSES` misses, of `HALVES` is shifted by half.
        step: of the diffusion noise, 1 to 1000.
        grid: `pixels` of `corrupt`.
    """
    return [_visual(question, rng, detector, step, grid) for question in asked if question.lesions]


def _visual(question: Question, rng: np.random.Generator, detector: str, step: int, grid: int | None) -> Pair:
    pixels = question.shown.pixels
    height, width = pixels.shape
    lesion = box_mask([_as_box(one.box) for one in question.lesions], height, width)
    if detector == "whole":
        found = np.ones_like(lesion)
    else:
        chance = rng.random()
        found = np.zeros_like(lesion)
        for one in question.lesions:
            box = one.box
            if detector == "missed" or (detector == "mixed" and chance < MISSES):
                box = _elsewhere(question.shown, box, rng)
            elif detector == "mixed" and chance < MISSES + HALVES:
                box = (box[0], box[1] + box[3] / 2 * (1 if box[1] < height / 2 else -1), *box[2:])
            found |= box_mask([_as_box(box)], height, width)
    covered = float((found & lesion).sum() / lesion.sum())
    noised = corrupt(pixels, found, "diffusion", rng, step, pixels=grid)
    return Pair(question, question.answer, noised=noised, covered=covered)


def _elsewhere(shown: Shown, box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Return the box at a place that touches no lesion, or as little of them as 100 tries find."""
    height, width = shown.pixels.shape
    lesions = box_mask([_as_box(one.box) for one in shown.lesions], height, width)
    tries = [
        (rng.uniform(0, max(1, width - box[2])), rng.uniform(0, max(1, height - box[3])), box[2], box[3])
        for _ in range(100)
    ]
    touched = [int((box_mask([_as_box(one)], height, width) & lesions).sum()) for one in tries]
    return tries[int(np.argmin(touched))]


def reversed_of(pair: Pair, rng: np.random.Generator) -> Pair | None:
    """Return a visual pair's reversed one: beside the noised image the wrong response is preferred (`--symmetric`)."""
    said, severity = wrong(pair.question, rng)
    return None if severity == "not wrong" else replace(pair, rejected=pair.chosen, preferred=said, reversed=True)


def balanced(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """Return visual pairs with as many for yes as for no (`--balance answer`)."""
    kept = [pair for pair in pairs if pair.question.task != "closed_vqa"]
    sides = [[pair for pair in pairs if pair not in kept and pair.chosen == side] for side in ("yes", "no")]
    count = min(map(len, sides))
    return [*kept, *(side[i] for side in sides for i in sorted(rng.permutation(len(side))[:count]))]


def _as_box(box: Sequence[float]) -> Box:
    return Box("", *box)


def world(seed: int, sizes: Sequence[int]) -> list[list[Question]]:
    """Return the questions of parts of the given numbers of images; all parts are drawn from one seed."""
    found: list[list[Question]] = []
    number = 0
    for part, size in enumerate(sizes):
        rng = np.random.default_rng([seed, part])
        found.append([])
        for _ in range(size):
            found[-1] += questions(draw(number, rng), rng)
            number += 1
    return found


def facts(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return how many pairs have which severity or cover of their lesion."""
    named = [pair.severity or f"covers {pair.covered:.1f}" for pair in pairs]
    return {name: named.count(name) for name in sorted({*named})}
