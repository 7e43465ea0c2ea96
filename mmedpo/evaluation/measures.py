"""Run one evaluation: open questions and model, then evaluate the chosen measure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmedpo.data import consent, reading
from mmedpo.data.sources import chosen_ids
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs, questions
from mmedpo.evaluation.answering import Answering, EndpointModel, LocalModel
from mmedpo.evaluation.contents import still
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.evaluation.source_reliance import Noised, SourceReliance
from mmedpo.models.chat.limits import Limits
from mmedpo.models.vision_language import load_processor
from mmedpo.runs import writable
from mmedpo.runs.executors import submitted
from mmedpo.runs.hosts import is_remote
from mmedpo.runs.run_folder import output_folder, working_folder

log = logging.getLogger(__name__)


def measure(
    settings: Settings, run: Run, command: str = "", noised: Noised | None = None, noise: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Evaluate the measure of the settings and write an evaluation folder.

    Args:
        noised, noise: as in `SourceReliance`, for visual reliance on a source.

    Returns:
        The content of results.json.

    Raises:
        InputError: invalid questions, model, protocols or output; most are refused before the first answer.
        Stopped: the budget of an endpoint is spent.
        TasksFailed: tasks that answer failed; the others are finished.
        Submitted: tasks that answer are in Slurm's queue.
        AlreadyFinished: `run.resume` is set and the folder exists.
    """
    run.resume |= submitted(working_folder(run.output), run)
    writable.check(run.output, run.resume)
    record = {"name": settings.name or run.output.name, "command": command}
    if settings.measure == "answers":
        return _answers(settings, run, record)
    if run.tasks > 1 or run.executor != "local":
        raise InputError(f"--measure {settings.measure} runs in this process. Leave out --tasks and --executor.")
    return _alone(settings, run, record, noised, noise)


def _answers(settings: Settings, run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Answer questions and score the answers against the gold answers."""
    load = partial(load_processor, settings.model, settings.model_revision)
    processor = (lambda: None) if settings.is_endpoint else load
    asked = questions.read(settings.asked, settings.scoring, processor, reading.beside(run.output))
    asked = asked.marked_because(None if settings.is_endpoint else settings.model_spec.restricted_by())
    if asked.note:
        log.warning(asked.note)
    judging = settings.judging(run)
    record |= consent.to_endpoints(
        asked.record["source"] if asked.marked else None, [settings.model, *judging.judges], run.third_parties,
        len(asked.questions), is_remote(settings.model), asked.marked_by,
    )  # fmt: skip
    settings.scoring.prepare(question.task for question in asked.questions)
    contents: Mapping[str, str | None] = {} if settings.is_endpoint else settings.model_spec.contents()
    with (
        still(run.output, asked.rows),
        output_folder(run.output, settings.record(), run.resume, contents) as folder,
        judging.open(run.output, asked.marked) as judges,
    ):
        return evaluate(
            partial(opened, settings, run.limits, contents),
            asked,
            folder,
            settings.generation,
            settings.scoring,
            record,
            run,
            run.accept_unanswered,
            judges,
            gpu=not settings.is_endpoint,
        )


def opened(settings: Settings, limits: Limits, contents: Mapping[str, str | None], tasks: int) -> Answering:
    """Return the model that answers, for one of `tasks` tasks."""
    if settings.is_endpoint:
        return EndpointModel(settings.model, limits.share(tasks))
    return LocalModel(settings.model_spec.open(contents))


def _alone(
    settings: Settings, run: Run, record: dict[str, Any], noised: Noised | None, noise: dict[str, Any] | None
) -> dict[str, Any]:
    """Measure preference or visual reliance in this process."""
    if settings.source is None:
        measure = _of_pairs(settings, record)
    else:
        measure = _of_source(settings, run, record, noised, noise)
    contents = settings.model_spec.contents()
    with (
        still(run.output, lambda: measure.questions),
        output_folder(run.output, settings.record(), run.resume, contents) as folder,
    ):
        return pairs.measure(measure, partial(settings.model_spec.open, contents), folder, record)


def _of_source(
    settings: Settings, run: Run, record: dict[str, Any], noised: Noised | None, noise: dict[str, Any] | None
) -> SourceReliance:
    """Return visual reliance on the questions of a source; add their fields to the record."""
    load = partial(load_processor, settings.model, settings.model_revision)
    asked = questions.read(settings.asked, settings.scoring, load, reading.beside(run.output))
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
