"""Evaluation of a real (tiny) model: one answer a question, the same ones after an interruption, and what is kept."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmedpo.data.images import digest, open_rgb
from mmedpo.errors import InputError
from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.predict import batches, evaluate, read_answers
from mmedpo.evaluation.questions import Asked, QuestionSet, read
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.schema import TASKS

GREEDY = Generation(max_new_tokens=6, max_new_tokens_report=9, batch_size=8)
WARM = replace(GREEDY, temperature=0.7, seed=3)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LocalModel:
    return LocalModel(VisionLanguageModel(str(tiny_model)))


@pytest.fixture(scope="module")
def asked(corpus: Path) -> QuestionSet:
    return read(Asked(corpus, split="test", limit=30))


def first(asked: QuestionSet, count: int) -> QuestionSet:
    return replace(asked, questions=asked.questions[:count])


class Interrupted(LocalModel):
    """A model that answers until its `calls` are used up; the next is a Ctrl-C."""

    def __init__(self, model: LocalModel, calls: int) -> None:
        super().__init__(model.model)
        self.calls = calls

    def answer(self, batches: Any, asked: Any, generation: Any, done: Any, keep: Any) -> dict[str, str]:
        def counted(answers: Mapping[str, str]) -> None:
            keep(answers)
            self.calls -= 1
            if self.calls == 0:
                raise KeyboardInterrupt

        if self.calls == 0 and any(question.id not in done for batch in batches for question in batch):
            raise KeyboardInterrupt
        return super().answer(batches, asked, generation, done, counted)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def folder(model: LocalModel, asked: QuestionSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(lambda tasks: model, asked, folder, GREEDY, record={"name": "start"})
    return folder


def test_every_question_has_one_line_in_the_sources_order(folder, asked):
    expected = [question.id for question in asked.questions]
    for name in ("questions", "predictions", "scores"):
        assert [row["id"] for row in lines(folder, name)] == expected
    assert all(isinstance(row["prediction"], str) for row in lines(folder, "predictions"))


def test_folder_holds_the_recorded_files(folder):
    names = {file.name for file in folder.iterdir()} - {"answers"}  # which `output_folder` removes
    assert names == {"questions.jsonl", "predictions.jsonl", "scores.jsonl", "results.json"}


def test_questions_hold_what_scoring_and_comparing_need(folder, corpus, asked):
    question = asked.questions[0]
    assert lines(folder, "questions")[0] == {
        "id": question.id, "image_id": question.image_id, "patient_id": None, "task": question.task,
        "question": question.text, "reference": question.reference, "question_type": None, "organ": None,
        "modality": None, "image_digest": digest(open_rgb(corpus / question.image_id)),
    }  # fmt: skip


def test_results_say_who_answered_what_and_how(folder, asked, tiny_model):
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (results["format"], results["name"], results["split"]) == ("mmedpo.results/1", "start", "test")
    assert (results["model"], results["adapter"], results["seed"]) == (tiny_model.name, None, 0)  # no machine path
    assert results["settings"] == {
        "max_new_tokens": 6, "max_new_tokens_report": 9, "temperature": 0.0, "seed": 0, "batch_size": 8,
    }  # fmt: skip
    assert results["protocols"] == {"med_vqa": "strict", "report_generation": "coco"}
    assert (results["processes"], results["unanswered"]) == (1, 0) and results["seconds"] >= 0
    assert results["hardware"].startswith("CPU") and results["dtype"] == "float32"
    assert results["questions_sha256"] == hashlib.sha256((folder / "questions.jsonl").read_bytes()).hexdigest()
    assert results["prompt"]["example"] == f"<user> <image> {asked.questions[0].text} <assistant> "
    template = (tiny_model / "chat_template.jinja").read_bytes()
    assert results["prompt"]["chat_template_sha256"] == hashlib.sha256(template).hexdigest()
    tasks = [question.task for question in asked.questions]
    counts = {"n_closed": "closed_vqa", "n_open": "open_vqa", "n_report": "report"}
    assert {name: results["metrics"][name] for name in counts} == {n: tasks.count(t) for n, t in counts.items()}


@pytest.mark.parametrize("generation", [GREEDY, WARM], ids=["greedy", "temperature 0.7"])
@pytest.mark.parametrize("calls", [0, 2])
def test_interrupted_evaluation_ends_as_an_uninterrupted_one(model, asked, tmp_path, generation, calls):
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    evaluate(lambda tasks: model, asked, whole, generation)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lambda tasks: Interrupted(model, calls), asked, torn, generation)
    assert not (torn / "results.json").exists()
    all_batches = batches(asked.questions, generation)
    assert len(read_answers(torn).lines) == sum(map(len, all_batches[:calls]))
    left = Interrupted(model, len(all_batches) - calls + 1)  # may answer the remaining batches and no more
    evaluate(lambda tasks: left, asked, torn, generation)
    assert left.calls == 1
    for name in ("questions.jsonl", "predictions.jsonl", "scores.jsonl"):
        assert (torn / name).read_bytes() == (whole / name).read_bytes()


def test_sampled_answers_depend_on_the_seed(model, asked, tmp_path):
    texts = []
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        evaluate(lambda tasks: model, first(asked, 8), folder, replace(WARM, seed=seed))
        texts.append((folder / "predictions.jsonl").read_bytes())
    assert texts[0] != texts[1]


def test_batches_depend_on_the_questions_alone_and_sampled_ones_hold_one_task(asked):
    made = batches(asked.questions, WARM)
    assert sorted(q.id for batch in made for q in batch) == sorted(q.id for q in asked.questions)
    assert all(len({question.task for question in batch}) == 1 and len(batch) <= 8 for batch in made)
    assert all(WARM.parts(batch) == [batch] for batch in made)
    closed = [question for batch in made for question in batch if question.task == "closed_vqa"]
    about = [[*own] for _, own in itertools.groupby(closed, key=lambda question: question.images)]
    assert len(about) == len({question.images for question in closed}) < len(closed)  # one image after the other
    longest = [max(len(question.text) for question in own) for own in about]
    assert longest == sorted(longest, reverse=True) and len(closed) > 8
    assert batches(asked.questions[::-1], WARM) == made


def test_greedy_batches_hold_whole_images_of_the_same_tasks(asked):
    closed, opened, report = [next(q for q in asked.questions if q.task == task) for task in TASKS[:3]]
    several = [replace(report, id=str(image), images=(image,)) for image in range(2, 11)]
    for image in range(3):  # with four questions of either task
        both = [replace(q, images=(image,), text="?" * (image + 1)) for q in (closed, opened)]
        several += [replace(q, id=f"{q.task}-{image}-{i}") for q in both for i in range(4)]
    generation = replace(GREEDY, batch_size=4)
    made = batches(several, generation)
    assert made == batches(several[::-1], generation)
    assert [[*dict.fromkeys(q.images[0] for q in batch)] for batch in made] == [
        [10, 9, 8, 7], [6, 5, 4, 3], [2], [2, 1], [0],
    ]  # fmt: skip
    assert [[len(part) for part in generation.parts(batch)] for batch in made] == [[4], [4], [1], [4] * 4, [4] * 2]
    assert all(len({q.task for q in part}) == 1 for batch in made for part in generation.parts(batch))


def test_changed_questions_are_not_gone_on_with(model, asked, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(lambda tasks: Interrupted(model, 1), asked, tmp_path, GREEDY)
    other = replace(asked, questions=[replace(asked.questions[0], reference="another"), *asked.questions[1:]])
    with pytest.raises(InputError, match=r"the questions differ from those at the start"):
        evaluate(lambda tasks: model, other, tmp_path, GREEDY)
    evaluate(lambda tasks: model, asked, tmp_path, GREEDY)


def test_answers_are_kept_until_they_are_scored(model, asked, tmp_path, monkeypatch):
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mmedpo.evaluation.predict.finish", interrupt)
        evaluate(lambda tasks: model, first(asked, 8), tmp_path, GREEDY)
    evaluate(lambda tasks: Interrupted(model, 0), first(asked, 8), tmp_path, GREEDY)
    assert (tmp_path / "results.json").exists()
