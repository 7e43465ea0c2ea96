"""Verdicts and overlaps of short answers, against values derived by hand or by a slower second route."""

import random

import pytest

from mmedpo.data.text import said
from mmedpo.errors import InputError
from mmedpo.evaluation.metrics import closed, med_vqa, open_answers


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("yes", "Yes", "correct"),
        ("The answer is yes.", "yes", "correct"),
        ("No, this is not abnormal", "no", "correct"),
        ("There is no fracture.", "no", "neither"),  # the question may have been "Is this normal?"
        ("There is no fracture.", "yes", "neither"),
        ("YES", "no", "wrong"),
        ("abnormal", "no", "neither"),
        ("normal", "yes", "neither"),
        ("", "yes", "neither"),
        (".", "no", "neither"),
        ("yesterday's nodule", "yes", "neither"),
        ("Either yes or no", "yes", "both"),
        ("Either yes or no", "no", "both"),
        ("yes", "Yes, with contrast", "correct"),
        ("No pneumothorax", "No pneumothorax", "correct"),  # a choice: "no" is no verdict here
        ("No", "No pneumothorax", "wrong"),
        ("Ｎｏ\u200b", "no", "correct"),
        ("n\u00ado", "no", "correct"),
        ("no\u00a0evidence; yes", "Yes", "correct"),
        ("No\u2014the heart is normal", "no", "correct"),
        ("№ 5", "no", "neither"),
    ],
)
def test_yes_no_references_get_one_verdict(prediction, reference, expected):
    assert closed.verdict(prediction, reference) == expected


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
        ("not on the left", "left", "wrong"),
        ("Not on the right, on the left", "left", "correct"),
        ("It is not the right but the left", "left", "correct"),
        ("It isn’t normal", "normal", "wrong"),
        ("no contrast", "contrast", "wrong"),
        ("not sure", "not sure", "correct"),
        ("upper, left lobe", "upper left lobe", "correct"),
        ("Axial.The image is clear", "axial", "correct"),
        ("It is _axial_", "Axial", "correct"),
        ("3.5 cm", "3.5", "correct"),
        ("3.5 cm", "5", "wrong"),
        ("T₂‑weighted", "t2-weighted", "correct"),
        ("T2-weighted", "T₂\u2013weighted", "correct"),
        ("left\u00a0lower\u200b lobe", "left lower lobe", "correct"),
        ("nor\u00admal", "normal", "correct"),
    ],
)
def test_choices_are_matched_by_whole_words_in_order(prediction, reference, expected):
    assert closed.verdict(prediction, reference) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, this is not abnormal", "no"),
        ("Yes, there is no fracture", "yes"),
        ("Yes, it is not normal", "yes"),
        ("No evidence of a nodule: no.", "no"),
        ("There is no reason to doubt it: yes", "yes"),
        ("There is no evidence that the heart is normal", "neither"),
        ("There is no doubt about the fracture", "neither"),
        ("No the heart is normal", "no"),
        ("no it is not", "no"),
        ("no because the lung is clear", "no"),
        ("**No**\nBoth lungs are clear", "no"),
        ("'Yes'", "yes"),
        ("__No__", "no"),
        ("_yes_", "yes"),
        ("No.The lungs are clear.", "no"),
        ("Yes.There is no fracture", "yes"),
        ("No both lungs are clear", "no"),
        ("No only left", "no"),
        ("no, all of them are clear", "no"),
        ("Answer: No Explanation: normal", "no"),
        ("Answer: No **Rationale:** yes was likely", "both"),
        ("There is no explanation of it", "neither"),
        ("no on both sides", "neither"),  # the documented limit: it may be a determiner
        ("the answer is no, not yes", "no"),
        ("It is not a no, it is a yes", "yes"),
        ("The answer is not yes", "neither"),
        ("I can't say yes", "neither"),
        ("never say no", "neither"),
        ("No one knows", "neither"),
        ("no longer enlarged", "neither"),
        ("yes/no", "both"),
        ("yes no", "both"),
        ("no yes", "both"),
        ("Yes and no.", "both"),
        ("No. On second thoughts, yes.", "both"),
        ("I am unable to provide a yes or no answer.", "both"),
        ("Ask for a definitive 'yes'/'no' answer", "both"),
        ("I cannot give a yes or no answer", "neither"),
        ("I note that the eyes look abnormal, I know", "neither"),
    ],
)
def test_what_a_sentence_says(text, expected):
    assert said(text) == expected


def test_a_constant_answer_is_right_for_one_polarity_only():
    for answer in ("yes", "no", "yes no", "it is yes and it is no"):
        assert [closed.verdict(answer, gold) for gold in ("yes", "no")].count("correct") <= 1


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


@pytest.mark.parametrize(("protocol", "expected"), [("strict", 1.0), ("paper", 0.0), ("llava_med", 0.0)])
def test_unicode_forms_are_equal_in_strict_and_as_published_elsewhere(protocol, expected):
    found = med_vqa.score("T₂‑weighted\u00a0ima\u00adge", "T2-weighted image", "open", protocol)
    assert (found["correct"], found["f1"]) == (expected, expected)


def test_overlap_agrees_with_crossing_off_words():
    rng = random.Random(0)
    for _ in range(200):
        prediction = " ".join(rng.choices(["left", "right", "lung", "lobe", "the"], k=rng.randrange(8)))
        reference = " ".join(rng.choices(["left", "right", "lung", "lobe", "the"], k=rng.randrange(1, 5)))
        found = open_answers.overlap(prediction, reference)
        assert {name: found[name] for name in ("recall", "precision", "f1")} == pytest.approx(
            overlap_by_removal(prediction, reference), abs=1e-12
        )
        assert found["exact_match"] == float(prediction == reference)


def test_repeating_a_word_earns_nothing():
    once, often = open_answers.overlap("lung", "left lung"), open_answers.overlap("lung " * 10, "left lung")
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
    counts = {"n_closed": 0, "n_open": 0, "n_closed_both": 0, "n_closed_neither": 0}
    assert med_vqa.compute([], [], []) == {**counts, "med_vqa_definition": "strict@3"}


# The numbers are derived from the definitions in the paper's and LLaVA-Med's scores: see the comments.
@pytest.mark.parametrize(
    ("prediction", "reference", "paper", "llava_med"),
    [
        ("abnormal", "no", 1.0, 1.0),  # "no" occurs in it
        ("two eyes", "yes", 1.0, 1.0),  # "yes" occurs in "eyes"
        ("left", "left", 1.0, 0.0),  # neither "yes" nor "no" occurs
        ("a left nodule", "left", 1.0, 1.0),  # "no" occurs in "nodule"
        ("**one**", "one", 0.0, 0.0),  # the gold becomes "1", "**one**" is no number word
        ("none", "zero", 1.0, 0.0),  # both become "0"
        ("x-ray", "x ray", 1.0, 0.0),  # the hyphen becomes a space
        ("x-ray - chest", "xray", 1.0, 0.0),  # a hyphen beside a space deletes all of them
        ("isnt", "isn't", 1.0, 0.0),
        ("", "A", 1.0, 0.0),  # an article vanishes, and nothing occurs in everything
        ("No", "yes", 0.0, 0.0),
        ("Yes and no", "yes", 1.0, 1.0),
        ("Yes and no", "no", 1.0, 1.0),
    ],
)
def test_lenient_protocols_find_closed_answers_as_substrings(prediction, reference, paper, llava_med):
    found = [med_vqa.score(prediction, reference, "closed", name)["correct"] for name in ("paper", "llava_med")]
    assert found == [paper, llava_med]


def test_lenient_overlap_counts_as_often_as_the_prediction_repeats():
    # "left left lung" against "left lower lobe": tp = 2 (left), fp = 1 (lung), fn = 2 (lower, lobe).
    for protocol, exact in (("paper", 0.0), ("llava_med", 1 / 3)):  # 1 word of the reference, per 3 of the prediction
        found = med_vqa.score("The left left lung.", "left lower lobe", "open", protocol)
        recall, precision = 2 / 4, 2 / 3
        f1 = 2 * recall * precision / (recall + precision)
        expected = {"recall": recall, "precision": precision, "f1": f1, "exact_match": exact, "correct": 0.0}
        assert found == pytest.approx(expected)
    assert med_vqa.score("left", "left left", "open", "paper")["recall"] == 1.0  # what is found once is not missed
    assert med_vqa.score("The lung!", "a lung", "open", "paper")["correct"] == 1.0


@pytest.mark.parametrize("protocol", ["paper", "llava_med"])
@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "left"), ("the", "left"), ("right", "left"), ("left", "the")]
)
def test_lenient_overlap_of_nothing_is_nothing(protocol, prediction, reference):
    assert set(med_vqa.score(prediction, reference, "open", protocol).values()) == {0.0}


def test_groups_are_scored_apart_and_scores_come_with_them():
    answers = (["yes", "no", "lung"], ["yes", "yes", "lung"], ["closed", "closed", "open"])
    found = med_vqa.compute(*answers, groups=["head", "chest", "chest"], return_scores=True)
    assert list(found["by_group"]) == ["chest", "head"]
    for group, places in (("head", [0]), ("chest", [1, 2])):
        assert found["by_group"][group] == med_vqa.compute(*([column[i] for i in places] for column in answers))
    assert found["scores"] == [med_vqa.score(*answer) for answer in zip(*answers, strict=True)]
    assert "by_group" not in med_vqa.compute(*answers) and "scores" not in med_vqa.compute(*answers)


def test_lenient_protocols_know_no_unreadable_answer():
    found = med_vqa.compute(["maybe"], ["no"], ["closed"], "paper")
    assert found == {"overall_accuracy": 0.0, "closed_accuracy": 0.0, "n_closed": 1, "n_open": 0,
                     "med_vqa_definition": "paper@1"}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (
            (["a"], ["a"], ["open"], "loose"),
            "choose one of: strict, strict@3, paper, llava_med",
        ),
        ((["a"], ["a"], ["open"], "paper", None, None, ["chest", "head"]), "1 predictions, 2 groups"),
        (
            (["a"], ["a"], ["open"], "strict", None, None, [None]),
            "index 0 [groups]: is not a string; name the group of every question or report, got None",
        ),
        ((["a"], ["a"], ["open"], "strict", ["Is it?", "Is it?"]), "1 answer_types, 2 questions"),
        ((["a"], ["a"], ["open"], "strict", [None]), "index 0 [questions]: is not a string"),
        ((["a"], ["a"], ["open"], "strict", None, [["a", "a"]]), "index 0 [options]: is not a list of at least two"),
        ((["a"], ["a"], ["open"], "strict", None, ["ab"]), "index 0 [options]: is not a list of at least two"),
        ((["a"], ["a"], ["choice"]), "index 0 [options]: are missing; give the options of every 'choice'"),
        ((["a"], ["c"], ["choice"], "strict", None, [["a", "b"]]), "index 0 [references]: is none of the options"),
        ((["a"], ["a", "b"], ["open"]), "1 predictions, 2 references, 1 answer_types"),
        (
            (["a", "b"], ["a", "b"], ["open", "yes/no"]),
            "index 1 [answer_types]: is unknown; choose 'closed', 'choice' or 'open', got 'yes/no'",
        ),
        ((["a", None], ["a", "b"], ["open", "open"]), "index 1 [predictions]: is not a string"),
        ((["a"], [3], ["open"]), "index 0 [references]: is not a string"),
        ((["a", "a"], ["", " . "], ["open", "closed"]), "index 1 [references]: has no words"),
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


def test_strict_reads_the_question_where_it_is_known():
    columns = ["There is no sign of a fracture."], ["no"], ["closed"]
    alone, asked = med_vqa.compute(*columns), med_vqa.compute(*columns, questions=["Is there a fracture?"])
    assert (alone["med_vqa_definition"], asked["med_vqa_definition"]) == ("strict@3", "strict@4")
    assert (alone["closed_accuracy"], asked["closed_accuracy"]) == (0.0, 1.0)
    assert med_vqa.compute(*columns, "strict@3", questions=["Is there a fracture?"]) == alone
    assert med_vqa.score("", "no", "closed", question="Is it?") == {"verdict": "empty", "correct": 0.0}


ORGANS = ["Liver", "Liver cyst", "Spleen"]


@pytest.mark.parametrize(
    ("prediction", "reference", "question", "options", "expected"),
    [
        # the options of the question
        ("The heart is larger than the lung.", "Lung", "Which is bigger, the heart or the lung?", None, "wrong"),
        ("The heart is smaller than the lung.", "Lung", "Which is bigger, the heart or the lung?", None, "correct"),
        ("CT or MRI", "MRI", "Is this a CT or an MRI?", None, "neither"),
        ("This is an MRI rather than a CT.", "MRI", "Is this a CT or an MRI?", None, "correct"),
        ("I cannot tell.", "MRI", "Is this a CT or an MRI?", None, "refused"),
        ("", "MRI", "Is this a CT or an MRI?", None, "empty"),
        ("Left and right", "Left", "Is it in the left or right lung?", None, "both"),
        ("In the left one", "Left lung", "Is it in the left or right lung?", None, "correct"),
        ("Oral and intravenous contrast", "Both", "Was oral or IV contrast used?", None, "correct"),
        # a gold answer that is none of them, or a question without: as strict@3
        ("left or right", "left", "Where is the lesion?", None, "correct"),
        ("It is in the heart.", "Heart", "Is it in the left or right lung?", None, "correct"),
        ("No", "no", "Is it in the left or right lung?", None, "correct"),
        ("There is a mass.", "A", "Which letter is shown?", None, "wrong"),
        ("a", "A", "Which letter is shown?", None, "correct"),
        # options with letters
        ("B", "Liver cyst", "What is shown?", ORGANS, "correct"),
        ("A liver cyst", "Liver", "What is shown?", ORGANS, "wrong"),
        ("A. Liver", "Liver", "What is shown?", ORGANS, "correct"),
        ("A. Spleen", "Liver", "What is shown?", ORGANS, "both"),
        ("(c)", "C", "What is shown?", ORGANS, "correct"),
        ("The kidney", "Liver", "What is shown?", ORGANS, "neither"),
        ("B", "No", "Is it normal?", ["Yes", "No"], "correct"),
        ("It is not normal.", "No", "Is it normal?", ["Yes", "No"], "correct"),
    ],
)
def test_choices_are_read_with_their_options(prediction, reference, question, options, expected):
    found = med_vqa.score(prediction, reference, "closed", question=question, options=options)
    assert found == {"verdict": expected, "correct": float(expected == "correct")}


def test_the_answer_type_choice_has_options():
    assert med_vqa.score("(b)", "Liver cyst", "choice", options=ORGANS)["verdict"] == "correct"
    assert med_vqa.score("liver", "Liver cyst", "choice_vqa", "paper", options=ORGANS)["verdict"] == "wrong"
    for protocol in med_vqa.PROTOCOLS:
        said, gold, offered = ["A", "C", "A or B", "yes"], ["Liver"] * 3 + ["yes"], [ORGANS] * 3 + [None]
        kinds = ["choice"] * 3 + ["closed"]
        found = med_vqa.compute(said, gold, kinds, protocol, questions=["?"] * 4, options=offered)
        assert (found["choice_accuracy"], found["closed_accuracy"], found["overall_accuracy"]) == (1 / 3, 1.0, 0.5)
        assert (found["n_choice"], found["n_closed"], found["n_open"], found["n_choice_neither"]) == (3, 1, 0, 1)
    assert "n_choice" not in med_vqa.compute(["yes"], ["yes"], ["closed"])
