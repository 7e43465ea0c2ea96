"""Question sets: questions about one image that are right only together, such as a true and an adversarial one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmedpo.evaluation.metrics.base import Metric, Scores, mean

# A question of a set of n carries 1/n of it, so that sums over questions count sets.
ACCURACY = Metric(
    "question_set_accuracy",
    lambda scores: "set_correct" in scores,
    lambda scores: (scores["set_correct"] * scores["set_share"], scores["set_share"]),
    mean,
)


def with_sets(questions: Sequence[Mapping[str, Any]], scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return scores of n questions with those of their sets.

    Args:
        questions: n lines of questions.jsonl; those of equal "image_id" and "question_set" are a set.
        scores: n scores with "correct" in [0, 1].

    Returns:
        Each score; of a question in a set with "set_correct" (1.0 if all its questions are right, else 0.0) and
        "set_share" (one over their number).
    """
    sets = [(row["image_id"], row["question_set"]) if row.get("question_set") else None for row in questions]
    sizes = Counter(sets)
    missed = {one for one, score in zip(sets, scores, strict=True) if one and score["correct"] != 1}
    return [
        {**score, **({"set_correct": float(one not in missed), "set_share": 1 / sizes[one]} if one else {})}
        for one, score in zip(sets, scores, strict=True)
    ]


def count(scores: Iterable[Scores]) -> dict[str, int]:
    """Return {"n_question_sets"}; nothing without sets."""
    shares = [score["set_share"] for score in scores if ACCURACY.about(score)]
    return {"n_question_sets": round(sum(shares))} if shares else {}


def without_parts(questions: Sequence[Any], source: Iterable[Any]) -> list[Any]:
    """Return questions (dataclasses), without the set of those whose set has more in `source`: a part is easier."""
    sizes, asked = (Counter((one.image_id, one.question_set) for one in all_) for all_ in (source, questions))
    return [
        one if asked[key] == sizes[key] else replace(one, question_set=None)
        for one in questions
        for key in [(one.image_id, one.question_set)]
    ]
