"""Find test images and patients that are in the training data; results on them do not hold for new patients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmedpo.data import loading, origin
from mmedpo.data.images import digest, file_digest, open_rgb
from mmedpo.evaluation.runs import Run, by_method
from mmedpo.evaluation.score import Row, picture, pictures
from mmedpo.runs.json_files import read_json, read_object
from mmedpo.runs.provenance import portable

RECORDS = ("training.json", "merge.json")
SEEDS = ("seed", "data_seed")


def seen_in_training(run: Run, *datasets: str) -> Row:
    """Count a run's test images and patients that are in preference datasets.

    Images are equal if their pixels are equal (`image_digest` of the questions), or if their ids and the names of their
    sources are; of several images a question, one that was seen counts. Numbers that the records do not determine are
    None, not 0; so is "by_pixels" of masked images.

    Args:
        run: run with the test questions.
        datasets: folders or Hub ids; their training splits are read.

    Returns:
        {"dataset", "images": seen or None, "of": test images, "by_pixels", "by_id": seen or None,
        "patients": test patients in the datasets or None, "of_patients": test patients with an id}.

    Raises:
        InputError: no preference dataset there, or images in it that cannot be decoded.
    """
    questions = run.questions.values()
    found = [_seen(run, dataset) for dataset in datasets]
    images, by_pixels, by_id, patients = map(_count, zip(*found, strict=True))
    return {
        "dataset": ", ".join(map(portable, datasets)),
        "images": images,
        "of": len({picture(row) for row in questions}),
        "by_pixels": by_pixels,
        "by_id": by_id,
        "patients": patients,
        "of_patients": len({row["patient_id"] for row in questions if row.get("patient_id") is not None}),
    }


def _seen(run: Run, dataset: str) -> tuple[set[str] | None, ...]:
    """Return the test images in a dataset in any way, by pixels and by id, and the test patients in it."""
    pairs = loading.load_pairs(dataset)
    questions = run.questions.values()
    images = {picture(row): pictures(row) for row in questions}
    named = [row["provenance"] for row in pairs.select_columns(["source", "provenance"])
             if row["source"] == run.results.get("source")]  # fmt: skip
    names = {made["image_id"] for made in named}
    ids = {id_ for name in names for id_ in name.split("|")}
    by_id = {picture(row) for row in questions if not ids.isdisjoint(_ids(row))} if named else None
    patients = {row["patient_id"] for row in questions if row.get("patient_id") is not None}
    masked = (
        origin.dataset_manifest(dataset, None).get("burnt_text", {}).get("masked")
    )  # its pixels are not the source's
    known = not masked and all(row.get("image_digest") for row in questions)
    trained = _digests(pairs) if known else set()
    by_pixels = {name for name, digests in images.items() if not trained.isdisjoint(digests)} if known else None
    seen = None if by_id is None and by_pixels is None else (by_id or set()) | (by_pixels or set())
    in_it = patients.intersection(made["patient_id"] for made in named) if named and patients else None
    return seen, by_pixels, by_id, in_it


def trained_on(run: Run, trainings: Sequence[Path] = ()) -> list[str]:
    """Return the preference datasets that a run's adapter or model was trained on.

    They are recorded in training.json, in the model's folder or else in the last of `trainings`. Empty where one is not
    recorded, or is a folder that does not exist here.
    """
    own = [Path(str(run.results[key])) for key in ("adapter", "model") if run.results.get(key)]
    for folder in (*own, *reversed(trainings)):
        for file in filter(Path.is_file, (folder / name for name in RECORDS)):
            found = origin.trained_datasets(read_json(file))
            here = [origin.is_local(str(one["name"])) or bool(one["revision"]) for one in found]
            return [str(one["name"]) for one in found] if all(here) else []
    return []


def other_settings(runs: Sequence[Run]) -> list[str]:
    """Return a note on each method whose runs were trained with other settings than the seed, as far as recorded."""
    said = []
    for name, places in by_method(runs).items():
        files = [Path(str(runs[place].results.get("adapter") or "")) / "training.json" for place in places]
        records = [read_object(file) for file in files if file.is_file()]
        data = [[(each["name"], each.get("share")) for each in origin.trained_datasets(one)] for one in records]
        settings = [
            {**one.get("config", {}), **one.get("lora", {}), "dataset": own}
            for one, own in zip(records, data, strict=True)
        ]
        keys = dict.fromkeys(key for one in settings for key in one if key not in SEEDS)
        if apart := [key for key in keys if any(one.get(key) != settings[0].get(key) for one in settings)]:
            said.append(f"runs of {name!r} differ in more than their seed: {', '.join(apart)}")
    return said


def _ids(row: Row) -> list[str]:
    """Return the ids of a question's images; one image may have a | in its name."""
    return [row["image_id"], *row["image_id"].split("|")] if row.get("image_digests") else [row["image_id"]]


def _digests(pairs: Any) -> set[str]:
    """Return the digests of the images of the chosen sides; each file is decoded once."""
    files: set[str] = set()
    found = set()
    for row in pairs.select_columns(["images"]):
        for image in row["images"]:
            file = file_digest(image)
            if file not in files:
                files.add(file)
                found.add(digest(open_rgb(image)))
    return found


def _count(parts: Sequence[set[str] | None]) -> int | None:
    """Return the number in any dataset; None where one of them is not known and the others have none."""
    found = set[str]().union(*filter(None, parts))
    return len(found) if found or None not in parts else None
