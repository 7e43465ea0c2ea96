"""Word overlap of open answers with their references: `strict`, `strict@3`, and the lenient one of published work."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache

from mmedpo.data.choices import asserted, offered
from mmedpo.data.laterality import is_conflict
from mmedpo.data.normal_words import DENIED, content_words, normal_words
from mmedpo.data.text import words
from mmedpo.evaluation.metrics.closed import gold_option

OVERLAPS = ("recall", "precision", "f1", "exact_match")
LATERALITY = "laterality_conflict"  # key of `normal_overlap`, where it occurs
_ASKS_WHAT_IS_NOT = re.compile(r"\b(?:(?<!or )not|missing|absent|lack|lacks|lacking|removed)\b|n't\b", re.IGNORECASE)


def tokens(text: str) -> list[str]:
    """Return the lower-case words of a text without punctuation; articles and numbers are kept."""
    return words(text)


def overlap(prediction: str, reference: str) -> dict[str, float]:
    """Return the clipped word overlap of an open answer with its reference (`strict@3`), values in [0, 1].

    P and R are the multisets of words of prediction and reference. Repeated words are clipped to the reference's count:
    |P & R| = sum over words of min(count in P, count in R).

        recall = |P & R| / |R|        precision = |P & R| / |P|  (0 for an empty prediction)
        f1 = 2 |P & R| / (|P| + |R|)  exact_match = 1 if both are the same sequence of words, else 0
    """
    return _overlap(tokens(prediction), tokens(reference))


def normal_overlap(prediction: str, reference: str, question: str = "") -> dict[str, float]:
    """Return `overlap` of normal forms (`strict@4`), values in [0, 1], and `LATERALITY` where it occurs.

    P and R hold the `normal_words` of prediction and reference without `FUNCTION_WORDS`; where nothing is left of the
    reference, nothing is removed from either. A denied word ("no effusion") equals a denied word only, unless the
    question asks what is not there. An answer on the wrong side (`laterality.is_conflict`) scores 0, and so does one
    that asserts another option of the question than the reference ("liver or spleen?").
    """
    if is_conflict(prediction, reference):
        return {**dict.fromkeys(OVERLAPS, 0.0), LATERALITY: True}
    if _asserts_another(prediction, reference, question):
        return dict.fromkeys(OVERLAPS, 0.0)
    predicted = normal_words(prediction)
    gold, content = _normal_reference(reference)
    if _asks_what_is_not(question):
        predicted, gold, content = (
            [word.removeprefix(DENIED) for word in found] for found in (predicted, gold, content)
        )
    return _overlap(content_words(predicted), content) if content else _overlap(predicted, gold)


def _asserts_another(prediction: str, reference: str, question: str) -> bool:
    options = offered(question)
    gold = gold_option(reference, options, lettered=False)
    if not isinstance(gold, int):
        return False
    answer = asserted(prediction, options, question)
    return isinstance(answer, int) and answer != gold


@lru_cache(maxsize=65536)
def _asks_what_is_not(question: str) -> bool:
    return _ASKS_WHAT_IS_NOT.search(question) is not None


@lru_cache(maxsize=65536)
def _normal_reference(text: str) -> tuple[list[str], list[str]]:
    """Return the normal words of a reference, and those with content."""
    found = normal_words(text)
    return found, content_words(found)


def _overlap(predicted: list[str], gold: list[str]) -> dict[str, float]:
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
