"""Scores of short answers to questions about medical images, by three protocols.

`strict` (default) gives closed answers one verdict by whole words, and open answers clipped word overlap and exact
match. `paper` (MMedPO) and `llava_med` reproduce the lenient scores of published work, with substrings and unclipped
counts, for comparison with published numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from mmedpo.data.samples import ANSWER_TYPES as TASKS
from mmedpo.data.text import Said, number_of, said, stated_words, words
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import answers_in, by_group, group_faults, require_known, require_texts
from mmedpo.evaluation.metrics import vqa_v2
from mmedpo.evaluation.metrics.base import Metric, Scores, mean_of, values

Verdict = Literal["correct", "wrong", "both", "neither"]

DEFINITIONS = {"strict": "strict@3", "paper": "paper@1", "llava_med": "llava_med@1"}  # the number rises with a change
PROTOCOLS = tuple(DEFINITIONS)
ANSWER_TYPES = {"closed_vqa": "closed", "open_vqa": "open"}  # by task
OVERLAPS = ("recall", "precision", "f1", "exact_match")


def tokens(text: str) -> list[str]:
    """Return the lower-case words of a text without punctuation; articles and numbers are kept."""
    return words(text)


def verdict(prediction: str, reference: str) -> Verdict:
    """Return the verdict of `strict` on a closed answer.

    If the reference is a yes or no (`said`), the prediction's must be the same; "both" and "neither" have no readable
    verdict and are wrong. Any other reference is a choice ("left", "axial"). It is correct if its words occur whole and
    in sequence in the prediction, with no negation before them in their clause. The other choices are unknown here, so
    that "left or right" is correct for "left".

    Example:
        >>> verdict("The answer is yes.", "yes"), verdict("abnormal", "no"), verdict("It is axial.", "Axial")
        ('correct', 'neither', 'correct')
        >>> verdict("It is not the left, but the right side.", "left")
        'wrong'
    """
    gold, needle = _read_reference(reference)
    if gold in ("yes", "no"):
        answer = said(prediction)
        return answer if answer in ("both", "neither") else "correct" if answer == gold else "wrong"
    hay = stated_words(prediction, determiners=True)
    starts = [i for i, (word, plain) in enumerate(hay) if plain and word == needle[0]]
    matches = ([word for word, _ in hay[i : i + len(needle)]] == needle for i in starts)
    return "correct" if any(matches) else "wrong"


@lru_cache(maxsize=4096)
def _read_reference(reference: str) -> tuple[Said, list[str]]:
    return said(reference), tokens(reference)


def overlap(prediction: str, reference: str) -> dict[str, float]:
    """Return the clipped word overlap of an open answer with its reference (`strict`), values in [0, 1].

    P and R are the multisets of words of prediction and reference. Repeated words are clipped to the reference's count:
    |P & R| = sum over words of min(count in P, count in R).

        recall = |P & R| / |R|        precision = |P & R| / |P|  (0 for an empty prediction)
        f1 = 2 |P & R| / (|P| + |R|)  exact_match = 1 if both are the same sequence of words, else 0
    """
    predicted, gold = tokens(prediction), tokens(reference)
    shared = (Counter(predicted) & Counter(gold)).total()
    return {
        "recall": shared / len(gold),
        "precision": shared / len(predicted) if predicted else 0.0,
        "f1": 2 * shared / (len(predicted) + len(gold)),
        "exact_match": float(predicted == gold),
    }


def lenient_overlap(prediction: str, reference: str, protocol: str) -> dict[str, float]:
    """Return LLaVA-Med's word overlap of two texts in VQA-v2's form (`vqa_v2.normalize`), values in [0, 1].

    Counts are unclipped: tp and fp are the prediction's words inside and outside of the reference, as often as the
    PREDICTION has them; fn are missed words as often as the reference has them. A text without words scores 0:

        recall = tp / (tp + fn)    precision = tp / (tp + fp)    f1 = their harmonic mean

    In `paper` exact_match is 1 for equal texts. In `llava_med` it follows the published script: distinct words of the
    reference that occur in the prediction, divided by the words of the prediction.
    """
    predicted, gold = Counter(prediction.split()), Counter(reference.split())
    tp = sum(count for word, count in predicted.items() if word in gold)
    fn = sum(count for word, count in gold.items() if word not in predicted)
    recall, precision = (tp / (tp + fn), tp / predicted.total()) if tp else (0.0, 0.0)
    exact = float(prediction == reference)
    if protocol == "llava_med":
        exact = len(predicted.keys() & gold.keys()) / (predicted.total() or 1)
    f1 = 2 * precision * recall / (precision + recall) if tp else 0.0
    return {"recall": recall, "precision": precision, "f1": f1, "exact_match": exact}


def score(prediction: str, reference: str, answer_type: str, protocol: str = "strict") -> dict[str, float | str]:
    """Return the scores of one answer.

    Returns:
        Closed: "verdict" and "correct". Open: "recall", "precision", "f1", "exact_match" and "correct". "correct" is
        1.0 or 0.0; an open answer is correct if it equals the reference in the protocol's normal form.

    Raises:
        InputError: an unknown protocol or answer type, a text that is not a string, a reference without words.
    """
    (answer_type,) = _require([prediction], [reference], [answer_type], protocol)
    return _score(answers_in([prediction])[0], reference, answer_type, protocol)


def compute(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str = "strict",
    groups: Sequence[str] | None = None,
    return_scores: bool = False,
) -> dict[str, Any]:
    """Return the metrics of n answers, as described in `aggregate`.

    Args:
        predictions: n answers of the model; thoughts are removed (`answers_in`).
        references: n gold answers.
        answer_types: n of "closed" and "open", in any spelling of a source ("CLOSED", "open_vqa").
        protocol: one of `PROTOCOLS`.
        groups: n names (an organ, a modality, a question type); adds "by_group", `aggregate` of each group.
        return_scores: add "scores", the n `score` results.

    Raises:
        InputError: an unknown protocol, columns of different length, or texts that cannot be scored (all are listed).
    """
    answer_types = _require(predictions, references, answer_types, protocol, groups)
    rows = zip(answers_in(predictions), references, answer_types, strict=True)
    scores = [_score(*row, protocol) for row in rows]
    found = aggregate(scores, protocol)
    if groups is not None:
        found["by_group"] = by_group(groups, scores, partial(aggregate, protocol=protocol))
    return found | ({"scores": scores} if return_scores else {})


def metrics(protocol: str = "strict") -> tuple[Metric, ...]:
    """Return the metrics of `score` results: means in [0, 1], higher is better."""
    require_known("protocol", protocol, PROTOCOLS)
    return (
        mean_of("correct", "overall_accuracy"),
        mean_of("correct", "closed_accuracy", _is_closed),
        *(mean_of(name, f"open_{name}") for name in OVERLAPS),
    )


def aggregate(scores: Sequence[Scores], protocol: str = "strict") -> dict[str, Any]:
    """Return means of `score` results in [0, 1], higher is better; means over no question are absent.

    Returns:
        overall_accuracy (mean of "correct" over all questions), closed_accuracy, open_recall, open_precision,
        open_f1, open_exact_match; the counts n_closed and n_open, and of `strict` n_closed_both and n_closed_neither;
        med_vqa_definition, the protocol with the number of its definition ("strict@3").
    """
    verdicts = Counter(sample["verdict"] for sample in scores if _is_closed(sample))
    unread = {f"n_closed_{said}": verdicts[said] for said in ("both", "neither")} if protocol == "strict" else {}
    return values(metrics(protocol), scores) | {
        "n_closed": verdicts.total(),
        "n_open": len(scores) - verdicts.total(),
        **unread,
        "med_vqa_definition": DEFINITIONS[protocol],
    }


def _is_closed(scores: Scores) -> bool:
    return "verdict" in scores


def _score(prediction: str, reference: str, answer_type: str, protocol: str) -> dict[str, float | str]:
    if protocol == "strict":
        if answer_type == "closed":
            reading = verdict(prediction, reference)
            return {"verdict": reading, "correct": float(reading == "correct")}
        overlaps = overlap(prediction, reference)
        return {**overlaps, "correct": overlaps["exact_match"]}
    prediction, reference = vqa_v2.normalize(prediction), vqa_v2.normalize(reference)
    if answer_type == "closed":
        readable = protocol == "paper" or "yes" in prediction or "no" in prediction
        hit = readable and reference in prediction
        return {"verdict": "correct" if hit else "wrong", "correct": float(hit)}
    return {**lenient_overlap(prediction, reference, protocol), "correct": float(prediction == reference)}


def _require(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[str],
    protocol: str,
    groups: Sequence[str] | None = None,
) -> list[str]:
    """Return the answer types as "closed" and "open"; raise InputError for inputs that cannot be scored."""
    require_known("protocol", protocol, PROTOCOLS)
    others = {"answer_types": answer_types} | ({} if groups is None else {"groups": groups})
    require_texts(predictions, references, tokens, **others)
    kinds = [ANSWER_TYPES.get(TASKS.get(str(given).strip().casefold(), "")) for given in answer_types]
    faults = [
        Fault(f"index {i}", "answer_types", "is unknown; choose 'closed' or 'open'", repr(given))
        for i, (given, kind) in enumerate(zip(answer_types, kinds, strict=True))
        if kind is None
    ]
    faults += group_faults(groups)
    if faults:
        raise InputError(f"{number_of(len(faults), 'entries')} cannot be used:", faults)
    return [kind for kind in kinds if kind is not None]
