"""Scored answers are the same for a model in this process, behind an endpoint, or one that ran elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received, o_series

from mmedpo.errors import InputError
from mmedpo.evaluation import predictions
from mmedpo.evaluation.answering import EndpointModel, Generation, LocalModel
from mmedpo.evaluation.metrics import med_vqa, report_generation
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.questions import Asked, QuestionSet, read
from mmedpo.evaluation.rescore import score_predictions
from mmedpo.evaluation.score import Scoring
from mmedpo.models import prefill, thoughts

LONGEST = Generation(max_new_tokens=9, max_new_tokens_report=9)


@pytest.fixture(scope="module")
def asked(corpus: Path) -> QuestionSet:
    """20 questions that are all different."""
    found = read(Asked(corpus, split="test", limit=20))
    return replace(found, questions=[replace(q, text=f"{q.text} {i}") for i, q in enumerate(found.questions)])


def said(text: str) -> tuple[str, str]:
    """Return the model's reply to a question, by the number at its end, and the finish_reason."""
    return [
        ("Yes.", "stop"),
        ("<think>no?</think> Yes.", "stop"),
        ("The left lu", "length"),
        ("[THINK]no?[/THINK]The left lu", "length"),
        ("<unused94>thought\nno, or", "length"),
        ("<think>no, or", "stop"),
        ("<think>no</think>", "stop"),
    ][int(text.split()[-1]) % 7]


LINES = [
    {"prediction": "Yes."},
    {"prediction": "Yes.", "raw": "<think>no?</think> Yes."},
    {"prediction": "The left lu", "cut": True},
    {"prediction": "The left lu", "raw": "[THINK]no?[/THINK]The left lu", "cut": True},
    {
        "prediction": "", "raw": "<unused94>thought\nno, or",
        "unanswered": "its thought was not finished within 9 tokens",
    },
    {"prediction": "", "raw": "<think>no, or", "unanswered": "its thought was not finished"},
    {"prediction": "", "raw": "<think>no</think>", "unanswered": "the answer is empty"},
]  # fmt: skip


class Speaking(LocalModel):
    """A model in this process that says what it is told."""

    generating = SimpleNamespace(share=None)

    def __init__(self) -> None:
        self.model: Any = self

    def prompts(self, questions: Any, sampling: Any) -> Any:
        return [text for _, text in questions]

    def answers(self, model: Any, prompts: Any, parts: Any) -> Any:
        """In place of `prefill.answers`: the same form, without a computation."""
        found = (said(text) for text in prompts)
        yield [[thoughts.read(raw, 9 if ended == "length" else None)] for raw, ended in found]

    def record(self, question: str) -> dict[str, Any]:
        return {"model": "speaking"}


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_a_model_here_and_behind_an_endpoint_are_scored_alike(chat_server, asked, tmp_path, caplog, monkeypatch):
    def answer(received: Received) -> Answer:
        raw, ended = said(received.text)
        return Answer(raw, finish=ended)

    chat_server.answer = answer
    results = {}
    there = EndpointModel(f"{chat_server.url}#m")
    monkeypatch.setattr(prefill, "answers", Speaking().answers)
    for name, model in (("here", lambda tasks: Speaking()), ("there", lambda tasks: there)):
        (tmp_path / name).mkdir()
        results[name] = evaluate(model, asked, tmp_path / name, LONGEST)
        assert lines(tmp_path / name) == [{"id": q.id, **LINES[i % 7]} for i, q in enumerate(asked.questions)]
        assert (results[name]["unanswered"], results[name]["cut_off"]) == (8, 6)
        assert results[name]["unanswered_reasons"] == {
            "its thought was not finished within 9 tokens": 3, "its thought was not finished": 3,
            "the answer is empty": 2,
        }  # fmt: skip
        notes = [record.getMessage() for record in caplog.records if record.name == "mmedpo.evaluation.score"]
        assert [note.split(" of 20")[0] for note in notes] == ["8", "6"]
        caplog.clear()
    assert results["here"]["metrics"] == results["there"]["metrics"]
    assert "requests" not in results["here"]
    assert results["there"]["requests"] == [{"max_tokens": 9, "temperature": 0.0, "seed": 0}]


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (Answer(""), "refused: the answer has no content (finish_reason 'stop')"),
        (Answer("Yes.", finish="content_filter"), "it ended by finish_reason 'content_filter'"),
        (Answer("", finish="length"), "cut off at 9 tokens"),
    ],
    ids=["empty", "filtered", "cut before anything"],
)
def test_what_an_endpoint_did_not_deliver_stops_the_run_unless_it_is_accepted(
    chat_server: ChatServer, asked: QuestionSet, tmp_path: Path, odd: Answer, reason: str
) -> None:
    chat_server.answer = lambda received: odd if received.text.endswith(" 7") else Answer("Yes.")
    model = EndpointModel(f"{chat_server.url}#m")
    with pytest.raises(InputError, match="1 of 20 questions got no answer") as raised:
        evaluate(lambda tasks: model, asked, tmp_path, LONGEST)
    assert [(fault.row, fault.sentence) for fault in raised.value.faults] == [(asked.questions[7].id, reason)]
    results = evaluate(lambda tasks: model, asked, tmp_path, LONGEST, accept_unanswered=True)
    assert results and results["unanswered_reasons"] == {reason: 1}
    assert lines(tmp_path)[7] == {"id": asked.questions[7].id, "prediction": "", "unanswered": reason}


@pytest.mark.parametrize("opens", [True, False])
def test_a_draft_in_a_thought_that_the_template_opened_is_no_answer_of_an_endpoint(chat_server, asked, tmp_path, opens):
    """Nothing in a cut-off draft says that it is one, but the other answers do."""

    def answer(received: Received) -> Answer:
        cut = received.text.endswith(" 3")
        return Answer("It may be yes or" if cut else "Hm.</think>Yes." * opens or "Yes.", finish="length" * cut or None)

    chat_server.answer = answer
    results = evaluate(lambda tasks: EndpointModel(f"{chat_server.url}#m"), asked, tmp_path, LONGEST)
    assert results and (results["unanswered"], results["cut_off"]) == ((1, 0) if opens else (0, 1))
    assert lines(tmp_path)[3]["prediction"] == ("" if opens else "It may be yes or")


def test_parameters_that_an_endpoint_took_are_in_the_results(chat_server, asked, tmp_path, caplog):
    chat_server.answer = lambda received: o_series(received) or Answer("Yes.")
    generation = Generation(max_new_tokens=9, max_new_tokens_report=11)
    results = evaluate(lambda tasks: EndpointModel(f"{chat_server.url}#m"), asked, tmp_path, generation)
    assert results and sorted(map(str, results["requests"])) == [
        "{'max_completion_tokens': 11}", "{'max_completion_tokens': 9}",
    ]  # fmt: skip
    said_so = [record.getMessage() for record in caplog.records if record.name == "mmedpo.models.chat.endpoint"]
    assert len(said_so) == 1 and "temperature and seed" in said_so[0]


def test_predictions_made_elsewhere_are_scored_without_their_thoughts(asked, tmp_path):
    plain = [line["prediction"] for line in (LINES[i % 7] for i in range(20))]
    found = {}
    for name, texts in (("plain", plain), ("raw", [said(q.text)[0] for q in asked.questions])):
        (tmp_path / name).mkdir()
        file = tmp_path / f"{name}.jsonl"
        rows = ({"id": q.id, "prediction": text} for q, text in zip(asked.questions, texts, strict=True))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        found[name] = score_predictions(asked, file, tmp_path / name, Scoring(), {"name": name})
        assert [line["prediction"] for line in lines(tmp_path / name)] == plain
        assert found[name]["unanswered"] == 8 and "cut_off" not in found[name]
    assert found["raw"]["metrics"] == found["plain"]["metrics"]
    assert found["plain"]["unanswered_reasons"] == {"the answer is empty": 8}
    assert found["raw"]["unanswered_reasons"] == {"its thought was not finished": 6, "the answer is empty": 2}


NOTHING = {"prediction": "", "unanswered": "the prediction is null or NaN"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prediction": "Yes.", "raw": None, "cut": None, "unanswered": None}, {"prediction": "Yes."}),
        ({"prediction": "The", "cut": True, "raw": "a The"}, {"prediction": "The", "cut": True, "raw": "a The"}),
        *(({"prediction": nothing}, NOTHING) for nothing in (None, float("nan"), "nan", " NaN\n")),
        ({"prediction": None, "unanswered": "it was refused"}, {"prediction": "", "unanswered": "it was refused"}),
        ({"prediction": "Nancy"}, {"prediction": "Nancy"}),
    ],
)
def test_a_line_made_elsewhere_says_nothing_by_null_and_nan(row, expected):
    assert predictions.faults("a", row) == []
    assert predictions.reread(row) == expected
    assert predictions.counts([expected])["unanswered"] == int(not expected["prediction"])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "a [prediction]: is not a string; an unanswered question has '', got nothing"),
        ({"prediction": 5}, "a [prediction]: is not a string; an unanswered question has '', got 5"),
        ({"prediction": "x", "raw": 5}, "a [raw]: is not a string; correct or remove it, got 5"),
        ({"prediction": "x", "cut": ".."}, "a [cut]: is not true or false; correct or remove it, got '..'"),
        ({"prediction": "x", "unanswered": []}, "a [unanswered]: is not a string; correct or remove it, got []"),
    ],
)
def test_a_wrong_type_is_the_fault_of_its_line(row, said, asked, tmp_path):
    assert list(map(str, predictions.faults("a", row))) == [said]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"id": q.id, **row}) + "\n" for q in asked.questions), encoding="utf-8")
    with pytest.raises(InputError, match="20 faults"):
        score_predictions(asked, file, tmp_path, Scoring(), {"name": "a"})


def test_plain_predictions_beside_thoughts_that_the_template_opened_are_pointed_at():
    told = ["Hm.</think>Yes.", "It may be yes or", ""]
    lines = [predictions.reread({"prediction": text}) for text in told]
    assert [line["prediction"] for line in lines] == ["Yes.", "It may be yes or", ""]
    (note,) = predictions.notes(lines[:2])
    assert note.startswith(
        "1 of 2 predictions contain the end of a thought that the chat template began. 1 contain none"
    )
    assert list(predictions.notes(lines[:1])) == list(predictions.notes(lines[1:2])) == []


@pytest.mark.parametrize("protocol", med_vqa.PROTOCOLS)
def test_metrics_of_answers_take_thoughts_off(protocol):
    gold = {
        "references": ["yes", "no", "left lung"],
        "answer_types": ["closed", "closed", "open"],
        "protocol": protocol,
    }
    told = ["<think>no?</think>Yes.", "[THINK]no", "right?</think><answer>Left lung</answer>"]
    assert med_vqa.compute(told, **gold) == med_vqa.compute(["Yes.", "", "Left lung"], **gold)
    assert med_vqa.score(told[0], "yes", "closed", protocol)["verdict"] == "correct"


@pytest.mark.parametrize("protocol", report_generation.PROTOCOLS)
def test_metrics_of_reports_take_thoughts_off(protocol):
    options: dict[str, Any] = {"protocol": protocol, "meteor_variant": "nltk_exact_stem"}
    gold = ["No pleural effusion.", "The heart is normal."]
    told = ["<think>effusion or no</think>No effusion.", "<think>The heart is normal."]
    assert report_generation.compute(told, gold, **options) == report_generation.compute(
        ["No effusion.", ""], gold, **options
    )
