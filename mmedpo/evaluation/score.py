"""Scores of an evaluation folder: questions and predictions, joined by id, become per-question scores and metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedpo.errors import Fault, InputError
from mmedpo.evaluation import med_vqa, preference, report_generation, visual_reliance
from mmedpo.schema import TASKS

METRICS = {  # by folder of eval/
    "med_vqa": med_vqa.metrics,
    "report_generation": report_generation.metrics,
    "preference": preference.metrics,
    "visual_reliance": visual_reliance.metrics,
}
PROTOCOLS = {"med_vqa": "strict", "report_generation": "coco"}
ANSWER_TYPES = {"closed_vqa": "closed", "open_vqa": "open"}

Row = dict[str, Any]


def score_folder(folder: Path, meteor_variant: str | None = None) -> Row:
    """Score `predictions.jsonl` against `questions.jsonl` and write `scores.jsonl`, all in `folder`.

    Each line of `scores.jsonl` is {"id", "image_id", "task", ...} with what `med_vqa.score` (closed and open
    questions) or `report_generation.score` (reports) returns, in the order of the questions.

    Returns:
        The "metrics" of `results.json` (docs/architecture.md).

    Raises:
        InputError: files missing or broken; ids missing, surplus or repeated; null predictions; all are listed.
    """
    questions, faults = read_by_id(folder / "questions.jsonl")
    predictions, more = read_by_id(folder / "predictions.jsonl")
    faults += more
    faults += [Fault(id_, column, said) for id_, row in questions.items() for column, said in question_faults(row)]
    for id_ in [*questions, *(id_ for id_ in predictions if id_ not in questions)]:
        sentence = _join_fault(id_ in questions, predictions.get(id_))
        faults += [Fault(id_, "prediction", sentence)] if sentence else []
    if faults:
        raise InputError(f"{len(faults)} faults in {folder}:", faults)
    scores = [_score(row, predictions[id_]["prediction"], meteor_variant) for id_, row in questions.items()]
    lines = [json.dumps(score, ensure_ascii=False) + "\n" for score in scores]
    (folder / "scores.jsonl").write_text("".join(lines), encoding="utf-8")
    reports = [score for score in scores if score["task"] == "report"]
    answers = [score for score in scores if score["task"] != "report"]
    return med_vqa.aggregate(answers) | report_generation.aggregate(reports, meteor_variant)


def read_by_id(path: Path) -> tuple[dict[str, Row], list[Fault]]:
    """The objects of a JSONL file by their "id", in order, and the faults of their ids.

    Raises:
        InputError: a missing file, or a line that is no JSON object.
    """
    rows: dict[str, Row] = {}
    faults = []
    for number, row in _read_lines(path):
        id_ = row.get("id")
        if not isinstance(id_, str) or not id_:
            faults.append(Fault(f"{path.name}:{number}", "id", f"is {id_!r}; every line needs a string"))
        elif id_ in rows:
            faults.append(Fault(f"{path.name}:{number}", "id", f"{id_!r} occurs before; keep one line"))
        else:
            rows[id_] = row
    return rows, faults


def _read_lines(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the folder of a finished evaluation.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}); write it anew.") from None
    # Not splitlines(), which also splits at characters that JSON leaves bare inside strings.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number} is not JSON ({error}); write the file anew.") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is {line.strip()[:40]}, not an object with an id.")
        yield number, row


def question_faults(row: Row) -> list[tuple[str, str]]:
    task, reference = row.get("task"), row.get("reference")
    faults = []
    if task not in TASKS:
        faults.append(("task", f"is {task!r}; choose one of: {', '.join(TASKS)}"))
    if not isinstance(row.get("image_id"), str):
        faults.append(("image_id", f"is {row.get('image_id')!r}; name the image, since intervals resample images"))
    tokens = report_generation.clean if task == "report" else med_vqa.tokens
    if not isinstance(reference, str) or not tokens(reference):
        faults.append(("reference", f"is {reference!r}, which has no words to compare with; drop the question"))
    return faults


def _join_fault(asked: bool, answer: Row | None) -> str | None:
    if not asked:
        return "answers no question of questions.jsonl; remove it, or add the question"
    if answer is None:
        return "is missing; every question needs one"
    if not isinstance(answer.get("prediction"), str):
        return f"is {answer.get('prediction')!r}, not a string; an unanswered question has the prediction ''"
    return None


def _score(question: Row, prediction: str, meteor_variant: str | None) -> Row:
    task, reference = question["task"], question["reference"]
    if task == "report":
        scores = report_generation.score(prediction, reference, PROTOCOLS["report_generation"], meteor_variant)
    else:
        scores = med_vqa.score(prediction, reference, ANSWER_TYPES[task], PROTOCOLS["med_vqa"])
    return {"id": question["id"], "image_id": question["image_id"], "task": task, **scores}
