"""Text pairs: a question with what its pair is made of, and the sides of the pair, or the reason for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from mmedpo.curation.answer_checks import gold_says, length_range, lines, most_changes

TARGET_MODEL, GOLD = "target model", "gold"
NO_ANSWER = "the chat model did not answer"
OPPOSITE = {"yes": "no", "no": "yes"}


@dataclass(frozen=True)
class Item:
    """One sample whose rejected response is wanted.

    Attributes:
        task: one of `schema.TASKS`.
        candidates: answers sampled from the target model.
        alternatives: returns gold answers of other samples of the task; only offline stand-ins ask for them.
        image: an encoded image file to show to the chat model, or None.
        options: of multiple choice; `gold` is one of them.
        key: seeds a drawn option.
        failed: reason why candidates are missing, which a resumed run asks for again; "" if they are not.
    """

    question: str
    gold: str
    task: str
    candidates: Sequence[str] = ()
    alternatives: Callable[[], Iterable[str]] = tuple
    images: tuple[bytes, ...] = ()
    options: Sequence[str] = ()
    key: str = ""
    failed: str = ""

    @cached_property
    def form(self) -> dict[str, Any]:
        """Return what a prompt says about the form of a rejected response, beside its style."""
        right = gold_says(self.question, self.gold, self.task)
        return {
            "task": self.task, "opposite": right and OPPOSITE[right], "lengths": length_range(self.gold),
            "lines": lines(self.gold), "most_changes": most_changes(self.gold),
        }  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Chosen side of a pair for which another one than the gold answer was asked.

    Attributes:
        made_by: "target model", the chat model's name, or "gold" where no other could be used.
        prompt_version: the prompt or rule that made it; None of a gold answer.
        changes: words of the model's own answer that a correction changes.
        score, rejected_score: of both sides, by the metric that ranked them.
        fallback: reason why it is the gold answer after all.
        is_gold: it has the words of the gold answer, whoever said them.
    """

    text: str
    made_by: str
    prompt_version: str | None = None
    changes: int | None = None
    score: float | None = None
    rejected_score: float | None = None
    fallback: str | None = None
    is_gold: bool = False


@dataclass(frozen=True)
class Hallucination:
    """A rejected response.

    Attributes:
        made_by: "target model", "flip", "options" or the chat model's name.
        prompt_version: the prompt or rule that chose or wrote it.
        kind: one of `KINDS`, as the chat model classified it; None if it did not.
        none_chosen: True if the chat model was shown candidates and found none wrong.
        chosen: the side that it is the rejected response to; None for the gold answer.
    """

    text: str
    made_by: str
    prompt_version: str
    kind: str | None = None
    none_chosen: bool = field(default=False, compare=False)
    chosen: Chosen | None = None


@dataclass(frozen=True)
class Rejection:
    """A missing rejected response: `detail` is the case, `reason` is for counting."""

    reason: str
    detail: str
    none_chosen: bool = field(default=False, compare=False)


Choice = Hallucination | Rejection


def record(choice: Choice) -> dict[str, Any]:
    """Return a choice as JSON."""
    found = dict(vars(choice))
    if chosen := found.get("chosen"):
        found["chosen"] = dict(vars(chosen))
    return found


def chosen_sides(chosen: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return who made the chosen sides of a dataset's text pairs, for its manifest.

    Args:
        chosen: `Chosen` of each pair as a mapping.

    Returns:
        "made_by" and "fallback", counts; "equal_to_gold"; "changed_words" of corrections, "scores" of ranked pairs.
    """
    sides = list(chosen)
    changes = [side["changes"] for side in sides if side["changes"] is not None]
    ranked = [side for side in sides if side["score"] is not None]
    found: dict[str, Any] = {
        "made_by": dict(Counter(side["made_by"] for side in sides).most_common()),
        "equal_to_gold": sum(side["is_gold"] for side in sides if side["made_by"] != GOLD),
    }
    if fallback := Counter(side["fallback"] for side in sides if side["fallback"]):
        found["fallback"] = dict(fallback.most_common())
    if changes:
        found["changed_words"] = {"mean": fmean(changes), "max": max(changes)}
    if ranked:
        found["scores"] = {
            "chosen": fmean(side["score"] for side in ranked),
            "rejected": fmean(side["rejected_score"] for side in ranked),
        }
    return found
