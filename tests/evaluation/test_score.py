"""A folder's questions and predictions become scores; every fault of the join is listed at once."""

import json

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.joining import joined
from mmedpo.evaluation.metrics import med_vqa, report_generation
from mmedpo.evaluation.score import Scoring, finish

QUESTIONS = [
    {"id": "q1", "image_id": "a", "task": "closed_vqa", "question": "Normal?", "reference": "no"},
    {"id": "q2", "image_id": "a", "task": "open_vqa", "question": "Where?", "reference": "left lung"},
    {"id": "q3", "image_id": "b", "task": "report", "question": "Describe.", "reference": "No effusion is seen."},
    {"id": "q4", "image_id": "b", "task": "closed_vqa", "question": "Plane?", "reference": "Axial"},
]
ANSWERS = {"q1": "abnormal", "q2": "lung\u2028lung", "q3": "No effusion.", "q4": "axial view"}


def write(folder, questions=QUESTIONS, answers=ANSWERS):
    predictions = [{"id": id_, "prediction": text} for id_, text in answers.items()]
    for name, lines in (("questions", questions), ("predictions", predictions)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def score_folder(folder):
    return finish(folder, joined(folder / "questions.jsonl", folder / "predictions.jsonl"), Scoring(), {})["metrics"]


def read_scores(folder):
    return [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]


def test_metrics_merge_both_tasks_and_agree_with_the_metrics_alone(tmp_path):
    write(tmp_path, answers=dict(reversed(ANSWERS.items())))
    metrics = score_folder(tmp_path)
    vqa = [ANSWERS[id_] for id_ in ("q1", "q2", "q4")]
    asked = ["Normal?", "Where?", "Plane?"]
    expected = med_vqa.compute(vqa, ["no", "left lung", "Axial"], ["closed", "open", "closed"], questions=asked)
    expected |= report_generation.compute([ANSWERS["q3"]], ["No effusion is seen."])
    assert metrics == expected
    assert (metrics["closed_accuracy"], metrics["open_recall"], metrics["overall_accuracy"]) == (1.0, 1 / 2, 2 / 3)


def test_scores_carry_what_a_comparison_needs_in_the_order_of_the_questions(tmp_path):
    write(tmp_path)
    score_folder(tmp_path)
    scores = read_scores(tmp_path)
    assert [(line["id"], line["image_id"], line["task"]) for line in scores] == [
        (question["id"], question["image_id"], question["task"]) for question in QUESTIONS
    ]
    assert scores[0]["verdict"] == "correct"
    # "no effusion" in "no effusion is seen": 2 words, 1 pair, no longer n-gram.
    assert (scores[2]["ngram_matches"], scores[2]["ngram_totals"]) == ([2, 1, 0, 0], [2, 1, 0, 0])
    assert (scores[2]["prediction_length"], scores[2]["reference_length"]) == (2, 4)


def test_every_fault_of_the_join_is_listed(tmp_path):
    write(tmp_path, [*QUESTIONS, QUESTIONS[0]], {"q1": ["yes"], "q2": 3, "q3": "No effusion.", "q9": "yes"})
    with pytest.raises(InputError) as refused:
        score_folder(tmp_path)
    assert {(fault.row, fault.column) for fault in refused.value.faults} == {
        ("questions.jsonl:5", "id"),
        ("q1", "prediction"),
        ("q2", "prediction"),
        ("q4", "prediction"),
        ("q9", "prediction"),
    }
    assert not (tmp_path / "scores.jsonl").exists()


def test_faulty_questions_are_listed(tmp_path):
    faulty = [
        {"id": "q1", "image_id": None, "task": "closed", "question": "?", "reference": "."},
        {"id": 7, "image_id": "a", "task": "report", "question": "?", "reference": "a"},
    ]
    write(tmp_path, faulty, {"q1": "a"})
    with pytest.raises(InputError) as refused:
        score_folder(tmp_path)
    assert [(fault.row, fault.column) for fault in refused.value.faults] == [
        ("questions.jsonl:2", "id"),
        ("q1", "task"),
        ("q1", "image_id"),
        ("q1", "reference"),
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [('{"id": "q1", "pre', "line 1 is not JSON"), ("[1]\n", "not an object"), (None, "does not exist")],
)
def test_broken_files_are_named(tmp_path, text, named):
    write(tmp_path)
    file = tmp_path / "predictions.jsonl"
    file.unlink()
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=named):
        score_folder(tmp_path)
