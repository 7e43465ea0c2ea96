"""Protocol `judge` of answers: correct, partly right or wrong by judges (chat models), and how far judges agree.

A judge sees question, options, gold answer and answer, and no image, as in MedEvalKit's accuracy by a chat model, whose
"correct" is this one's and whose "wrong" is "partly" or "wrong" here. Compare values of the same judges and prompt.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

from mmedpo.data import options
from mmedpo.data.text import number_of, words
from mmedpo.errors import InputError
from mmedpo.evaluation import answers_in
from mmedpo.evaluation.metrics import choice, med_vqa, question_sets
from mmedpo.evaluation.metrics.base import Metric, mean_of, values
from mmedpo.evaluation.metrics.med_vqa import ANSWER_TYPES

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

NAME = "judge"
VERSION = "judge@1"  # of what is computed from the verdicts
PROMPT = "judge_answer@1"
PROMPTS = Path(__file__).parents[1] / "prompts"
CHECK = "judge_answer_check@1"  # of the answers of known worth
BAR = 0.8  # least share of them on which a judge agrees; word overlap reaches 0.7, and "wrong" to all 0.45
MANY = 30  # answers after which a judge that knows one verdict is noted
VERDICTS = ("wrong", "partly", "correct")  # ascending
UNREADABLE, EMPTY = "unreadable", "empty"  # count as wrong
LONGEST = 300  # characters of a reason
KEYS = ("judged", "correct", "partly", "judgements")  # of a line of scores.jsonl
RECORDS = ("judge_check", "judge_verdicts")  # of results.json
SCHEMA = {  # the reason first, so that the verdict follows from it
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": LONGEST},
        "verdict": {"type": "string", "enum": list(VERDICTS)},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}

Row = dict[str, Any]


def _judged(scores: Mapping[str, Any], task: str | None = None) -> bool:
    return "judged" in scores and task in (None, scores["task"])


METRICS = (
    mean_of("correct", "judged_accuracy", _judged),
    *(
        mean_of("correct", f"judged_{kind}_accuracy", partial(_judged, task=task))
        for task, kind in ANSWER_TYPES.items()
    ),
    mean_of("partly", "judged_partly", _judged),
    question_sets.ACCURACY,
    *choice.METRICS,
)


def metrics(protocol: str = "strict") -> tuple[Metric, ...]:
    """Return the metrics of answers, by judges or by a rule of `med_vqa`."""
    return METRICS if protocol == NAME else med_vqa.metrics(protocol)


@dataclass(frozen=True)
class Found:
    """Judged answers.

    Attributes:
        lines: scores of those answers that are no reports, in order, of `KEYS`.
        definition: name of the protocol, judges and prompt.
        record: fields of results.json, of `RECORDS`.
    """

    lines: list[Row]
    definition: str
    record: Row = field(default_factory=dict)


def require_answers(protocol: str, tasks: Collection[str]) -> None:
    """Raise InputError where answers are to be judged, and all questions ask for reports."""
    if protocol == NAME and all(task == "report" for task in tasks):
        raise InputError("The protocol judge is of answers, and all questions ask for reports. Name another one.")


def of_answers(answered: Sequence[tuple[Row, Row]], judges: Judges | None) -> Found:
    """Let judges grade those answers that are no reports, after a check on answers of known worth.

    Empty answers are wrong and not asked about. The verdict on another is the median of the readable ones, of two
    middle ones the worse: the majority's, where there is one. Without a readable one it counts as wrong.

    Args:
        answered: questions, each with its line of predictions.jsonl; thoughts are removed.

    Raises:
        InputError: no judges, or no such answers; a judge that cannot work, or gives no readable reply.
        Stopped: the judges' budget is spent; replies so far are in the cache.
    """
    if judges is None:
        raise InputError("The protocol judge is made by chat models: name some with --judges.")
    require_answers(NAME, [question["task"] for question, _ in answered])
    check = checked(judges)
    questions, lines = zip(*((row, line) for row, line in answered if row["task"] != "report"), strict=True)
    answers = answers_in([line["prediction"] for line in lines])
    items = [
        _case(question["question"], question.get("options"), question["reference"], answer)
        for question, answer in zip(questions, answers, strict=True)
        if answer.strip()
    ]
    replies = {name: iter(own) for name, own in judges.ask(PROMPT, SCHEMA, items, read).items()}
    found = []
    for answer in answers:
        judged = {name: next(own) for name, own in replies.items()} if answer.strip() else {}
        found.append(_line([
            {"judge": name, **(one.found or {"verdict": None, "reason": one.why})} for name, one in judged.items()
        ]))  # fmt: skip
    counts = {name: dict.fromkeys((*VERDICTS, UNREADABLE), 0) for name in judges.names}
    for one in (one for line in found for one in line["judgements"]):
        counts[one["judge"]][one["verdict"] or UNREADABLE] += 1
    definition = f"{VERSION} (judges: {', '.join(sorted(judges.names))}; prompt {PROMPT})"
    return Found(found, definition, {"judge_check": check, "judge_verdicts": counts})


def _case(question: str, offered: Sequence[str] | None, gold: str, answer: str) -> dict[str, str]:
    from mmedpo.evaluation.asking import quoted

    return {"case": quoted(question=options.asked(question, offered), gold_answer=gold, answer=answer)}


def _line(judgements: list[Row]) -> Row:
    verdict = verdict_of([one["verdict"] for one in judgements if one["verdict"]]) if judgements else EMPTY
    right, partly = (float(verdict == one) for one in ("correct", "partly"))
    return {"judged": verdict, "correct": right, "partly": partly, "judgements": judgements}


def verdict_of(verdicts: Sequence[str]) -> str:
    """Return the lower median of verdicts.

    Example: ("correct", "correct", "wrong") is "correct", ("correct", "wrong") is "wrong", and () "unreadable".
    """
    return VERDICTS[median_low(map(VERDICTS.index, verdicts))] if verdicts else UNREADABLE


def read(item: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the verdict and the reason of a reply; raise ValueError where one is missing or copied from the prompt."""
    verdict, reason = answer.get("verdict"), answer.get("reason")
    if not isinstance(verdict, str) or verdict.strip().casefold() not in VERDICTS:
        raise ValueError(f"verdict is {verdict!r:.40}")
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"reason is {reason!r:.40}")
    if tuple(words(reason)) in _example_reasons():
        raise ValueError("reason is copied from an example of the prompt")
    text = json.loads(item["case"])["answer"]
    if "verdict" in text and reason.strip() in text:  # the last object of the reply quotes the answer
        raise ValueError("verdict is one that the answer itself holds")
    # JSON can hold a lone surrogate, which cannot be encoded as UTF-8.
    return {"verdict": verdict.strip().casefold(), "reason": reason[:LONGEST].encode("utf-8", "replace").decode()}


@cache
def _example_reasons() -> set[tuple[str, ...]]:
    found = (line for line in (PROMPTS / f"{PROMPT}.jinja").read_text("utf-8").splitlines() if '"reason":' in line)
    return {tuple(words(json.loads(line)["reason"])) for line in found}


@cache
def known() -> list[Row]:
    """Return the answers of known worth: "question", "options" (of some), "gold", "answer", "verdict"; all invented."""
    file = PROMPTS / f"{CHECK.partition('@')[0]}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def checked(judges: Judges) -> Row:
    """Let judges grade the answers of known worth; return "judge_check" of results.json."""
    items = [_case(one["question"], one.get("options"), one["gold"], one["answer"]) for one in known()]
    found = {}
    for name, own in judges.ask(PROMPT, SCHEMA, items, read).items():
        verdicts = [one.found and one.found["verdict"] for one in own]
        agreed = sum(verdict == one["verdict"] for verdict, one in zip(verdicts, known(), strict=True))
        found[name] = {"agreement": agreed / len(own), UNREADABLE: verdicts.count(None)}
    passed = all(one["agreement"] >= BAR for one in found.values())
    return {"version": CHECK, "answers": len(items), "bar": BAR, "passed": passed, "judges": found}


def aggregate(scores: Sequence[Row], protocol: str) -> Row:
    """Return the metrics of lines of scores.jsonl; those of `med_vqa` for another protocol than `NAME`.

    Returns:
        Means in [0, 1], higher is better; those over no question are absent:
        judged_accuracy, the share of correct answers, and that of each answer type (judged_closed_accuracy, ...);
        judged_partly, the share of partly right ones; n_closed, n_open and, with multiple choice, n_choice; n_empty and
        n_unreadable, answers that count as wrong. Of several judges also judged_agreement, the share of the questions
        read by all on which all agree, and judged_kappa, the mean Cohen's kappa of their pairs where it is defined.
    """
    if protocol != NAME:
        return med_vqa.aggregate(scores, protocol)
    tasks, verdicts = Counter(score["task"] for score in scores), Counter(score["judged"] for score in scores)
    counts = {f"n_{kind}": tasks[task] for task, kind in ANSWER_TYPES.items() if kind != "choice" or tasks[task]}
    counts |= {f"n_{one}": verdicts[one] for one in (EMPTY, UNREADABLE)}
    return values(METRICS, scores) | _agreement(scores) | counts | question_sets.count(scores)


def _agreement(scores: Sequence[Row]) -> dict[str, float]:
    table = [[one["verdict"] for one in score["judgements"]] for score in scores]
    table = [verdicts for verdicts in table if len(verdicts) > 1 and None not in verdicts]
    if not table:
        return {}
    found = {"judged_agreement": sum(len(set(verdicts)) == 1 for verdicts in table) / len(table)}
    pairs = list(combinations(zip(*table, strict=True), 2))
    if all(len({*one, *other}) > 1 for one, other in pairs):
        from sklearn.metrics import cohen_kappa_score

        found["judged_kappa"] = sum(float(cohen_kappa_score(*pair)) for pair in pairs) / len(pairs)
    return found


def summary(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on the check of the judges of a run, from its results.json; none without judged answers."""
    check = results.get("judge_check")
    if not check:
        return []
    shares = (f"{name} {100 * one['agreement']:.0f} %" for name, one in check["judges"].items())
    said = f"Judges agree on {check['answers']} answers of known worth (bar {100 * check['bar']:.0f} %)"
    return [f"{said}: {', '.join(shares)}."]


def warnings(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on judges that are below the bar, know one verdict or could not be read; none if all is well."""
    check, said = results.get("judge_check") or {"judges": {}}, []
    for name, one in check["judges"].items():
        if one["agreement"] < check["bar"]:
            said.append(
                f"The judge {name} agrees on {100 * one['agreement']:.0f} % of {check['answers']} answers of known "
                f"worth, below the bar of {100 * check['bar']:.0f} %: do not report its verdicts as accuracy."
            )
    for name, counts in (results.get("judge_verdicts") or {}).items():
        given = [verdict for verdict in VERDICTS if counts[verdict]]
        n = sum(counts[verdict] for verdict in given)
        if n >= MANY and len(given) == 1:
            said.append(f"The judge {name} gave all of {n:,} answers the same verdict ({given[0]}).")
        if counts[UNREADABLE]:
            said.append(f"{number_of(counts[UNREADABLE], 'replies')} of the judge {name} could not be read.")
    if lost := (results["metrics"].get("n_unreadable") if said else 0):
        said.append(f"{number_of(lost, 'answers')} without a readable verdict count as wrong. Score again to ask anew.")
    return said
