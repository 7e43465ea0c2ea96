"""Runs side by side: values, paired intervals, examples, and what makes two runs incomparable."""

import json
from pathlib import Path

import pytest

from mmedpo.errors import InputError
from mmedpo.evaluation.compare import compare, rows
from mmedpo.evaluation.score import PROTOCOLS, score_folder

IMAGES = 20


def questions():
    for image in range(IMAGES):
        common = {"image_id": f"image-{image}", "patient_id": None, "question": "?"}
        yield {"id": f"closed-{image}", "task": "closed_vqa", "reference": "yes" if image % 2 else "no", **common}
        yield {"id": f"open-{image}", "task": "open_vqa", "reference": "left lung", **common}
        yield {"id": f"report-{image}", "task": "report", "reference": "the heart is normal in size", **common}


def answer(question, right):
    if question["task"] == "closed_vqa":
        return question["reference"] if right else "cannot tell"
    if question["task"] == "open_vqa":
        return "left lung" if right else "lung"
    return "the heart is normal in size" if right else "the heart is large"


def run(folder: Path, name: str, right_until: int, changes=None, results=None) -> Path:
    """A finished evaluation folder whose answers about the first `right_until` images are right."""
    folder = folder / name
    folder.mkdir(parents=True)
    asked = [{**row, **(changes or {}).get(row["id"], {})} for row in questions()]
    asked = [row for row in asked if not row.get("dropped")]
    answers = [
        {"id": row["id"], "prediction": answer(row, int(row["image_id"].split("-")[1]) < right_until)} for row in asked
    ]
    for file, lines in (("questions", asked), ("predictions", reversed(answers))):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = {"format": "mmedpo.results/1", "name": name, "protocols": PROTOCOLS, "metrics": score_folder(folder)}
    (folder / "results.json").write_text(json.dumps(record | (results or {})), encoding="utf-8")
    return folder


def test_values_are_those_of_the_results_and_differences_are_paired(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "dpo", 5), run(tmp_path, "mmedpo", 15)]
    found = compare(folders, resamples=400, command="mmedpo compare ...")
    assert (found["baseline"], found["runs"]) == ("start", ["start", "dpo", "mmedpo"])
    assert found["n"] == {"closed": IMAGES, "open": IMAGES, "report": IMAGES, "images": IMAGES}
    for folder in folders:
        recorded = json.loads((folder / "results.json").read_text())["metrics"]
        values = {name: entries[folder.name]["value"] for name, entries in found["metrics"].items()}
        assert values == pytest.approx({name: recorded[name] for name in values})
        assert set(values) == {name for name, value in recorded.items() if isinstance(value, float)}
    closed = found["metrics"]["closed_accuracy"]
    assert set(closed["start"]) == {"value", "low", "high"}
    assert closed["mmedpo"]["difference"] == pytest.approx(10 / IMAGES)
    assert closed["mmedpo"]["difference_low"] > 0
    for entries in found["metrics"].values():
        same = entries["dpo"]
        assert (same["difference"], same["difference_low"], same["difference_high"]) == (0.0, 0.0, 0.0)
        assert all(entry["low"] <= entry["value"] <= entry["high"] for entry in entries.values())


def test_equal_input_gives_equal_output_as_json(tmp_path):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)]
    first, again = (json.dumps(compare(folders, seed=3, resamples=50), allow_nan=False) for _ in range(2))
    assert first == again


def test_metrics_about_no_question_are_absent(tmp_path):
    changes = {row["id"]: {"dropped": True} for row in questions() if row["task"] != "report"}
    found = compare([run(tmp_path, "start", 5, changes), run(tmp_path, "mmedpo", 9, changes)], resamples=20)
    assert set(found["metrics"]) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor"}
    assert found["n"]["closed"] == 0
    assert found["examples"] == []


def counts(examples):
    gained = [example["correct"] == {"start": False, "mmedpo": True} for example in examples]
    assert gained == sorted(gained, reverse=True)  # gained ones come first
    return gained.count(True), gained.count(False)


def test_examples_are_all_gains_where_nothing_was_lost(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)], resamples=10)
    assert counts(found["examples"]) == (12, 0)
    assert all(example["task"] != "report" for example in found["examples"])


@pytest.mark.parametrize(("lost", "expected"), [(20, (8, 4)), (2, (10, 2))])
def test_examples_show_losses_too(tmp_path, lost, expected):
    # The baseline is right about the first 10 images; the other run about all but `lost` questions of those.
    folders = [run(tmp_path, "start", 10), run(tmp_path, "mmedpo", 10)]
    early = [row for row in questions() if int(row["image_id"].split("-")[1]) < 10 and row["task"] != "report"]
    answers = {row["id"]: answer(row, row not in early[:lost]) for row in questions()}
    (folders[1] / "predictions.jsonl").write_text(
        "".join(json.dumps({"id": id_, "prediction": text}) + "\n" for id_, text in answers.items())
    )
    score_folder(folders[1])
    assert counts(compare(folders, resamples=10)["examples"]) == expected


def test_rows_are_a_table(tmp_path):
    found = compare([run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 15)], resamples=50)
    table = rows(found)
    assert table[0] == ["metric", "run", "value [95 % interval]", "difference to start"]
    assert {len(row) for row in table} == {4}
    place = next(i for i, row in enumerate(table) if row[0] == "closed_accuracy")
    start, mmedpo = table[place : place + 2]
    assert start[1] == "start" and start[2].startswith("0.250 [") and start[3] == ""
    assert mmedpo[:2] == ["", "mmedpo"] and mmedpo[3].startswith("+0.500 [+")


@pytest.mark.parametrize(
    ("changes", "results", "named"),
    [
        ({"open-3": {"dropped": True}}, {}, "mmedpo [id]: lacks 1 questions of 'start': open-3"),
        ({"open-3": {"id": "new"}}, {}, "start [id]: lacks 1 questions of 'mmedpo': new"),
        ({"open-3": {"reference": "right lung"}}, {}, "open-3 [reference]: is 'right lung' in 'mmedpo'"),
        ({"open-3": {"question": "Where?"}}, {}, "open-3 [question]"),
        ({}, {"protocols": {**PROTOCOLS, "med_vqa": "paper"}}, "mmedpo [protocols]: are {'med_vqa': 'paper'"),
        ({}, {"metrics": {"meteor_variant": "nltk_wordnet"}}, "'meteor_variant': 'nltk_wordnet'"),
        ({}, {"name": "start"}, "named start, start"),
        ({}, {"format": "mmedpo.results/9"}, "not in the format mmedpo.results/1"),
    ],
)
def test_runs_that_differ_are_refused(tmp_path, changes, results, named):
    folders = [run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5, changes, results)]
    with pytest.raises(InputError) as refused:
        compare(folders, resamples=10)
    assert named in str(refused.value)


def test_one_run_and_damaged_runs_are_refused(tmp_path):
    start, damaged = run(tmp_path, "start", 5), run(tmp_path, "mmedpo", 5)
    with pytest.raises(InputError, match="needs at least two"):
        compare([start])
    lines = (damaged / "scores.jsonl").read_text().splitlines(keepends=True)
    (damaged / "scores.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(InputError, match="do not hold the same ids"):
        compare([start, damaged])
