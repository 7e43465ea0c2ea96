"""Multiple choice from a source to an adapter and its scores; and datasets that were made before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from standins import STANDINS
from training.launches import arguments

from mmedpo import schema
from mmedpo.curation.hallucinate import ALL_RIGHT, Hallucination, Item, Rejection, Writer
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data import loading, options
from mmedpo.evaluation import pairs
from mmedpo.evaluation.answering import Generation, LocalModel
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.evaluation.metrics import choice
from mmedpo.evaluation.predict import batches, evaluate
from mmedpo.evaluation.questions import Asked, read
from mmedpo.evaluation.rescore import score_run
from mmedpo.evaluation.score import Scoring
from mmedpo.hub.publish import stripped
from mmedpo.hub.publish.files import File
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.quickstart.phantom import FINDINGS
from mmedpo.report.audit import audit
from mmedpo.runs.run_folder import output_folder, short_folder
from mmedpo.training import run as training


@pytest.fixture(scope="module")
def source(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, whose questions about a lung's finding have four options and a letter as gold answer."""
    folder = tmp_path_factory.mktemp("choice") / "phantoms"
    shutil.copytree(corpus, folder)
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        if row["question"].startswith("What is seen"):
            row |= {"options": [*FINDINGS], "answer": "ABCD"[FINDINGS.index(row["answer"])], "task": "choice"}
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def curated(source: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets") / "choice"
    settings = Settings(source=source, split="preference", model=str(tiny_model), **STANDINS)
    with output_folder(folder, settings.record()) as working:
        curate_folder(settings, working, "mmedpo curate")
    return folder


@pytest.fixture(scope="module")
def earlier(preferences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose files name three tasks and have no options, as earlier versions wrote them."""
    folder = tmp_path_factory.mktemp("datasets") / "earlier"
    shutil.copytree(preferences, folder)
    for file in folder.glob("data/*.parquet"):
        table = pq.read_table(file)
        about = json.loads(table.schema.metadata[b"huggingface"])
        names = about["info"]["features"]["task"]["names"]
        assert names.pop() == "choice_vqa" and names == ["closed_vqa", "open_vqa", "report"]
        assert "options" not in table.column_names
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), file)
    return folder


def test_curated_rows_show_the_options_and_reject_another(curated: Path) -> None:
    rows = loading.load(str(curated))
    assert rows.features == schema.features_of({"options": None})
    asked = [row for row in schema.undecoded(rows) if row["options"]]
    assert {schema.TASKS[row["task"]] for row in asked} == {"choice_vqa"} and len(asked) > 5
    for row in asked:
        lung, *lines = row["prompt"][0]["content"].split("\n")
        assert lung.endswith("lung?") and lines == [
            f"{letter}. {one}" for letter, one in zip("ABCD", FINDINGS, strict=True)
        ]
        assert row["chosen"][0]["content"] in FINDINGS and row["rejected"][0]["content"] in FINDINGS
        assert (row["chosen"] == row["rejected"]) == (row["rejected_images"] is not None)
    manifest = json.loads((curated / "manifest.json").read_text())
    assert any("gold answers given by letter" in said for said in manifest["source"]["notices"])
    found = audit(str(curated))
    assert found["faults"] == [] and found["counts"]["task"]["choice_vqa"] == len(asked)


def test_a_model_is_asked_the_same_in_curation_and_evaluation(curated: Path, source: Path) -> None:
    ours = {one.id: one for one in read(Asked(source, split="preference")).questions}
    again = {one.id: one for one in read(Asked(dataset=str(curated))).questions}
    assert again and all(ours[id_].prompt == one.prompt for id_, one in again.items())
    line = next(one.row() for one in again.values() if one.task == "choice_vqa")
    assert line["options"] == [*FINDINGS] and "\n" not in line["question"] and line["reference"] in FINDINGS
    assert "options" not in next(one.row() for one in again.values() if one.task == "report")


@pytest.mark.parametrize("made", ["curated", "earlier"])
def test_both_kinds_of_datasets_are_trained_on_measured_and_audited(
    made: str, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(made)
    rows = loading.load(str(folder))
    assert schema.validate(rows) == [] and audit(str(folder))["faults"] == []
    training.main(arguments(folder, tiny_model, tmp_path / "adapter", max_steps=1))
    model = VisionLanguageModel(str(tiny_model))
    number = schema.TASKS.index("choice_vqa")
    some = [i for i, task in enumerate(rows["task"]) if task == number or made == "earlier"]
    for number, measure in enumerate((pairs.Preference, pairs.VisualReliance)):
        (tmp_path / str(number)).mkdir()
        results = pairs.measure(measure(rows.select(some[:: len(some) // 6])), lambda: model, tmp_path / str(number))
        assert results["metrics"]
    assert {one.task for one in read(Asked(dataset=str(folder))).questions} == {*rows.features["task"].names}


class Scripted:
    name, revision = "scripted", None

    def __init__(self, said: str) -> None:
        self.said, self.asked = said, list[ChatRequest]()

    def complete(self, requests: Iterable[ChatRequest]) -> list[ChatReply]:
        new = list(requests)
        self.asked += new
        return [ChatReply(text=self.said) for _ in new]


@pytest.mark.parametrize(
    ("candidates", "said", "expected"),
    [
        (["It is the liver.", "A. lung", "(C)", "spleen", "heart"], "", ("liver", "target model", "said_option@1")),
        (["heart", "B"], '{"choice": 2, "kind": "other"}', ("liver", "scripted", "option@1")),
        ([], '{"choice": 0, "kind": "other"}', ALL_RIGHT),
        ([], "the second", ("options", "drawn_option@1")),
    ],
)
def test_rejected_option_is_the_targets_the_chat_models_or_drawn(
    candidates: list[str], said: str, expected: Any
) -> None:
    chat = Scripted(said)
    item = Item("Which organ?", "heart", "choice_vqa", candidates, options=("lung", "heart", "liver"), key="0 q1")
    (found,) = Writer(chat).choose([item])
    if isinstance(found, Rejection):
        assert found.reason == expected
    else:
        assert (found.text, found.made_by, found.prompt_version)[-len(expected) :] == expected
        assert found.text in ("lung", "liver")
    assert bool(chat.asked) == bool(said)
    assert all(request.variables["others"] == ["lung", "liver"] for request in chat.asked)


def test_the_only_other_option_needs_no_chat_model() -> None:
    item = Item("Is it?", "Yes", "closed_vqa", options=("Yes", "No"))
    assert Writer(Scripted("")).choose([item]) == [Hallucination("No", "options", "only_option@1")]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"rejected": "a nodule"}, None),  # contains the gold answer, and is another option
        ({"rejected": "spleen"}, ("rejected", "the rejected answer is none of the options")),
        ({"options": None}, ("options", "is missing")),
        ({"options": ["a nodule", "a mass"]}, ("options", "does not hold the gold answer")),
        ({"options": ["nodule"]}, ("options", "are 1;")),
        ({"task": "open_vqa"}, ("options", "has options")),
    ],
)
def test_rules_of_rows_with_options(changes: dict[str, Any], fault: tuple[str, str] | None) -> None:
    says = {name: [{"role": "assistant", "content": changes.get(name, text)}] for name, text in
            {"chosen": "nodule", "rejected": "a mass"}.items()}  # fmt: skip
    offered = {"options": ["nodule", "a nodule", "a mass"], "task": "choice_vqa", **changes}
    row = {**offered, **says, "rejected_images": None, "dispreference": "hallucinated_response"}
    found = [(column, sentence) for column, sentence in schema.broken_rules(row)]
    assert found == [] if fault is None else (found[0][0], found[0][1][: len(fault[1])]) == fault, found


def test_options_in_a_row_are_kept_by_plain_datasets(curated: Path) -> None:
    rows = Dataset.from_parquet([str(file) for file in curated.glob("data/*.parquet")])
    assert rows.features["task"].names[:3] == ["closed_vqa", "open_vqa", "report"]
    one = next(row for row in rows.select_columns(["prompt", "options"]) if row["options"])
    assert options.bare(one["prompt"][0]["content"], one["options"]).endswith("?")


def test_options_are_measured_by_likelihood_beside_the_answers(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = VisionLanguageModel(str(tiny_model))
    asked = read(Asked(source, split="test"))
    some = [one for one in asked.questions if one.options][:5] + list(asked.questions[:3])
    opened: list[Any] = []
    counting = replace(asked, questions=some, open_image=lambda image: opened.append(image) or asked.open_image(image))
    generation = Generation(4, 6, batch_size=3)
    results = evaluate(lambda tasks: LocalModel(model), counting, tmp_path, generation)
    assert len(opened) == sum(len({one.images for one in batch}) for batch in batches(some, generation))
    assert results is not None and results["gold_by_options"] == 35
    lines = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
             for name in ("questions", "predictions", "scores")}  # fmt: skip
    hits = {"likelihood_correct": 0.0, "likelihood_per_byte_correct": 0.0}
    for question, line, scores in zip(*lines.values(), strict=True):
        assert ("option_logps" in line) == ("options" in question)
        if "options" in question:
            place = next(one for one in some if one.id == question["id"])
            alone = [
                answer_logps(model, [View([*map(asked.open_image, place.images)], *(
                    [{"role": role, "content": text}] for role, text in (("user", place.prompt), ("assistant", option))
                ))])[0]
                for option in FINDINGS
            ]  # fmt: skip
            assert line["option_logps"] == pytest.approx(alone, abs=1e-3)
            likeliest = FINDINGS[max(range(4), key=alone.__getitem__)]
            per_byte = max(FINDINGS, key=lambda option: alone[FINDINGS.index(option)] / len(option))
            assert scores["likelihood_correct"] == (likeliest == question["reference"])
            assert scores["likelihood_per_byte_correct"] == (per_byte == question["reference"])
            hits = {name: hits[name] + scores[name] for name in hits}
    metrics = results["metrics"]
    assert metrics["choice_likelihood_accuracy"] == pytest.approx(hits["likelihood_correct"] / 5)
    assert metrics["choice_likelihood_per_byte_accuracy"] == pytest.approx(hits["likelihood_per_byte_correct"] / 5)
    with short_folder(tmp_path / "again") as again:
        assert score_run(tmp_path, again, Scoring(), {})["metrics"] == metrics


def test_a_model_that_can_answer_but_not_be_measured_says_so(source: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = VisionLanguageModel(str(tiny_model))
    template = model.processor.chat_template
    model.processor.chat_template = "{% if messages | length > 1 %}again{% endif %}" + template
    asked = read(Asked(source, split="test"))
    some = [one for one in asked.questions if one.options][:2]
    results = evaluate(lambda tasks: LocalModel(model), replace(asked, questions=some), tmp_path, Generation(4, 6))
    assert results is not None and "choice_likelihood_accuracy" not in results["metrics"]
    assert "writes the prompt differently" in results["metrics"]["choice_likelihood_accuracy_absent"]


@pytest.mark.parametrize(
    ("logps", "plain", "per_byte"),
    [([-4.0, -3.0], 1.0, 0.0), ([-30.0, -2.0], 1.0, 1.0), ([-3.0, -3.0], 0.0, 0.0), ([-1.0, -2.0], 0.0, 0.0)],
)
def test_likelihood_is_counted_plain_and_per_byte(logps: list[float], plain: float, per_byte: float) -> None:
    found = choice.score(logps, ["pneumothorax", "mass"], "mass")  # 12 bytes, 4 bytes
    assert list(found.values()) == [plain, per_byte]


@pytest.mark.parametrize("logps", [[-1.0], [-1.0, None], [-1.0, 2.0], -1.0, [-1.0, float("nan")]])
def test_log_probabilities_made_elsewhere_are_checked(logps: Any) -> None:
    assert choice.fault(logps, ["a", "b"]) and choice.fault([-1.0, -2.0], None)
    assert choice.fault(None, None) is None and choice.fault([-1.0, -2.0], ["a", "b"]) is None


def test_the_published_form_of_restricted_data_holds_no_option(curated: Path) -> None:
    for row in (row for file in curated.glob("data/*.parquet") for row in File(file).rows()):
        made = stripped.row(row)
        assert "options" not in made and not any(word in json.dumps(made) for word in FINDINGS)
