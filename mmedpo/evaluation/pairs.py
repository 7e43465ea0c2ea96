"""Evaluation folders of a preference dataset's rows: preference accuracy and visual reliance."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from mmedpo import schema
from mmedpo.data import options
from mmedpo.data.images import digest, open_rgb, size
from mmedpo.data.text import number_of, unit_interval
from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.answering import LocalModel
from mmedpo.evaluation.contents import QUESTIONS, keep
from mmedpo.evaluation.likelihood import View, answer_logps
from mmedpo.evaluation.metrics import med_vqa, preference, visual_reliance
from mmedpo.evaluation.metrics.med_vqa import ANSWER_TYPES
from mmedpo.evaluation.metrics.visual_reliance import VIEWS
from mmedpo.evaluation.questions import of_row
from mmedpo.evaluation.score import Row, about, clusters, picture, write_results
from mmedpo.models import refusals
from mmedpo.models.generation import Sampling
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs import formats
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import versions

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image


TEXTS = ("prompt", "chosen", "rejected")


class Preference:
    """Preference accuracy: the log-probabilities of both answers of every pair, each on the images of its side.

    A line's `prediction` is the likelier side: "chosen", "rejected" or "tie".

    Args:
        rows: a split of a preference dataset (`loading.load`).
        batch_size: answers per forward pass.

    Raises:
        InputError: no rows, or columns other than a preference dataset's.
    """

    ledger = "logps"
    accepted = False  # by the model's processor, before it is loaded

    def __init__(self, rows: Dataset, batch_size: int = 16) -> None:
        self.rows, self.batch_size = _undecoded(rows), batch_size
        self.questions = [_question(row) for row in self.rows]

    def found(self, model: VisionLanguageModel, batch: Sequence[Row]) -> dict[str, Any]:
        """Return the log-probabilities [chosen, rejected] by row id."""
        found: list[float] = []
        # Both sides of half a batch are as many answers as one side of the batch.
        for half in (batch[: (len(batch) + 1) // 2], batch[(len(batch) + 1) // 2 :]):
            views = [
                View(_seen(row, side), row["prompt"], row[side]) for row in half for side in ("chosen", "rejected")
            ]
            found += answer_logps(model, views) if views else []
        return {row["id"]: found[2 * i : 2 * i + 2] for i, row in enumerate(batch)}

    def line(self, question: Row, found: Any) -> tuple[Row, Row]:
        """Return the fields of a row's lines of predictions.jsonl and scores.jsonl."""
        logps = dict(zip(preference.LOGPS, found, strict=True))
        score = preference.score({**logps, "dispreference": question["dispreference"], "weight": question["weight"]})
        side = "tie" if score["tie"] else "chosen" if score["correct"] else "rejected"
        return {"prediction": side, **logps}, score

    def results(self, predictions: Sequence[Row], scores: Sequence[Row]) -> Row:
        """Return the measure's fields of results.json."""
        return {
            "seed": None, "settings": {"batch_size": self.batch_size},
            "protocols": {"preference": "log_likelihood"}, "metrics": preference.aggregate(scores),
        }  # fmt: skip


class VisualReliance:
    """Visual reliance: the questions of the `lesion_noise` rows, asked on each of `visual_reliance.VIEWS`.

    "lesion_noise" shows the row's noised images, "blank" the mean colour of each, "swapped" as many images of another
    patient's row (of other images, where no patient is recorded), repeated if they are fewer. Greedy answers are scored
    by `med_vqa` (strict). Reports are scored by the log-probability of the gold report only. A line's `prediction` is
    the answer on the original images.

    Args:
        rows, batch_size: as in `Preference`; other kinds of rows are skipped.
        seed: seed of the swaps.
        max_new_tokens: longest answer in tokens.

    Raises:
        InputError: columns other than a preference dataset's; no `lesion_noise` row, or all of one patient; rows with
            several messages or a gold answer without words (all are listed).
    """

    ledger = "views"
    accepted = False

    def __init__(self, rows: Dataset, batch_size: int = 16, seed: int = 0, max_new_tokens: int = 64) -> None:
        rows, kind = _undecoded(rows), schema.DISPREFERENCES.index("lesion_noise")
        self.rows: Any = rows.select([place for place, other in enumerate(rows["dispreference"]) if other == kind])
        self.batch_size, self.seed, self.max_new_tokens = batch_size, seed, max_new_tokens
        self.questions = [_question(row) for row in self.rows]
        _refuse_unaskable(self.rows, self.questions)
        self.partners = dict(zip(self.rows["id"], other_patients(self.questions, seed), strict=True))

    def found(self, model: VisionLanguageModel, batch: Sequence[Row]) -> dict[str, Any]:
        """Return the gold answer's log-probability and, except for reports, the model's answer, by row id and view."""
        views = [self.views(row) for row in batch]
        found: dict[str, Row] = {row["id"]: {"answers": dict.fromkeys(VIEWS), "logps": {}} for row in batch}
        asked = [i for i, row in enumerate(batch) if schema.TASKS[row["task"]] != "report"]
        greedy = Sampling(self.max_new_tokens)
        for view in VIEWS:
            there = [(row, seen[view]) for row, seen in zip(batch, views, strict=True) if view in seen]
            if not there:
                continue
            logps = answer_logps(model, [View(images, row["prompt"], row["chosen"]) for row, images in there])
            for (row, _), logp in zip(there, logps, strict=True):
                found[row["id"]]["logps"][view] = logp
            places = [i for i in asked if view in views[i]]
            pairs = [(views[i][view], schema.message_text(batch[i]["prompt"])) for i in places]
            answers = model.generate(model.prompts(pairs, greedy), greedy) if pairs else []
            for i, (answer,) in zip(places, answers, strict=True):
                line = found[batch[i]["id"]]
                line["answers"][view] = answer.said or ""
                if answer.said is None:
                    line.setdefault("unanswered", {})[view] = answer.failure
        return found

    def views(self, row: Row) -> dict[str, list[Image]]:
        """Return the images of a row by view."""
        return seen_in(row["images"], row["rejected_images"], self.rows[self.partners[row["id"]]]["images"])

    def line(self, question: Row, found: Any) -> tuple[Row, Row]:
        """Return the fields of a row's lines of predictions.jsonl and scores.jsonl."""
        kind, answers = ANSWER_TYPES.get(question["task"]), found["answers"]
        asked, gold = question["question"], question["reference"]
        offered = question.get("options") or None
        correct = {
            view: kind and med_vqa.score(answers[view], gold, kind, question=asked, options=offered)["correct"]
            for view in found["logps"]
        }
        columns = {"correct": correct, "logps": found["logps"]}
        score = visual_reliance.score({f"{name}_{view}": columns[name].get(view) for name in columns for view in VIEWS})
        return {"prediction": answers["original"] or "", **found}, score

    def results(self, predictions: Sequence[Row], scores: Sequence[Row]) -> Row:
        """Return the measure's fields of results.json."""
        return {
            "seed": self.seed, "unanswered": sum("unanswered" in line for line in predictions),
            "settings": {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens, "temperature": 0.0,
                         "med_vqa_definition": med_vqa.DEFINITIONS["strict"]},
            "protocols": {"visual_reliance": "strict"}, "metrics": visual_reliance.aggregate(scores),
        }  # fmt: skip


def measure(
    measure: Preference | VisualReliance, open_model: Callable[[], VisionLanguageModel], folder: Path,
    record: Row | None = None,
) -> Row:  # fmt: skip
    """Measure all rows and write an evaluation folder (docs/architecture.md).

    Args:
        measure: measure with its rows.
        open_model: function that loads the model.
        folder: working folder; rows in its ledger are not measured again.
        record: further fields of results.json (name, command, dataset, split, ...).

    Returns:
        The content of results.json.

    Raises:
        InputError: rows that the model's processor refuses; all are listed.
    """
    questions = measure.questions
    example = options.asked(questions[0]["question"], questions[0].get("options"))
    digest = keep(questions, folder / QUESTIONS)
    model = open_model()
    if not measure.accepted:
        _refuse_unencodable(model.processor, measure.rows)
    ledger = Ledger(folder / f"{measure.ledger}.ledger")
    for batch in _unmeasured(measure, ledger):
        ledger.update(measure.found(model, batch))
    predictions, scores = [], []
    for question in questions:
        prediction, score = measure.line(question, ledger[question["id"]])
        predictions.append({"id": question["id"], **prediction})
        scores.append(about(question) | score)
    results = write_results(folder, predictions, scores, {
        "format": formats.RESULTS, **(record or {}), "versions": versions(),
        **LocalModel(model).record(example), **measure.results(predictions, scores),
        "questions_sha256": digest,
    })  # fmt: skip
    ledger.close()
    return results


def _undecoded(rows: Dataset) -> Dataset:
    if faults := schema.column_faults(rows.features):
        raise InputError("These are not the rows of a preference dataset:", faults)
    if not len(rows):
        raise InputError("The dataset has no rows; there is nothing to measure.")
    rows = schema.undecoded(rows)
    if faults := list(_unmeasurable(rows)):
        raise InputError("These rows cannot be measured:", faults)
    return rows


def _unmeasurable(rows: Dataset) -> Iterator[Fault]:
    """Yield the faults by which results would be mixed up, lost or about nothing; images are read later."""
    yield from schema.repeated_ids(Counter(filter(None, rows["id"])))
    known = [name for name in schema.OPTIONAL if name in rows.column_names]
    for row in rows.select_columns(["id", "images", "weight", "task", "dispreference", *TEXTS, *known]):
        missing = [("images", "has a missing image; every row needs one")] if None in (row["images"] or []) else []
        for column, sentence in (*schema.broken_rules(row), *missing):
            yield Fault(row["id"] or "(no id)", column, sentence)


def _question(row: Row) -> Row:
    """Return the row's line of questions.jsonl."""
    shown, other = ([*map(digest, _opened(row[column] or []))] for column in ("images", "rejected_images"))
    pair = [*(row[column] for column in TEXTS), shown, other]
    return of_row(row, row["id"], (), shown).row() | {
        "dispreference": schema.DISPREFERENCES[row["dispreference"]], "weight": row["weight"],
        "pair_digest": hashlib.sha256(json.dumps(pair).encode()).hexdigest(),
    }  # fmt: skip


def _opened(images: Sequence[Any]) -> list[Image]:
    return [open_rgb(image) for image in images]


def _seen(row: Row, side: str) -> list[Image]:
    return _opened((side == "rejected" and row["rejected_images"]) or row["images"])


def _unmeasured(measure: Preference | VisualReliance, ledger: Ledger) -> Iterator[list[Row]]:
    """Yield batches of rows, those about one image together, except those that the ledger holds completely."""
    ids, size = [question["id"] for question in measure.questions], measure.batch_size
    names = [picture(question) for question in measure.questions]
    first = {name: place for place, name in reversed([*enumerate(names)])}
    ordered = sorted(range(len(ids)), key=lambda place: first[names[place]])
    for start in track(range(0, len(ids), size), description="Measuring"):
        places = ordered[start : start + size]
        if not all(ids[place] in ledger for place in places):
            yield [measure.rows[place] for place in places]


def _refuse_unaskable(rows: Dataset, questions: Sequence[Row]) -> None:
    if not questions:
        raise InputError("The dataset has no `lesion_noise` row; curate it with a localizer that finds lesions.")
    faults = []
    for row, question in zip(rows, questions, strict=True):
        if len(row["prompt"]) != 1:
            faults.append(Fault(row["id"], "prompt", "has several messages; this measure needs one"))
        if not row["rejected_images"]:
            faults.append(Fault(row["id"], "rejected_images", "is missing; curate the row's noised image again"))
        if question["task"] != "report" and not med_vqa.tokens(question["reference"]):
            faults.append(Fault(row["id"], "chosen", "has no words to compare an answer with; drop the row"))
    if faults:
        raise InputError(f"{number_of(len(faults), 'faults')} in the `lesion_noise` rows:", faults)


def _refuse_unencodable(processor: Any, rows: Dataset) -> None:
    """Raise InputError, which lists the rows whose texts or images the processor refuses."""
    texts, images = ("prompt", "chosen", "rejected"), ("images", "rejected_images")
    faults = refusals.faults(processor, (
        (
            row["id"], {column: schema.message_text(row[column]) for column in texts},
            {column: tuple(filter(None, map(size, row[column] or []))) for column in images},
        )
        for row in rows
    ))  # fmt: skip
    if faults:
        raise InputError(
            f"The model's processor refuses {number_of(len({fault.row for fault in faults}), 'rows')}:", faults
        )


def other_patients(questions: Sequence[Row], seed: int) -> list[int]:
    """Return for each question the index of one about another patient, drawn by (seed, its id)."""
    patients = [
        question["patient_id"] or images for question, images in zip(questions, clusters(questions), strict=True)
    ]
    if len(set(patients)) < 2:
        raise InputError("All rows to measure are of one patient; there is no other image to swap in.")

    def drawn(patient: str, id_: str) -> int:
        places = (int(unit_interval("swap", seed, id_, attempt) * len(patients)) for attempt in count())
        return next(place for place in places if patients[place] != patient)

    return [drawn(patient, question["id"]) for patient, question in zip(patients, questions, strict=True)]


def seen_in(images: Sequence[Any], noised: Sequence[Any] | None, others: Sequence[Any]) -> dict[str, list[Image]]:
    """Return the views of a question's images, of themselves with noise (None leaves that view out) and of others."""
    original = _opened(images)
    hidden = {} if noised is None else {"lesion_noise": _opened(noised)}
    swapped = [*islice(cycle(_opened(others)), len(original))]
    return {"original": original, **hidden, "blank": [*map(blank, original)], "swapped": swapped}


def blank(image: Image) -> Image:
    """Return an RGB image of the same size, filled with the mean colour."""
    from PIL import Image as pillow

    mean = np.asarray(image, dtype=np.float64).mean(axis=(0, 1)).round().astype(np.uint8)
    return pillow.fromarray(np.full((image.height, image.width, 3), mean))
