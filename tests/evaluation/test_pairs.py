"""Evaluation folders about preference pairs: a real (tiny) model on a curated dataset, interrupted or not, compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from PIL import Image

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.data.images import digest
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs
from mmedpo.evaluation.compare import compare
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.evaluation.metrics import med_vqa, preference, visual_reliance
from mmedpo.evaluation.metrics.visual_reliance import VIEWS
from mmedpo.evaluation.pairs import blank
from mmedpo.models.vision_language import Sampling, VisionLanguageModel
from mmedpo.runs.json_files import sha256

Row = dict[str, Any]
BATCH, TOKENS = 3, 6


def opened(model: VisionLanguageModel | None) -> VisionLanguageModel:
    assert model is not None, "a model is opened"
    return model


def measure_preferences(
    model: VisionLanguageModel | None, rows: Dataset, folder: Path, batch_size: int = 16, record: Row | None = None
) -> Row:
    return pairs.measure(pairs.Preference(rows, batch_size), lambda: opened(model), folder, record)


def measure_visual_reliance(
    model: VisionLanguageModel | None, rows: Dataset, folder: Path, batch_size: int = 16, record: Row | None = None
) -> Row:
    visual = pairs.VisualReliance(rows, batch_size, max_new_tokens=TOKENS)
    return pairs.measure(visual, lambda: opened(model), folder, record)


MEASURES = [
    pytest.param(measure_preferences, id="preference"),
    pytest.param(measure_visual_reliance, id="visual reliance"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> VisionLanguageModel:
    return VisionLanguageModel(str(tiny_model))


@pytest.fixture(scope="module")
def rows(preferences: Path) -> Dataset:
    """Some pairs of both kinds, of all tasks that the corpus has."""
    dataset = loading.load(str(preferences))
    kinds, tasks = dataset["dispreference"], dataset["task"]
    places: dict[tuple[int, int], list[int]] = {}
    for place, key in enumerate(zip(kinds, tasks, strict=True)):
        places.setdefault(key, []).append(place)
    return dataset.select(sorted(place for some in places.values() for place in some[:3]))


def lines(folder: Path, name: str) -> list[Row]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def folders(
    model: VisionLanguageModel, rows: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> dict[Callable[..., Row], Path]:
    made = {}
    for measure in (measure_preferences, measure_visual_reliance):
        made[measure] = tmp_path_factory.mktemp("measure")
        measure(model, rows, made[measure], BATCH, {"name": "start", "split": "train"})
    return made


def test_another_name_of_a_picture_is_no_other_patient():
    rows = [{"id": n, "patient_id": None, "image_id": f"{n}.png", "image_digest": "same" if n < 2 else "other"}
            for n in range(3)]  # fmt: skip
    assert all(pairs.other_patients(rows, seed)[:2] == [2, 2] for seed in range(20))
    with pytest.raises(InputError, match="of one patient"):
        pairs.other_patients(rows[:2], 0)


@pytest.mark.parametrize("measure", MEASURES)
def test_folder_is_an_evaluation_folder(folders, measure, rows, tiny_model):
    folder = folders[measure]
    names = {file.name for file in folder.iterdir() if ".ledger" not in file.name}  # which `output_folder` removes
    assert names == {"questions.jsonl", "predictions.jsonl", "scores.jsonl", "results.json"}
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert (results["format"], results["name"], results["model"]) == ("mmedpo.results/1", "start", tiny_model.name)
    assert results["questions_sha256"] == sha256(folder / "questions.jsonl")
    module = preference if measure is measure_preferences else visual_reliance
    ((name, protocol),) = results["protocols"].items()
    assert results["metrics"][f"{name}_definition"] == module.DEFINITIONS[protocol]
    assert results["metrics"] == module.aggregate(lines(folder, "scores"))
    ids = [row["id"] for row in rows if measure is measure_preferences or row["dispreference"] == 1]
    for part in ("questions", "predictions", "scores"):
        assert [line["id"] for line in lines(folder, part)] == ids


def test_questions_say_what_the_rows_say(folders, rows):
    row, question = rows[0], lines(folders[measure_preferences], "questions")[0]
    shown, other = (
        [digest(image.convert("RGB")) for image in row[side] or []] for side in ("images", "rejected_images")
    )
    pair = json.dumps([row["prompt"], row["chosen"], row["rejected"], shown, other])
    assert question == {
        "pair_digest": hashlib.sha256(pair.encode()).hexdigest(),
        "id": row["id"], "image_id": row["provenance"]["image_id"], "patient_id": row["provenance"]["patient_id"],
        "task": schema.TASKS[row["task"]], "question": row["prompt"][-1]["content"],
        "reference": row["chosen"][-1]["content"], "question_type": None, "organ": None, "modality": None,
        "image_digest": shown[0],
        "dispreference": schema.DISPREFERENCES[row["dispreference"]], "weight": row["weight"],
    }  # fmt: skip


def test_each_side_is_measured_on_its_own_images(model, folders, rows):
    folder = folders[measure_preferences]
    for row, line, score in zip(rows, lines(folder, "predictions"), lines(folder, "scores"), strict=True):
        sides = [
            View([image.convert("RGB") for image in images], row["prompt"], row[side])
            for side, images in (("chosen", row["images"]), ("rejected", row["rejected_images"] or row["images"]))
        ]
        chosen, rejected = answer_logps(model, sides)
        assert [line["chosen_logps"], line["rejected_logps"]] == pytest.approx([chosen, rejected], abs=1e-3)
        assert line["prediction"] == ("chosen" if line["chosen_logps"] > line["rejected_logps"] else "rejected")
        assert score["margin"] == line["chosen_logps"] - line["rejected_logps"]


def test_each_view_is_what_it_is_called(model, folders, rows, monkeypatch, tmp_path):
    shown: list[View] = []

    def remembered(model: VisionLanguageModel, views: list[View]) -> list[float]:
        shown.extend(views)
        return answer_logps(model, views)

    monkeypatch.setattr(pairs, "answer_logps", remembered)
    visual = rows.filter(lambda kind: kind == 1, input_columns="dispreference")
    measure_visual_reliance(model, rows, tmp_path, batch_size=len(visual))
    count = len(visual)
    pictures = {row["provenance"]["image_id"]: np.asarray(row["images"][0].convert("RGB")) for row in visual}
    for place, row in enumerate(visual):
        original, noised, plane, swapped = (np.asarray(shown[view * count + place].images[0]) for view in range(4))
        assert (original == np.asarray(row["images"][0].convert("RGB"))).all()
        assert (noised == np.asarray(row["rejected_images"][0].convert("RGB"))).all() and (noised != original).any()
        assert plane.shape == original.shape and len(np.unique(plane.reshape(-1, 3), axis=0)) == 1
        others = [image for name, image in pictures.items() if name != row["provenance"]["image_id"]]
        assert any(swapped.shape == other.shape and (swapped == other).all() for other in others)


def test_answers_at_every_view_are_scored_strictly(model, folders, rows):
    folder = folders[measure_visual_reliance]
    visual = {row["id"]: row for row in rows if row["dispreference"] == 1}
    tasks = set()
    for line, score in zip(lines(folder, "predictions"), lines(folder, "scores"), strict=True):
        row = visual[line["id"]]
        task, gold = schema.TASKS[row["task"]], row["chosen"][-1]["content"]
        tasks.add(task)
        assert [score[f"logps_{view}"] for view in VIEWS] == [line["logps"][view] for view in VIEWS]
        if task == "report":
            assert line["prediction"] == "" and not any("correct" in name for name in score)
            continue
        question = (row["images"][0].convert("RGB"), row["prompt"][-1]["content"])
        assert [[line["prediction"]]] == [[line["answers"]["original"]]] == model.answer([question], Sampling(TOKENS))
        for view in VIEWS:
            expected = med_vqa.score(line["answers"][view], gold, task.removesuffix("_vqa"))["correct"]
            assert score[f"correct_{view}"] == expected
    assert tasks > {"report"}


def test_blank_is_a_plane_of_the_mean_colour():
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, :1] = (200, 100, 40)  # a quarter of them
    found = blank(Image.fromarray(pixels))
    assert found.size == (4, 2) and found.getcolors() == [(8, (50, 25, 10))]


def test_swaps_depend_on_the_seed_and_never_stay_with_the_patient():
    asked = [{"id": str(i), "patient_id": f"p{i // 4}", "image_id": f"i{i}"} for i in range(20)]
    drawn = {seed: pairs.other_patients(asked, seed) for seed in (0, 1)}
    assert drawn[0] == pairs.other_patients(asked, 0) != drawn[1]
    assert all(i // 4 != place // 4 for places in drawn.values() for i, place in enumerate(places))
    no_patients = [{**question, "patient_id": None} for question in asked]
    assert all(i != place for i, place in enumerate(pairs.other_patients(no_patients, 0)))


@pytest.mark.parametrize("measure", MEASURES)
def test_interrupted_measure_ends_as_an_uninterrupted_one(model, rows, folders, measure, tmp_path, monkeypatch):
    calls = 0

    def counted(model: VisionLanguageModel, views: list[View]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise KeyboardInterrupt
        return answer_logps(model, views)

    monkeypatch.setattr(pairs, "answer_logps", counted)
    passes, limit = (2, 4) if measure is measure_preferences else (4, 7)  # within the second batch
    with pytest.raises(KeyboardInterrupt):
        measure(model, rows, tmp_path, BATCH)
    assert not (tmp_path / "results.json").exists()
    calls, limit = 0, -1
    measure(model, rows, tmp_path, BATCH)
    count = len(lines(tmp_path, "questions"))
    assert calls == passes * (-(-count // BATCH) - 1)  # the first batch is not measured again
    for name in ("questions", "predictions", "scores"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (folders[measure] / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_can_be_compared(folders, measure, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for file in folders[measure].iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    results = json.loads((other / "results.json").read_text(encoding="utf-8"))
    (other / "results.json").write_text(json.dumps({**results, "name": "again"}), encoding="utf-8")
    comparison = compare([folders[measure], other], resamples=50)
    assert comparison["metrics"].keys() == {
        name for name in results["metrics"] if not name.startswith("n_") and not name.endswith("_definition")
    }
    for name, entries in comparison["metrics"].items():
        assert entries["start"]["value"] == pytest.approx(results["metrics"][name])
        assert entries["again"]["difference"] == 0.0


def test_rows_that_cannot_be_measured_are_refused_before_a_model_is_opened(rows, tmp_path):
    text_rows = rows.filter(lambda kind: kind == 0, input_columns="dispreference")
    visual = rows.filter(lambda kind: kind == 1, input_columns="dispreference")
    one_patient = visual.select([0])
    for measure, given, named in (
        (measure_preferences, rows.select([]), "no rows"),
        (measure_preferences, rows.remove_columns("weight"), r"\[weight\]: is missing"),
        (measure_visual_reliance, text_rows, "no `lesion_noise` row"),
        (measure_visual_reliance, one_patient, "of one patient"),
    ):
        with pytest.raises(InputError, match=named):
            measure(None, given, tmp_path)  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_asked_are_listed(model, rows, tmp_path):
    visual = rows.filter(lambda kind: kind == 1, input_columns="dispreference").select(range(2))

    def spoil(row: Row, place: int) -> Row:
        if place:
            return {**row, "prompt": row["prompt"] * 2, "rejected_images": None}
        return {**row, "task": 1, "chosen": [{"role": "assistant", "content": "+"}]}

    spoilt = visual.map(spoil, with_indices=True, features=visual.features)
    with pytest.raises(InputError) as refused:
        measure_visual_reliance(model, spoilt, tmp_path)
    first, second = visual["id"]
    assert {(fault.row, fault.column) for fault in refused.value.faults} == {
        (first, "chosen"), (second, "prompt"), (second, "rejected_images"),
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("task", 9, "is none of closed_vqa"),
        ("dispreference", -1, "is none of hallucinated_response"),
        ("id", "same", "occurs 2 times; ids must be unique"),
        ("id", None, "is empty; every row needs"),
        ("weight", float("nan"), "is not a number; every row needs one"),
        ("chosen", None, "has no text"),
    ],
)
def test_rows_that_would_be_mixed_up_are_refused(rows: Dataset, column: str, value: Any, sentence: str) -> None:
    table = rows.select([0, 1]).flatten_indices().data.table
    place = table.column_names.index(column)
    spoilt = table.set_column(place, table.schema.field(place), [pa.array([value] * 2, table.schema.field(place).type)])
    with pytest.raises(InputError) as raised:
        pairs.Preference(Dataset(spoilt, info=rows.info))
    assert sentence in str(raised.value)
