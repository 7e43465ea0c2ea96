"""Closed answers that could not be read: their shares, and their part in a difference of closed accuracy."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.joining import joined
from mmedpo.evaluation.metrics.closed import UNREAD
from mmedpo.evaluation.score import Scoring, finish
from mmedpo.hub import results
from mmedpo.report import tables, unread, write_report
from mmedpo.runs.json_files import sha256

FINDINGS = ("fracture", "pleural effusion", "pneumothorax", "lung nodule")
# By verdict, to "Is there a FINDING?" with the gold answer "yes".
ANSWERS = {
    "correct": "Yes.", "wrong": "No.", "both": "Yes and no.", "neither": "The image is good.",
    "refused": "I am sorry, but I cannot answer this.", "empty": "",
}  # fmt: skip
STATED = {"yes": "There is a {}.", "no": "There is no sign of a {}."}  # read with the question only
KNOWN_BEFORE = ("overall_accuracy", "closed_accuracy", "n_closed", "n_open", "n_report", "med_vqa_definition")
HEDGED = "A {} may or may not be present."


def question(number: int, organ: str = "CHEST") -> dict[str, Any]:
    return {"id": f"q{number}", "image_id": f"image-{number // 2}", "patient_id": None, "task": "closed_vqa",
            "question": f"Is there a {FINDINGS[number % 4]}?", "reference": "yes", "organ": organ}  # fmt: skip


def evaluated(folder: Path, asked: list[dict[str, Any]], answers: list[str], protocol: str = "strict") -> Path:
    """An evaluation folder with these answers, named as the folder."""
    folder.mkdir(parents=True)
    predictions = [{"id": row["id"], "prediction": text} for row, text in zip(asked, answers, strict=True)]
    for name, lines in (("questions", asked), ("predictions", predictions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = {"format": "mmedpo.results/1", "name": folder.name, "source": "invented",
              "questions_sha256": sha256(folder / "questions.jsonl")}  # fmt: skip
    scoring = Scoring(protocol)
    finish(folder, joined(folder / "questions.jsonl", folder / "predictions.jsonl", scoring), scoring, record)
    return folder


def compared(folder: Path, before: list[str], *now: list[str], protocol: str = "strict", **changes: Any) -> Any:
    asked = [{**question(number), **changes} for number in range(len(before))]
    runs = [evaluated(folder / name, asked, answers, protocol)
            for name, answers in zip(("start", "mmedpo", "other"), (before, *now), strict=False)]  # fmt: skip
    return compare(runs, resamples=200)


def said(found: dict[str, Any]) -> str:
    return " ".join(unread.gains(found, "closed"))


def of_verdicts(*verdicts: str) -> list[str]:
    return [ANSWERS[verdict] for verdict in verdicts]


def shares_in(scores: Path) -> dict[str, float]:
    """Shares counted from the verdicts of scores.jsonl."""
    verdicts = [json.loads(line)["verdict"] for line in scores.read_text(encoding="utf-8").splitlines()]
    shares = {kind: verdicts.count(kind) / len(verdicts) for kind in UNREAD}
    return {"unread": sum(shares.values()), **shares}


def test_shares_and_gains_are_counted_by_hand(tmp_path: Path) -> None:
    before = ("neither", "neither", "refused", "correct", "correct", "wrong", "wrong", "correct", "empty", "both")
    now = ("correct", "correct", "wrong", "neither", "wrong", "correct", "correct", "correct", "correct", "both")
    found = compared(tmp_path, of_verdicts(*before), of_verdicts(*now))
    shares, gain = found["reading"]["closed"]["shares"], found["reading"]["closed"]["gain"]["mmedpo"]
    assert found["reading"]["closed"]["n"] == {"questions": 10, "images": 5}
    values = {name: (cells["start"]["value"], cells["mmedpo"]["value"]) for name, cells in shares.items()}
    others = {"both": (0.1, 0.1), "neither": (0.2, 0.1), "refused": (0.1, 0.0), "empty": (0.1, 0.0)}
    assert values == {"unread": (0.5, 0.2), **others}
    assert shares["unread"]["mmedpo"]["difference"] == pytest.approx(-0.3)
    parts = {"unread_before": 0.3, "unread_now": -0.1, "read_in_both": 0.1}
    assert {name: cell["value"] for name, cell in gain.items()} == pytest.approx(parts)
    assert found["metrics"]["closed_accuracy"]["mmedpo"]["difference"] == pytest.approx(0.3)
    assert "Of the +30.0 points of closed accuracy from the starting model to MMedPO, +30.0 [" in said(found)
    assert all("p" not in cell for cells in shares.values() for cell in cells.values())
    assert found["tests"]["table"] == len(found["metrics"])


def test_parts_add_up_to_the_difference_for_any_verdicts(tmp_path: Path) -> None:
    rng = random.Random(0)
    for trial in range(20):
        verdicts = [rng.choices(list(ANSWERS), weights=[rng.random() for _ in ANSWERS], k=24) for _ in range(3)]
        found = compared(tmp_path / str(trial), *(of_verdicts(*one) for one in verdicts))
        for run in found["runs"]:
            shares = {name: cells[run]["value"] for name, cells in found["reading"]["closed"]["shares"].items()}
            assert shares == pytest.approx(shares_in(tmp_path / str(trial) / run / "scores.jsonl"))
        for run, parts in found["reading"]["closed"]["gain"].items():
            whole = found["metrics"]["closed_accuracy"][run]["difference"]
            assert sum(part["value"] for part in parts.values()) == pytest.approx(whole, abs=1e-12)
            assert all(part["low"] <= part["value"] <= part["high"] for part in parts.values())


def styled(form: str, prefix: bool = False) -> list[str]:
    """Answers to 40 questions of gold "yes", of which 30 are right, in one form."""
    words = ["yes" if number % 4 else "no" for number in range(40)]
    opening = {"yes": "Yes. ", "no": "No. "} if prefix else dict.fromkeys(STATED, "")
    return [opening[word] + (form or STATED[word]).format(FINDINGS[number % 4]) for number, word in enumerate(words)]


def test_runs_that_differ_by_style_alone_are_said_to(tmp_path: Path) -> None:
    before = [*styled("")[:20], *styled(HEDGED)[20:]]
    found = compared(tmp_path, before, styled("", prefix=True))
    assert found["metrics"]["closed_accuracy"]["mmedpo"]["difference"] == 15 / 40
    sentence = (
        "Of the +37.5 points of closed accuracy from the starting model to MMedPO, +37.5 [+17.5, +55.0] come from "
        "answers that could not be read in the starting model, and 0.0 [0.0, 0.0] from the 20 questions whose answers "
        "were read in both, where nothing changed."
    )
    assert said(found) == sentence
    (warned,) = [note for note in found["notes"] if "style alone" in note]
    assert warned.startswith("0.0 % of the closed answers of 'mmedpo' could not be read and count as wrong, 50.0 % of")
    assert "neither -50.0 points [-70.0, -25.0]" in warned and "refused" not in warned
    found["evaluations"] = {run: {"source": "invented", "adapter": run} for run in found["runs"]}
    write_report(tmp_path / "report.html", found, None, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(sentence) == 1 and page.count("style may explain a part, see below") == 2
    assert "0.0 % of the closed answers of MMedPO could not be read, 50.0 % of those of the starting model." in page
    assert "neither: it names none of them" in page
    assert sentence in results.card_part(found)["reading"][0].note
    for text in (tables.markdown(found), tables.latex(found)):
        assert text.count("could not be read in the starting model") == 1 and text.count("style alone") == 1
    nothing = compared(tmp_path / "hedged", styled(HEDGED), styled(""))
    assert said(nothing).endswith("in the starting model, and no question had answers that were read in both.")


@pytest.mark.parametrize(("protocol", "difference", "warned"), [("strict", 0.0, False), ("strict@3", 0.75, True)])
def test_a_plain_yes_before_a_readable_sentence_gains_nothing(
    tmp_path: Path, protocol: str, difference: float, warned: bool
) -> None:
    found = compared(tmp_path, styled(""), styled("", prefix=True), protocol=protocol)
    assert found["metrics"]["closed_accuracy"]["mmedpo"]["difference"] == difference
    assert any("style alone" in note for note in found["notes"]) == warned
    assert ("+75.0 [+65.0, +87.5] come from answers that could not be read" in said(found)) == warned
    assert set(found["reading"]["closed"]["shares"]) == {
        "unread",
        "both",
        "neither",
        *([] if warned else ["refused", "empty"]),
    }


@pytest.mark.parametrize(("more", "warned"), [(1, False), (2, True)])
def test_two_points_are_allowed_and_kinds_that_cancel_are_seen(tmp_path: Path, more: int, warned: bool) -> None:
    before = ["neither"] * 3 + ["both"] * 3 + ["correct"] * 44
    now = ["neither"] * (3 - more) + ["both"] * (3 + more) + ["correct"] * 44
    notes = compared(tmp_path, of_verdicts(*before), of_verdicts(*now))["notes"]
    assert sum("style alone" in note for note in notes) == warned


def test_groups_have_their_own_shares(tmp_path: Path) -> None:
    asked = [question(number, "CHEST" if number < 30 else "HEAD") for number in range(40)]
    runs = [evaluated(tmp_path / name, asked, styled(form)) for name, form in (("start", HEDGED), ("mmedpo", ""))]
    found = compare(runs, resamples=200)
    chest, head = (
        found["groups"]["organ"]["CHEST"]["reading"]["closed"],
        found["groups"]["organ"]["HEAD"]["reading"]["closed"],
    )
    assert chest["n"] == {"questions": 30, "images": 15} and head["n"] == {"questions": 10, "images": 5}
    assert chest["shares"]["unread"]["mmedpo"]["difference_high"] == -1.0
    assert head["shares"]["unread"]["start"] == {"value": 1.0}  # too few images for an interval
    (sheet,) = tables.reading(found, "organ")
    assert sheet.rows[1] == ["CHEST (30 questions, 15 images)", "start", "0.0 %", "100.0 % [100.0 to 100.0]",
                             "–", "0.0 %", "100.0 %", "0.0 %", "0.0 %"]  # fmt: skip
    assert sheet.rows[4] == ["", "mmedpo", "80.0 %", "0.0 %", "–", *["0.0 %"] * 4]
    cancelled = compare(
        [evaluated(tmp_path / name, asked, [*styled(one)[:20], *styled(other)[20:]])
         for name, one, other in (("before", HEDGED, ""), ("after", "", HEDGED))], resamples=200,
    )  # fmt: skip
    assert cancelled["reading"]["closed"]["differing"] == {}
    assert unread.styled(cancelled["groups"]["organ"]["CHEST"])["closed_accuracy"] == {"after"}
    write_report(tmp_path / "report.html", cancelled | {"evaluations": {}}, None, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Read this first" not in page and page.count("style may explain a part, see below") == 2


CLOSED = {"n_closed": 8, "n_closed_both": 1, "n_closed_neither": 0, "n_closed_refused": 0, "n_closed_empty": 1}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (CLOSED, ["25.0 % of 8 closed answers could not be read, and count as wrong (both 12.5 %, neither 0.0 %, "
                  "refused 0.0 %, empty 12.5 %)."]),
        ({"n_closed": 4, "n_closed_both": 0, "n_closed_neither": 1, "n_choice": 2, "n_choice_refused": 1},
         ["25.0 % of 4 closed answers could not be read, and count as wrong (both 0.0 %, neither 25.0 %).",
          "50.0 % of 2 multiple-choice answers could not be read, and count as wrong (refused 50.0 %)."]),
        ({"n_open": 8, "n_laterality_conflicts": 1}, ["12.5 % of 8 open answers name the wrong side, and score 0."]),
        ({"n_closed": 4}, []), ({"n_closed": 0, "n_closed_both": 0, "n_open": 0, "n_laterality_conflicts": 0}, []),
        ({"preference_accuracy": 0.5}, []),
    ],
)  # fmt: skip
def test_one_run_says_how_its_answers_were_read(found: dict[str, Any], said: list[str]) -> None:
    assert unread.shares(found) == said


def test_open_answers_on_the_wrong_side_have_a_table(tmp_path: Path) -> None:
    before = ["left lung"] * 10 + ["right lung"] * 10
    found = compared(tmp_path, before, ["left lung"] * 20, task="open_vqa", reference="left lung")
    (sheet,) = tables.reading(found)
    assert sheet.title == "How open answers were read (20 questions, 10 images)"
    assert sheet.rows == [["run", "right", "on the wrong side", "change"],
                          ["start", "50.0 %", "50.0 % [20.0 to 83.0]", "–"],
                          ["mmedpo", "100.0 %", "0.0 % [0.0 to 0.0]", "−50.0 [−83.0, −20.0]"]]  # fmt: skip
    assert not any("style" in note for note in found["notes"])
    right = compared(tmp_path / "right", ["left lung"] * 20, ["lung"] * 20, task="open_vqa", reference="left lung")
    assert tables.reading(right) == [] and right["reading"]["open"]["shares"]["wrong_side"]["mmedpo"]["value"] == 0


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_multiple_choice_is_read_apart_from_closed_answers(tmp_path: Path, protocol: str) -> None:
    asked = {
        "task": "choice_vqa", "question": "Which organ is shown?", "reference": "liver", "options": ["lung", "liver"],
    }  # fmt: skip
    before = ["It is hard to tell."] * 10 + ["The liver."] * 10
    found = compared(tmp_path, before, ["B. liver"] * 15 + ["A"] * 5, protocol=protocol, **asked)
    assert "closed" not in found["reading"]
    assert found["reading"]["choice"]["differing"] == {"mmedpo": ["unread", "refused"]}
    (sheet,) = (one for one in tables.reading(found) if "multiple" in one.title)
    assert sheet.rows[1][:3] == ["start", "50.0 %", "50.0 % [17.0 to 80.0]"]
    assert sheet.note.startswith(
        "Of the +25.0 points of choice accuracy from the starting model to MMedPO, +50.0 [+17.0, +80.0] come from "
        "answers that could not be read in the starting model, and −25.0 ["
    )


def test_old_results_without_counts_claim_nothing(tmp_path: Path) -> None:
    asked = [question(number) for number in range(40)]
    runs = [evaluated(tmp_path / name, asked, styled(form)) for name, form in (("start", HEDGED), ("mmedpo", ""))]
    for run in runs:
        file = run / "results.json"
        results = json.loads(file.read_text(encoding="utf-8"))
        results["metrics"] = {key: value for key, value in results["metrics"].items() if key in KNOWN_BEFORE}
        file.write_text(json.dumps(results), encoding="utf-8")
    found = compare(runs, resamples=200)
    assert found["metrics"]["closed_accuracy"]["mmedpo"]["difference"] == 0.75
    assert found["reading"] == {} and not any("style alone" in note for note in found["notes"])
    del found["reading"]  # as in older comparisons
    assert (
        tables.reading(found) == []
        and unread.warnings(found) == []
        and unread.styled(found) == {"overall_accuracy": set()}
    )


@pytest.mark.parametrize("protocol", ["paper", "llava_med"])
def test_protocols_without_unread_answers_claim_nothing(tmp_path: Path, protocol: str) -> None:
    found = compared(tmp_path, styled(HEDGED), styled("", prefix=True), protocol=protocol)
    assert found["reading"] == {} and tables.reading(found) == [] and len(tables.sheets(found)) == 1
    assert not any("style alone" in note for note in found["notes"])
