"""Pairs taken to Label Studio and Argilla, and verdicts taken back; their libraries read what is written."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from invented import QUESTION, row

from mmedpo.data import credentialed, origin, shards
from mmedpo.review.pairs import Pairs, digest
from mmedpo.review.verdicts import Verdict, Verdicts

ROWS = 4


@pytest.fixture
def pairs(tmp_path: Path) -> Pairs:
    shards.save([row(number, visual=number % 2 == 1) for number in range(ROWS)], tmp_path / "pairs")
    return Pairs(tmp_path / "pairs")


def exported(run: Any, pairs: Pairs, tool: str) -> Path:
    code, said = run("exchange", pairs.folder, "--to", tool, "--output", tool)
    assert code == 0, said
    return Path(tool)


def imported(run: Any, pairs: Pairs, given: Any, undecided: int = 0) -> list[Verdict]:
    Path("export.json").write_text(json.dumps(given))
    code, said = run("exchange", pairs.folder, "--from", "export.json")
    assert code == 0, said
    assert said.count("Left out") == said.count(f"Left out: {undecided} annotation") == bool(undecided)
    return Verdicts(pairs.folder.with_name("pairs.verdicts.jsonl")).all()


def part(name: str, kind: str, **value: Any) -> dict[str, Any]:
    return {"from_name": name, "to_name": "question", "type": kind, "value": value}


def test_label_studio_tasks_come_back_as_verdicts(pairs: Pairs, run: Any) -> None:
    tasks = json.loads((exported(run, pairs, "label-studio") / "tasks.json").read_text())
    assert tasks[0]["data"]["question"] == QUESTION and len(tasks) == ROWS
    assert (
        base64.b64decode(tasks[1]["data"]["rejected_image"].partition(",")[2])
        == (pairs.read(1)["rejected_images"][0]["bytes"])
    )
    (box,) = [one for one in tasks[1]["predictions"][0]["result"] if one["type"] == "rectanglelabels"]
    assert [box["value"][side] for side in ("x", "y", "width", "height")] == [25, 25, 25, 25]

    decided = part("decision", "choices", choices=["accept"])
    moved = {**box, "value": {**box["value"], "x": 50}}
    annotations = [
        [{"completed_by": {"email": "a@clinic"}, "updated_at": "2026-01-01T00:00:00Z", "lead_time": 3.5,
          "result": [decided, part("chosen", "textarea", text=["a small nodule"]),
                     part("relevance", "number", number=0.7)]}],
        [{"completed_by": 2, "created_at": "t", "result": [decided, moved]}],
        [{"completed_by": 2, "created_at": "t", "result": [part("decision", "choices", choices=["reject"]),
                                                          part("reason", "textarea", text=["blurred – 肺"])]}],
        [{"completed_by": 2, "was_cancelled": True, "result": []}],
    ]  # fmt: skip
    given = [{**task, "annotations": one} for task, one in zip(tasks, annotations, strict=True)]
    given.append({"data": {"row": "gone", "digest": "d"}, "annotations": [{"completed_by": 2, "result": [decided]}]})
    edited, boxed, rejected, gone = imported(run, pairs, given, undecided=1)
    assert (edited.reviewer, edited.relevance, edited.seconds) == ("Label Studio a@clinic", 0.7, 3.5)
    assert edited.before == {"chosen": "a nodule"} and edited.after == {"chosen": "a small nodule"}
    assert edited.digest == digest(pairs.read(0))
    assert boxed.after == {"boxes": [{"label": "nodule", "x": 32, "y": 16, "width": 16, "height": 16, "confidence": 1}]}
    assert (rejected.decision, rejected.reason, rejected.after) == ("reject", "blurred – 肺", {})
    assert gone.row == "gone"
    assert len(imported(run, pairs, given, undecided=1)) == 4  # the same export twice


def test_argilla_records_come_back_as_verdicts(pairs: Pairs, run: Any) -> None:
    folder = exported(run, pairs, "argilla")
    records = json.loads((folder / "records.json").read_text())
    assert [one["id"] for one in records] == [one.name for one in pairs.rows]
    assert "rejected_image" not in records[0]["fields"] and "rejected_image" in records[1]["fields"]
    records[0]["responses"] = {
        "decision": [{"value": "accept", "user_id": "u1"}, {"value": "reject", "user_id": "u2"}],
        "relevance": [{"value": 7, "user_id": "u1"}],
        "rejected_text": [{"value": "a mass", "user_id": "u1"}, {"value": "the heart is too large", "user_id": "u2"}],
        "reason": [{"value": "both right", "user_id": "u2"}],
    }
    records[1]["responses"] = {"reason": [{"value": "no decision", "user_id": "u1"}]}
    first, second = imported(run, pairs, records, undecided=1)
    assert (first.reviewer, first.decision, first.relevance) == ("Argilla u1", "accept", 0.7)
    assert first.after == {"rejected": "a mass"}
    assert (second.decision, second.reason, second.after) == ("reject", "both right", {})


def test_texts_that_were_left_empty_change_nothing(pairs: Pairs, run: Any) -> None:
    records = json.loads((exported(run, pairs, "argilla") / "records.json").read_text())
    records[0]["responses"] = {name: [{"value": value, "user_id": "u"}] for name, value in
                               (("decision", "accept"), ("chosen_text", " "), ("rejected_text", None))}  # fmt: skip
    (said,) = imported(run, pairs, records[:1])
    assert (said.decision, said.after) == ("accept", {})


def test_edits_that_make_no_pair_are_listed_and_nothing_is_written(pairs: Pairs, run: Any) -> None:
    tasks = json.loads((exported(run, pairs, "label-studio") / "tasks.json").read_text())
    (box,) = [one for one in tasks[1]["predictions"][0]["result"] if one["type"] == "rectanglelabels"]
    accept = part("decision", "choices", choices=["accept"])
    outside = {**box, "value": {**box["value"], "x": 120}}
    for task, more in zip(tasks, [part("chosen", "textarea", text=["the heart is too large"]), outside], strict=False):
        task["annotations"] = [{"completed_by": 7, "result": [accept, more]}]
    Path("export.json").write_text(json.dumps(tasks))
    code, said = run("exchange", pairs.folder, "--from", "export.json")
    assert code == 2 and "chosen and rejected are equal" in said and "outside of its image" in said
    assert "Label Studio 7" in said and not pairs.folder.with_name("pairs.verdicts.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no list"),
        ([1], "no list"),
        ([{"x": 1}], "was not made by"),
        ([{"data": {"row": "r"}, "annotations": [{"result": [{}]}]}], "entry 1 was not made by"),
        ([{"data": {"row": "r", "digest": "d"}, "annotations": [{"result": []}]}], "entry 1 was not made by"),
        ([{"data": {"row": "r", "digest": "d"}, "annotations": [
            {"result": [part("decision", "choices", choices=["maybe"])]}]}], "accept, reject, unsure"),
        ([{"data": {"row": "r", "digest": "d"}, "annotations": [{"result": [
            {"original_width": 9, "original_height": 9, **part("boxes", "rectanglelabels", rotation=30)}]}]}],
         "a rotated box"),
    ],
)  # fmt: skip
def test_a_foreign_export_is_refused(pairs: Pairs, run: Any, given: Any, said: str) -> None:
    Path("export.json").write_text(json.dumps(given))
    code, printed = run("exchange", pairs.folder, "--from", "export.json")
    assert code == 2 and said in printed


@pytest.mark.parametrize("tool", ["label-studio", "argilla"])
def test_what_is_written_of_restricted_data_is_marked(pairs: Pairs, run: Any, tool: str) -> None:
    assert origin.credentialed_source(exported(run, pairs, tool)) is None
    (pairs.folder / credentialed.MARKER).touch()
    code, said = run("exchange", pairs.folder, "--to", tool, "--output", "marked")
    assert code == 0 and "pairs is restricted data" in said and credentialed.has_marker(Path("marked"))


def test_label_studio_reads_its_tasks(pairs: Pairs, run: Any) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    folder = exported(run, pairs, "label-studio")
    made = interface.LabelInterface((folder / "config.xml").read_text())
    made.validate()
    for task in json.loads((folder / "tasks.json").read_text()):
        made.validate_task({"data": task["data"]})
        assert all(made.validate_prediction(one) for one in task["predictions"])


def test_argilla_reads_its_records(pairs: Pairs, run: Any) -> None:
    records = pytest.importorskip("argilla.records._io", reason="argilla is not installed")
    folder = exported(run, pairs, "argilla")
    read = records.JsonIO._records_from_json(folder / "records.json")
    assert [one.id for one in read] == [one.name for one in pairs.rows]
