"""Scores of short answers to questions about medical images, by rules.

`strict` (default) gives closed answers one verdict, read against their questions (`closed`), and open answers clipped
overlap and exact match of their words in normal form (`open_answers`). `paper` (MMedPO) and `llava_med` reproduce the
lenient scores of published work, with substrings and unclipped counts, for comparison with published numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from mmedpo.data.samples import ANSWER_TYPES as TASKS
from mmedpo.data.text import number_of
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import answers_in, by_group, require_groups, require_known, require_texts
from mmedpo.evaluation.metrics import choice, closed, open_answers, question_sets, vqa_v2
from mmedpo.evaluation.metrics.base import Metric, Scores, mean_of, values
from mmedpo.evaluation.metrics.open_answers import LATERALITY, OVERLAPS, tokens

UNASKED = "strict@3"  # `strict` where the question is not known
DEFINITIONS = {  # the number rises with a change
    "strict": "strict@4", UNASKED: UNASKED, "paper": "paper@1", "llava_med": "llava_med@1",
}  # fmt: skip
PROTOCOLS = tuple(DEFINITIONS)
ANSWER_TYPES = {"closed_vqa": "closed", "open_vqa": "open", "choice_vqa": "choice"}  # by task


def score(
    prediction: str,
    reference: str,
    answer_type: str,
    protocol: str = "strict",
    question: str | None = None,
    options: Sequence[str] | None = None,
) -> dict[str, float | str]:
    """Return the scores of one answer; arguments as in `compute`.

    Returns:
        Closed: "verdict" and "correct". Open: "recall", "precision", "f1", "exact_match" and "correct", and of `strict`
        "laterality_conflict" (True) where the answer is on the wrong side. "correct" is 1.0 or 0.0; an open answer is
        correct if it equals the reference in the protocol's normal form.

    Raises:
        InputError: an unknown protocol or answer type, a text that is not a string, a reference without words.
    """
    asked = {"questions": question, "options": options}
    columns: dict[str, Any] = {name: None if given is None else [given] for name, given in asked.items()}
    return score_all([prediction], [reference], [answer_type], protocol, **columns)[0]


def score_all(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str = "strict",
    questions: Sequence[str] | None = None,
    options: Sequence[Sequence[str] | None] | None = None,
) -> list[dict[str, float | str]]:
    """Return `score` of each of n answers; arguments as in `compute`."""
    kinds = _require(predictions, references, answer_types, protocol, questions, options)
    protocol = _known(protocol, questions)
    unknown = [None] * len(references)
    rows = zip(answers_in(predictions), references, kinds, questions or unknown, options or unknown, strict=True)
    return [_score(protocol, *row) for row in rows]


def compute(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str = "strict",
    questions: Sequence[str] | None = None,
    options: Sequence[Sequence[str] | None] | None = None,
    groups: Sequence[str] | None = None,
    return_scores: bool = False,
) -> dict[str, Any]:
    """Return the metrics of n answers, as described in `aggregate`.

    Args:
        predictions: n answers of the model; thoughts are removed (`answers_in`).
        references: n gold answers.
        answer_types: n of "closed", "choice" (with options) and "open", in any spelling of a source ("CLOSED").
        protocol: one of `PROTOCOLS`; `strict` is strict@4 with questions, and strict@3 without.
        questions: n questions, against which `strict` reads the answers.
        options: n lists of the options that a question offered, or None.
        groups: n names (an organ, a modality, a question type); adds "by_group", `aggregate` of each group.
        return_scores: add "scores", the n `score` results.

    Raises:
        InputError: an unknown protocol, columns of different length, or texts that cannot be scored (all are listed).
    """
    if groups is not None:
        require_groups(groups, predictions)
    scores = score_all(predictions, references, answer_types, protocol, questions, options)
    protocol = _known(protocol, questions)
    found = aggregate(scores, protocol)
    if groups is not None:
        found["by_group"] = by_group(groups, scores, partial(aggregate, protocol=protocol))
    return found | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "strict") -> tuple[Metric, ...]:
    """Return the metrics of `score` results: means in [0, 1], higher is better."""
    require_known("protocol", protocol, PROTOCOLS)
    return (
        mean_of("correct", "overall_accuracy"),
        mean_of("correct", "closed_accuracy", is_closed),
        mean_of("choice_correct", "choice_accuracy"),
        *(mean_of(name, f"open_{name}") for name in OVERLAPS),
        question_sets.ACCURACY,
        *choice.METRICS,
    )


def aggregate(scores: Sequence[Scores], protocol: str = "strict") -> dict[str, Any]:
    """Return means of `score` results in [0, 1], higher is better; means over no question are absent.

    Returns:
        overall_accuracy (mean of "correct" over all questions), closed_accuracy, open_recall, open_precision,
        open_f1, open_exact_match; the counts n_closed and n_open, and of `strict` those of unread answers
        (n_closed_neither, ...; `closed.UNREAD`) and n_laterality_conflicts, open answers on the wrong side;
        med_vqa_definition, the protocol with the number of its definition ("strict@4"). With multiple choice also
        choice_accuracy, n_choice and its unread answers (n_choice_neither, ...), by the same rule in each protocol.
        Scores of question sets (`question_sets`) add question_set_accuracy and n_question_sets.
    """
    choices = Counter(sample["verdict"] for sample in scores if "choice_correct" in sample)
    verdicts = Counter(sample["verdict"] for sample in scores if is_closed(sample))
    kinds = {"strict": closed.UNREAD, UNASKED: ("both", "neither")}.get(protocol, ())
    counts = {f"n_closed_{kind}": verdicts[kind] for kind in kinds}
    if choices:
        counts |= {"n_choice": choices.total(), **{f"n_choice_{kind}": choices[kind] for kind in closed.UNREAD}}
    if protocol == "strict":
        counts["n_laterality_conflicts"] = sum(LATERALITY in sample for sample in scores)
    return values(metrics(protocol), scores) | {
        "n_closed": verdicts.total(),
        "n_open": len(scores) - verdicts.total() - choices.total(),
        **counts,
        **question_sets.count(scores),
        "med_vqa_definition": DEFINITIONS[protocol],
    }


def is_closed(scores: Scores) -> bool:
    """Return True for the scores of a closed answer."""
    return "verdict" in scores and "choice_correct" not in scores


def _known(protocol: str, questions: Sequence[str] | None) -> str:
    """Return the protocol, which is `UNASKED` for `strict` without questions."""
    return UNASKED if protocol == "strict" and questions is None else protocol


def _score(
    protocol: str, prediction: str, reference: str, kind: str, question: str | None, options: Sequence[str] | None
) -> dict[str, float | str]:
    if kind == "choice":  # published code has no rule for options
        verdict = closed.asked_verdict(prediction, reference, question, options)
        right = float(verdict == "correct")
        return {"verdict": verdict, "correct": right, "choice_correct": right}
    if protocol in ("strict", UNASKED):
        if kind == "closed":
            verdict = (
                closed.asked_verdict(prediction, reference, question, options)
                if protocol == "strict"
                else closed.verdict(prediction, reference)
            )
            return {"verdict": verdict, "correct": float(verdict == "correct")}
        overlaps = (
            open_answers.normal_overlap(prediction, reference, question or "")
            if protocol == "strict"
            else open_answers.overlap(prediction, reference)
        )
        return {**overlaps, "correct": overlaps["exact_match"]}
    prediction, reference = vqa_v2.normalize(prediction), vqa_v2.normalize(reference)
    if kind == "closed":
        readable = protocol == "paper" or "yes" in prediction or "no" in prediction
        hit = readable and reference in prediction
        return {"verdict": "correct" if hit else "wrong", "correct": float(hit)}
    overlaps = open_answers.lenient_overlap(prediction, reference, protocol)
    return {**overlaps, "correct": float(prediction == reference)}


def _require(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str,
    questions: Sequence[str] | None,
    options: Sequence[Sequence[str] | None] | None,
) -> list[str]:
    """Return the answer types as "closed", "choice" and "open"; raise InputError for inputs that cannot be scored."""
    require_known("protocol", protocol, PROTOCOLS)
    others = {"answer_types": answer_types, "questions": questions, "options": options}
    given = {name: column for name, column in others.items() if column is not None}
    require_texts(predictions, references, tokens, **given)
    kinds = [ANSWER_TYPES.get(TASKS.get(str(given).strip().casefold(), "")) for given in answer_types]
    faults = [
        Fault(f"index {i}", "answer_types", "is unknown; choose 'closed', 'choice' or 'open'", repr(given))
        for i, (given, kind) in enumerate(zip(answer_types, kinds, strict=True))
        if kind is None
    ]
    faults += [
        Fault(f"index {i}", "questions", "is not a string; give each answer's question, or no questions", repr(text))
        for i, text in enumerate(questions or ())
        if not isinstance(text, str)
    ]
    faults += [
        Fault(f"index {i}", "options", "is not a list of at least two distinct strings, or None", repr(offered))
        for i, offered in enumerate(options or ())
        if offered is not None and not _are_options(offered)
    ]
    faults += [
        Fault(f"index {i}", "options", "are missing; give the options of every 'choice'", None)
        for i, kind in enumerate(kinds)
        if kind == "choice" and (options is None or options[i] is None)
    ]
    if not faults:
        faults += [
            Fault(f"index {i}", "references", "is none of the options; give the text of one", repr(references[i]))
            for i, kind in enumerate(kinds)
            if kind == "choice" and options and closed.gold_option(references[i], tuple(options[i] or ()), True) is None
        ]
    if faults:
        raise InputError(f"{number_of(len(faults), 'entries')} cannot be used:", faults)
    return [kind for kind in kinds if kind is not None]


def _are_options(given: Any) -> bool:
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        return False
    return len(set(given)) == len(given) >= 2
