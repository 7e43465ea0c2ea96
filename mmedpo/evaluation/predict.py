"""Answers of a model to a source's questions, written as they come and resumable at any moment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.progress import track

from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.score import PROTOCOLS, question_faults, score_folder
from mmedpo.images import open_rgb
from mmedpo.ledger import Ledger
from mmedpo.models import Sampling, VisionLanguageModel
from mmedpo.samples import Sample
from mmedpo.workdir import portable, versions, write_json


def evaluate(
    model: VisionLanguageModel,
    samples: Sequence[Sample],
    folder: Path,
    sampling: Sampling,
    batch_size: int = 16,
    record: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Answer every question, score the answers, and write an evaluation folder (see docs/architecture.md).

    Questions of similar length share a batch. A batch is answered with a seed of its own, so that a resumed run
    samples what an uninterrupted one would have.

    Args:
        folder: a working folder; answers found in its ledger are not generated again.
        record: what else results.json shall say (name, command, source, split, ...).

    Returns:
        The content of results.json.
    """
    if sampling.samples != 1:
        raise InputError(f"An evaluation takes one answer a question, not {sampling.samples}.")
    questions = [_question(sample) for sample in samples]
    faults = [Fault(row["id"], column, said) for row in questions for column, said in question_faults(row)]
    if faults:
        raise InputError(f"{len(faults)} questions cannot be scored:", faults)
    _write_lines(folder / "questions.jsonl", questions)
    ledger = Ledger(folder / "answers.ledger")
    ordered = sorted(samples, key=lambda sample: (len(sample.question), sample.id))
    starts = range(0, len(ordered), batch_size)
    for start in track(starts, description="Answering"):
        batch = ordered[start : start + batch_size]
        if all(sample.id in ledger for sample in batch):
            continue
        shown = [(open_rgb(sample.image), sample.question) for sample in batch]
        answers = model.answer(shown, replace(sampling, seed=sampling.seed + start))
        ledger.update({sample.id: answer for sample, (answer,) in zip(batch, answers, strict=True)})
    _write_lines(
        folder / "predictions.jsonl", [{"id": sample.id, "prediction": ledger[sample.id]} for sample in samples]
    )
    results = {
        "format": "mmedpo.results/1", **(record or {}), "versions": versions(), "seed": sampling.seed,
        "model": portable(model.name), "revision": model.revision,
        "adapter": model.adapter and portable(model.adapter),
        "settings": {**asdict(sampling), "batch_size": batch_size}, "protocols": PROTOCOLS,
        "metrics": score_folder(folder),
    }  # fmt: skip
    write_json(folder / "results.json", results)
    ledger.close()
    return results


def _question(sample: Sample) -> dict[str, Any]:
    return {
        "id": sample.id, "image_id": sample.image_id, "patient_id": sample.patient_id, "task": sample.task,
        "question": sample.question, "reference": sample.answer,
    }  # fmt: skip


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
