"""Evaluation of a real (tiny) model: one answer a question, and the same ones after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.predict import evaluate
from mmedpo.ledger import Ledger
from mmedpo.models import Sampling, VisionLanguageModel
from mmedpo.samples import Sample
from mmedpo.sources import read_source

GREEDY = Sampling(max_new_tokens=6)
WARM = Sampling(max_new_tokens=6, temperature=0.7, seed=3)
BATCH = 8


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(tiny_model))


@pytest.fixture(scope="module")
def samples(corpus: Path) -> list[Sample]:
    return read_source(corpus, "test", limit=30).samples


class Interrupted:
    """A model that passes questions on to another until its `calls` are used up; the next is a Ctrl-C."""

    def __init__(self, model: VisionLanguageModel, calls: int) -> None:
        self.model, self.calls = model, calls
        self.name, self.revision, self.adapter = model.name, model.revision, model.adapter

    def answer(self, *arguments: Any) -> list[list[str]]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        return self.model.answer(*arguments)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def folder(model: VisionLanguageModel, samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    evaluate(model, samples, folder, GREEDY, BATCH, {"name": "start", "split": "test"})
    return folder


def test_every_question_has_one_line_in_the_sources_order(folder: Path, samples: list[Sample]) -> None:
    expected = [sample.id for sample in samples]
    for name in ("questions", "predictions", "scores"):
        assert [row["id"] for row in lines(folder, name)] == expected
    assert all(isinstance(row["prediction"], str) for row in lines(folder, "predictions"))


def test_folder_holds_the_recorded_files(folder: Path) -> None:
    names = {file.name for file in folder.iterdir() if file.suffix != ".ledger"}  # which `output_folder` removes
    assert names == {"questions.jsonl", "predictions.jsonl", "scores.jsonl", "results.json"}


def test_questions_hold_what_scoring_and_comparing_need(folder: Path, samples: list[Sample]) -> None:
    sample = samples[0]
    assert lines(folder, "questions")[0] == {
        "id": sample.id, "image_id": sample.image_id, "patient_id": None, "task": sample.task,
        "question": sample.question, "reference": sample.answer,
    }  # fmt: skip


def test_results_say_who_answered_how(folder: Path, samples: list[Sample], tiny_model: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (results["format"], results["name"], results["split"]) == ("mmedpo.results/1", "start", "test")
    assert (results["model"], results["adapter"], results["seed"]) == (tiny_model.name, None, 0)  # no machine path
    assert results["settings"]["max_new_tokens"] == 6 and results["settings"]["batch_size"] == BATCH
    assert results["protocols"] == {"med_vqa": "strict", "report_generation": "coco"}
    asked = [sample.task for sample in samples]
    counts = {"n_closed": "closed_vqa", "n_open": "open_vqa", "n_report": "report"}
    assert {name: results["metrics"][name] for name in counts} == {n: asked.count(t) for n, t in counts.items()}


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "temperature 0.7"])
@pytest.mark.parametrize("calls", [0, 2])
def test_interrupted_evaluation_ends_as_an_uninterrupted_one(
    model: VisionLanguageModel, samples: list[Sample], tmp_path: Path, sampling: Sampling, calls: int
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    evaluate(model, samples, whole, sampling, BATCH)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Interrupted(model, calls), samples, torn, sampling, BATCH)  # type: ignore[arg-type]
    assert not (torn / "results.json").exists()
    assert len(list(Ledger(torn / "answers.ledger").values())) == calls * BATCH
    left = Interrupted(model, -(-len(samples) // BATCH) - calls)  # may answer the remaining batches and no more
    evaluate(left, samples, torn, sampling, BATCH)  # type: ignore[arg-type]
    assert (torn / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()
    assert (torn / "scores.jsonl").read_bytes() == (whole / "scores.jsonl").read_bytes()


def test_sampled_answers_depend_on_the_seed(model: VisionLanguageModel, samples: list[Sample], tmp_path: Path) -> None:
    texts = []
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        evaluate(model, samples[:BATCH], folder, Sampling(6, temperature=0.7, seed=seed), BATCH)
        texts.append((folder / "predictions.jsonl").read_bytes())
    assert texts[0] != texts[1]


def test_several_answers_a_question_are_refused(
    model: VisionLanguageModel, samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="one answer a question, not 2"):
        evaluate(model, samples, tmp_path, Sampling(temperature=1.0, samples=2))
    assert list(tmp_path.iterdir()) == []


def test_reference_that_cannot_be_scored_is_found_before_any_question_is_asked(
    model: VisionLanguageModel, samples: list[Sample], tmp_path: Path
) -> None:
    wordless = Sample(**{**vars(samples[0]), "answer": "+"})
    unanswering = Interrupted(model, 0)
    with pytest.raises(InputError, match=r"(?s)1 questions cannot be scored:.*no words") as raised:
        evaluate(unanswering, [wordless, *samples[1:BATCH]], tmp_path, GREEDY)  # type: ignore[arg-type]
    assert [fault.row for fault in raised.value.faults] == [wordless.id]
    assert list(tmp_path.iterdir()) == []


def test_answers_are_kept_until_they_are_scored(
    model: VisionLanguageModel, samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mmedpo.evaluation.predict.score_folder", interrupt)
        evaluate(model, samples[:BATCH], tmp_path, GREEDY)
    evaluate(Interrupted(model, 0), samples[:BATCH], tmp_path, GREEDY)  # type: ignore[arg-type]
    assert (tmp_path / "results.json").exists()
