"""Run one evaluation: open questions and model, then evaluate the chosen measure."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from mmedpo.data import consent
from mmedpo.data.sources import chosen_ids
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs, questions
from mmedpo.evaluation.answering import EndpointModel, LocalModel
from mmedpo.evaluation.asking import Judging
from mmedpo.evaluation.contents import still
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.evaluation.source_reliance import Noised, SourceReliance
from mmedpo.models.vision_language import load_processor
from mmedpo.runs import writable
from mmedpo.runs.hosts import is_remote
from mmedpo.runs.processes import Processes
from mmedpo.runs.run_folder import output_folder

log = logging.getLogger(__name__)


def measure(
    settings: Settings, run: Run, command: str = "", noised: Noised | None = None, noise: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Evaluate the measure of the settings and write an evaluation folder.

    Args:
        noised, noise: as in `SourceReliance`, for visual reliance on a source.

    Returns:
        The content of results.json; None in all processes but the first.

    Raises:
        InputError: invalid questions, model, protocols or output; most are refused before the first answer.
        Stopped: the budget of an endpoint is spent.
        AlreadyFinished: `run.resume` is set and the folder exists.
    """
    processes = Processes.here()
    if processes.first:
        writable.check(run.output, run.resume)
    record = {"name": settings.name or run.output.name, "command": command}
    if settings.measure == "answers":
        return _answers(settings, run, record, processes)
    if processes.count > 1:
        raise InputError(f"--measure {settings.measure} runs in one process, not {processes.count}; launch it alone.")
    return _alone(settings, run, record, noised, noise)


def _answers(settings: Settings, run: Run, record: dict[str, Any], processes: Processes) -> dict[str, Any] | None:
    """Answer questions and score the answers against the gold answers."""
    load = partial(load_processor, settings.model, settings.model_revision)
    asked = questions.read(settings.asked, settings.scoring, (lambda: None) if settings.is_endpoint else load)
    asked = asked.marked_because(None if settings.is_endpoint else settings.model_spec.restricted_by())
    if asked.note and processes.first:
        log.warning(asked.note)
    judging = settings.judging(run)
    record |= consent.to_endpoints(
        asked.record["source"] if asked.marked else None, [settings.model, *judging.judges], run.third_parties,
        len(asked.questions), is_remote(settings.model), asked.marked_by, processes.first,
    )  # fmt: skip
    if processes.first:
        settings.scoring.prepare(question.task for question in asked.questions)
    contents = {} if settings.is_endpoint else settings.model_spec.contents()
    with (
        still(run.output, asked.rows),
        output_folder(run.output, settings.record(), run.resume, processes, contents) as folder,
        (judging if processes.first else Judging()).open(run.output, asked.marked) as judges,
    ):
        model = (
            EndpointModel(settings.model, run.limits.share(processes.count))
            if settings.is_endpoint
            else LocalModel(settings.model_spec.open(contents))
        )
        return evaluate(
            model,
            asked,
            folder,
            settings.generation,
            settings.scoring,
            record,
            processes,
            run.accept_unanswered,
            judges,
        )


def _alone(
    settings: Settings, run: Run, record: dict[str, Any], noised: Noised | None, noise: dict[str, Any] | None
) -> dict[str, Any]:
    """Measure preference or visual reliance in this process."""
    measure = _of_pairs(settings, record) if settings.source is None else _of_source(settings, record, noised, noise)
    contents = settings.model_spec.contents()
    with (
        still(run.output, lambda: measure.questions),
        output_folder(run.output, settings.record(), run.resume, contents=contents) as folder,
    ):
        return pairs.measure(measure, partial(settings.model_spec.open, contents), folder, record)


def _of_source(
    settings: Settings, record: dict[str, Any], noised: Noised | None, noise: dict[str, Any] | None
) -> SourceReliance:
    """Return visual reliance on the questions of a source; add their fields to the record."""
    load = partial(load_processor, settings.model, settings.model_revision)
    asked = questions.read(settings.asked, settings.scoring, load)
    asked = asked.marked_because(settings.model_spec.restricted_by())
    if asked.note:
        log.warning(asked.note)
    record |= asked.record
    tokens = settings.generation.max_new_tokens
    return SourceReliance(asked, noised or (lambda sample: None), settings.batch_size, settings.seed, tokens, noise)


def _of_pairs(settings: Settings, record: dict[str, Any]) -> pairs.Preference | pairs.VisualReliance:
    """Return preference or visual reliance on the pairs of a preference dataset; add their fields to the record."""
    rows, found = questions.open_split(settings.asked)
    if settings.limit is not None:
        kept = chosen_ids(rows["id"], settings.limit, settings.seed)
        rows = rows.select([place for place, id_ in enumerate(rows["id"]) if id_ in kept])
    if settings.model_spec.restricted_by():
        found |= {"credentialed": True}
    record |= found | {"limit": settings.limit, "rows": len(rows)}
    if settings.measure == "preference":
        return pairs.Preference(rows, settings.batch_size)
    return pairs.VisualReliance(rows, settings.batch_size, settings.seed, settings.generation.max_new_tokens)
