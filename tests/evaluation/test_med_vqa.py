"""Verdicts and overlaps of short answers, against values derived by hand or by a slower second route."""

import random

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation import med_vqa


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("yes", "Yes", "correct"),
        ("The answer is yes.", "yes", "correct"),
        ("No, this is not abnormal", "no", "correct"),
        ("No, although a colleague said yes", "no", "correct"),
        ("There is no fracture.", "no", "correct"),
        ("YES", "no", "wrong"),
        ("There is no fracture.", "yes", "wrong"),
        ("abnormal", "no", "neither"),
        ("normal", "yes", "neither"),
        ("", "yes", "neither"),
        (".", "no", "neither"),
        ("yesterday's nodule", "yes", "neither"),
        ("Either yes or no", "yes", "both"),
        ("Either yes or no", "no", "both"),
        ("yes", "Yes, with contrast", "correct"),
    ],
)
def test_yes_no_references_get_one_verdict(prediction, reference, expected):
    assert med_vqa.verdict(prediction, reference) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Left.", "left", "correct"),
        ("It is a T2-weighted image", "t2-weighted", "correct"),
        ("the left lower lobe", "left lower lobe", "correct"),
        ("the lower left lobe", "left lower lobe", "wrong"),
        ("abnormal", "normal", "wrong"),
        ("effusions", "effusion", "wrong"),
        ("", "left", "wrong"),
        ("Crohn’s", "crohn's", "correct"),
        ("left or right", "left", "correct"),  # the documented limit: the other choices are not known
    ],
)
def test_choices_are_matched_by_whole_words_in_order(prediction, reference, expected):
    assert med_vqa.verdict(prediction, reference) == expected


def test_a_constant_answer_is_right_for_one_polarity_only():
    for said in ("yes", "no", "yes no", "it is yes and it is no"):
        assert [med_vqa.verdict(said, gold) for gold in ("yes", "no")].count("correct") <= 1


def overlap_by_removal(prediction, reference):
    """The second route: cross off each predicted word from a list of the reference's words."""
    left, hits = med_vqa.tokens(reference), 0
    for word in med_vqa.tokens(prediction):
        if word in left:
            left.remove(word)
            hits += 1
    recall, precision = hits / len(med_vqa.tokens(reference)), hits / max(1, len(med_vqa.tokens(prediction)))
    f1 = 2 * recall * precision / (recall + precision) if hits else 0.0
    return {"recall": recall, "precision": precision, "f1": f1}


def test_overlap_agrees_with_crossing_off_words():
    rng = random.Random(0)
    for _ in range(200):
        prediction = " ".join(rng.choices(["left", "right", "lung", "lobe", "the"], k=rng.randrange(8)))
        reference = " ".join(rng.choices(["left", "right", "lung", "lobe", "the"], k=rng.randrange(1, 5)))
        found = med_vqa.overlap(prediction, reference)
        assert {name: found[name] for name in ("recall", "precision", "f1")} == pytest.approx(
            overlap_by_removal(prediction, reference), abs=1e-12
        )
        assert found["exact_match"] == float(prediction == reference)


def test_repeating_a_word_earns_nothing():
    once, often = med_vqa.overlap("lung", "left lung"), med_vqa.overlap("lung " * 10, "left lung")
    assert often["recall"] == once["recall"] == 1 / 2
    assert (once["precision"], often["precision"]) == (1.0, 1 / 10)


def test_score_says_what_compare_needs():
    assert med_vqa.score("both yes and no", "yes", "closed") == {"verdict": "both", "correct": 0.0}
    assert med_vqa.score("left", "left lung", "open") == {
        "recall": 1 / 2,
        "precision": 1.0,
        "f1": 2 / 3,
        "exact_match": 0.0,
        "correct": 0.0,
    }


def test_means_over_no_question_are_absent():
    closed_only = med_vqa.compute(["yes"], ["yes"], ["closed"])
    assert not any(name.startswith("open_") for name in closed_only)
    assert med_vqa.compute([], [], []) == {"n_closed": 0, "n_open": 0, "n_closed_both": 0, "n_closed_neither": 0}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((["a"], ["a"], ["open"], "paper"), "'paper' does not exist; choose one of: strict"),
        ((["a"], ["a", "b"], ["open"]), "1 predictions, 2 references, 1 answer_types"),
        ((["a", "b"], ["a", "b"], ["open", "CLOSED "]), "index 1 [answer_types]: is 'CLOSED '"),
        ((["a", None], ["a", "b"], ["open", "open"]), "index 1 [predictions]: is None"),
        ((["a"], [3], ["open"]), "index 0 [references]: is 3"),
        ((["a", "a"], ["", " . "], ["open", "closed"]), "index 1 [references]: is ' . ', which has no words"),
        (("yes", "yes", ["closed"] * 3), "predictions is one string"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, named):
    with pytest.raises(InputError) as refused:
        med_vqa.compute(*arguments)
    assert named in str(refused.value)


def test_all_faults_are_listed_at_once():
    with pytest.raises(InputError) as refused:
        med_vqa.compute([None, "a", 1], ["a", "", "b"], ["open"] * 3)
    assert [fault.row for fault in refused.value.faults] == ["index 0", "index 2", "index 1"]
