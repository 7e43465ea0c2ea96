"""`mmedpo score`: a finished run under other protocols, and predictions made elsewhere; no model is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.metrics import med_vqa
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.questions import Asked, QuestionSet, read
from mmedpo.evaluation.rescore import main, scoring_of
from mmedpo.evaluation.score import Scoring
from mmedpo.models.vision_language import VisionLanguageModel

NONE = {"vqa_protocol": None, "report_protocol": None, "meteor_variant": None}


@pytest.fixture(scope="module")
def asked(corpus: Path) -> QuestionSet:
    return read(Asked(corpus, split="test", limit=12))


@pytest.fixture(scope="module")
def run(asked: QuestionSet, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    model = LocalModel(VisionLanguageModel(str(tiny_model)))
    evaluate(
        lambda tasks: model, asked, folder, Generation(6, 6), record={"name": "start", "command": "mmedpo evaluate"}
    )
    return folder


def content(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return found


def predictions(file: Path, asked: QuestionSet, **changes: Any) -> Path:
    """A file of gold answers, in another order, whose lines `changes` replaces by id (None: there is none)."""
    lines = [{"id": q.id, "prediction": q.reference, "note": "theirs"} for q in reversed(asked.questions)]
    rows = [changes.get(line["id"], line) for line in lines]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None), encoding="utf-8")
    return file


def of_file(file: Path, corpus: Path, output: Path, split: str = "test") -> dict[str, Any]:
    asked = Asked(corpus, split=split, limit=12)
    return main(None, file, asked, NONE, output, {"name": "theirs", "command": "mmedpo score"})


def test_a_finished_run_is_scored_anew_and_says_how_it_was_scored_before(run, tmp_path):
    results = main(
        run, None, Asked(), {**NONE, "vqa_protocol": "paper"}, tmp_path / "out", {"name": "o", "command": "c"}
    )
    before = content(run)
    assert results == content(tmp_path / "out")
    assert results["protocols"] == {"med_vqa": "paper", "report_generation": "coco"}
    assert results["scored_before"] == {key: before[key] for key in ("name", "command", "versions", "protocols")}
    assert (results["name"], results["model"], results["settings"]) == ("o", before["model"], before["settings"])
    for name in ("questions.jsonl", "predictions.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (run / name).read_bytes()
    asked, answers = (
        {row["id"]: row for row in map(json.loads, (run / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())}
        for name in ("questions", "predictions")
    )
    short = [question for question in asked.values() if question["task"] != "report"]
    found = med_vqa.compute(
        [answers[question["id"]]["prediction"] for question in short],
        [question["reference"] for question in short],
        [question["task"].removesuffix("_vqa") for question in short],
        "paper",
    )
    assert {name: results["metrics"][name] for name in found} == found
    assert found["med_vqa_definition"] != before["metrics"]["med_vqa_definition"]


def test_what_is_not_chosen_stays_as_the_run_has_it(run):
    assert scoring_of(run) == Scoring("strict", "coco", content(run)["metrics"]["meteor_variant"])


@pytest.mark.parametrize(
    ("chosen", "variant"),
    [
        ({"report_protocol": "paper"}, "nltk_wordnet"),
        ({"report_protocol": "paper", "meteor_variant": "nltk_exact_stem"}, "nltk_exact_stem"),
        ({"report_protocol": "coco"}, "nltk_exact_stem"),
        ({"vqa_protocol": "paper"}, "nltk_exact_stem"),
    ],
)
def test_another_report_protocol_brings_its_own_meteor(run, tmp_path, chosen, variant):
    main(run, None, Asked(), {**NONE, "meteor_variant": "nltk_exact_stem"}, tmp_path / "stem", {"name": "stem"})
    results = main(tmp_path / "stem", None, Asked(), {**NONE, **chosen}, tmp_path / "out", {"name": "out"})
    assert results["metrics"]["meteor_variant"] == variant


def test_predictions_made_elsewhere_make_an_evaluation_folder(asked, corpus, run, tmp_path):
    file = predictions(tmp_path / "theirs.jsonl", asked)
    results = of_file(file, corpus, tmp_path / "out")
    assert results["metrics"]["overall_accuracy"] == results["metrics"]["open_exact_match"] == 1
    assert (results["model"], results["predictions"], results["split"]) == (None, "theirs.jsonl", "test")
    assert (tmp_path / "out" / "questions.jsonl").read_bytes() == (run / "questions.jsonl").read_bytes()
    first = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert json.loads(first) == {"id": asked.questions[0].id, "prediction": asked.questions[0].reference}


def test_every_fault_of_predictions_is_listed_and_nothing_is_left(asked, corpus, tmp_path):
    object_, number, missing, twice = (question.id for question in asked.questions[:4])
    file = predictions(
        tmp_path / "theirs.jsonl", asked,
        **{object_: {"id": object_, "prediction": {}}, number: {"id": number, "prediction": 3}, missing: None},
    )  # fmt: skip
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"id": twice, "prediction": "again"}) + "\n")
        lines.write(json.dumps({"id": "nobody", "prediction": "yes"}) + "\n")
        lines.write(json.dumps({"id": 7.5, "prediction": "yes"}) + "\n")
    with pytest.raises(InputError) as raised:
        of_file(file, corpus, tmp_path / "out")
    said = str(raised.value)
    assert f"1 of 12 questions have no prediction: {missing}." in said and "another split" not in said
    assert "1 of 12 predictions answer no question: nobody." in said
    named = {fault.row for fault in raised.value.faults}
    assert named == {object_, number, missing, "nobody", "theirs.jsonl:12", "theirs.jsonl:14"}
    assert not list(tmp_path.glob("out*"))


def test_predictions_that_keep_their_questions_are_compared_with_them(asked, corpus, tmp_path):
    same, other, image = (question.id for question in asked.questions[:3])
    rows = {row["id"]: row | {"prediction": "yes"} for row in asked.rows()}
    rows[other]["question"] = "Is this another question?"
    rows[image]["image_digest"] = "0" * 64
    file = predictions(tmp_path / "theirs.jsonl", asked, **rows)
    with pytest.raises(InputError) as raised:
        of_file(file, corpus, tmp_path / "out")
    assert {(fault.row, fault.column) for fault in raised.value.faults} == {
        (other, "question"),
        (image, "image_digest"),
    }
    of_file(predictions(tmp_path / "theirs.jsonl", asked, **{same: rows[same]}), corpus, tmp_path / "out")


def test_predictions_for_another_split_are_recognised(corpus, tmp_path):
    file = predictions(tmp_path / "theirs.jsonl", read(Asked(corpus, split="validation", limit=12)))
    with pytest.raises(InputError, match=r"12 of 12 questions have no prediction: .*another split or source"):
        of_file(file, corpus, tmp_path / "out")


def test_a_protocol_that_does_not_exist_is_refused_with_those_that_do(run, tmp_path):
    for part, known in (("vqa_protocol", "strict"), ("report_protocol", "coco"), ("meteor_variant", "nltk_exact_stem")):
        with pytest.raises(InputError, match=f"{part} 'lenient' does not exist; choose one of: .*{known}"):
            main(run, None, Asked(), {**NONE, part: "lenient"}, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["questions.jsonl", "predictions.jsonl"])
def test_a_run_whose_files_changed_since_is_not_scored(run, tmp_path, name):
    changed = Path(shutil.copytree(run, tmp_path / "changed"))
    with (changed / name).open("a", encoding="utf-8") as lines:
        lines.write("\n")  # the same to whoever reads its lines
    with pytest.raises(InputError, match=f"changed: {name} changed after results.json was written"):
        main(changed, None, Asked(), NONE, tmp_path / "out", {"name": "out"})
    assert not (tmp_path / "out").exists()


def test_scores_are_made_anew_whatever_became_of_them(run, tmp_path):
    changed = Path(shutil.copytree(run, tmp_path / "changed"))
    (changed / "scores.jsonl").unlink()
    results = main(changed, None, Asked(), NONE, tmp_path / "out", {"name": "out"})
    assert results["metrics"] == content(run)["metrics"]


def test_neither_or_both_are_refused(run, tmp_path):
    for given in ((None, None), (run, tmp_path / "predictions.jsonl")):
        with pytest.raises(InputError, match="either a finished evaluation or --predictions"):
            main(*given, Asked(), NONE, tmp_path / "out", {})


def test_a_finished_run_takes_no_option_about_questions(run, tmp_path):
    asked = Asked(tmp_path, split="test", skip_faulty=True)
    with pytest.raises(InputError, match=r"leave out --source, --split, --skip-faulty"):
        main(run, None, asked, NONE, tmp_path / "out", {})


def test_predictions_may_begin_with_a_byte_order_mark(asked, corpus, tmp_path):
    file = predictions(tmp_path / "theirs.jsonl", asked)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert of_file(file, corpus, tmp_path / "out")["metrics"]["overall_accuracy"] == 1


def test_predictions_that_no_file_can_hold_are_refused(asked, corpus, tmp_path):
    id_ = asked.questions[0].id
    file = predictions(tmp_path / "theirs.jsonl", asked, **{id_: {"id": id_, "prediction": "left \ud83d lung"}})
    with pytest.raises(InputError, match=r"theirs.jsonl, line 12 holds a lone surrogate"):
        of_file(file, corpus, tmp_path / "out")
    for whole in ("left \U0001f600 lung", "left \\ud83d lung"):
        predictions(file, asked, **{id_: {"id": id_, "prediction": whole}})
        of_file(file, corpus, tmp_path / f"out-{len(whole)}")


@pytest.mark.parametrize("results", [None, {"protocols": {"preference": "log_likelihood"}}, []])
def test_what_holds_no_scored_answers_is_refused(run, tmp_path, results):
    if results is not None:
        (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(InputError, match=r"does not exist|has no scored answers"):
        main(tmp_path, None, Asked(), NONE, tmp_path / "out", {})


def test_missing_predictions_are_named(corpus, tmp_path):
    with pytest.raises(InputError, match=r"nowhere.jsonl does not exist"):
        of_file(tmp_path / "nowhere.jsonl", corpus, tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\); give a finished evaluation"):
        of_file(tmp_path, corpus, tmp_path / "out")
    assert not list(tmp_path.iterdir())
