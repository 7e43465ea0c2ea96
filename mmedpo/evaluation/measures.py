"""Run one evaluation: open questions and model, then evaluate the chosen measure."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.data import consent
from mmedpo.data.sources import chosen_ids
from mmedpo.errors import InputError
from mmedpo.evaluation import pairs, questions
from mmedpo.evaluation.answering import Answering, EndpointModel, LocalModel
from mmedpo.evaluation.contents import still
from mmedpo.evaluation.predict import evaluate
from mmedpo.evaluation.score import Row
from mmedpo.evaluation.settings import Run, Settings
from mmedpo.models.chat.limits import Limits
from mmedpo.models.vision_language import VisionLanguageModel, load_processor
from mmedpo.runs import writable
from mmedpo.runs.processes import Processes
from mmedpo.runs.run_folder import output_folder

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)


def measure(settings: Settings, run: Run, command: str = "") -> dict[str, Any] | None:
    """Evaluate the measure of the settings and write an evaluation folder.

    Returns:
        The content of results.json; None in all processes but the first.

    Raises:
        InputError: invalid questions, model, protocols or output; most are refused before the first answer.
        Stopped: the budget of an endpoint is spent.
        AlreadyFinished: `run.resume` is set and the folder exists.
    """
    if Processes.here().first:
        writable.check(run.output, run.resume)
    record = {"name": settings.name or run.output.name, "command": command}
    return MEASURES[settings.measure](settings, run, record, Processes.here())


def answers(settings: Settings, run: Run, record: dict[str, Any], processes: Processes) -> dict[str, Any] | None:
    """Answer questions and score the answers against the gold answers."""
    asked = open_questions(settings)
    if asked.note and processes.first:
        log.warning(asked.note)
    record |= consent.to_endpoints(
        asked.record["source"] if asked.marked else None, [settings.model], run.third_parties, len(asked.questions),
        True, asked.marked_by, processes.first,
    )  # fmt: skip
    contents = {} if settings.is_endpoint else settings.model_spec.contents()
    with (
        still(run.output, partial(questions.lines, asked)),
        output_folder(run.output, settings.record(), run.resume, processes, contents) as folder,
    ):
        answering = open_answering(settings, run.limits.share(processes.count), contents)
        return evaluate(
            answering, asked, folder, settings.generation, settings.scoring, record, processes, run.accept_unanswered
        )


def open_questions(settings: Settings) -> questions.QuestionSet:
    """Return the questions of the settings; raise InputError for questions that cannot be asked or scored."""
    return questions.read(
        settings.source, settings.dataset, settings.split, settings.limit, settings.seed, settings.skip_faulty,
        settings.dataset_revision, settings.official_split, settings.scoring, settings.credentialed,
        None if settings.is_endpoint else partial(load_processor, settings.model, settings.model_revision),
        [*map(Path, settings.image_folders)],
    )  # fmt: skip


def open_answering(settings: Settings, limits: Limits, contents: Mapping[str, str | None]) -> Answering:
    """Return the model of the settings with its adapter; raise InputError if it cannot be loaded."""
    return (
        EndpointModel(settings.model, limits)
        if settings.is_endpoint
        else LocalModel(settings.model_spec.open(contents))
    )


def preference(settings: Settings, run: Run, record: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """Measure which side of each pair has the higher log-probability."""
    rows, found = _pairs(settings, processes)
    with _of_pairs(settings, run, partial(pairs.lines, rows)) as (folder, open_model):
        return pairs.measure_preferences(open_model, rows, folder, settings.batch_size, record | found)


def visual_reliance(settings: Settings, run: Run, record: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """Measure the fall of accuracy and likelihood when the image is noised, blanked or swapped."""
    rows, found = _pairs(settings, processes)
    with _of_pairs(settings, run, partial(pairs.lines, rows, only_noised=True)) as (folder, open_model):
        return pairs.measure_visual_reliance(
            open_model, rows, folder, settings.batch_size, record | found, settings.seed,
            settings.generation.max_new_tokens,
        )  # fmt: skip


@contextmanager
def _of_pairs(
    settings: Settings, run: Run, lines: Callable[[], Sequence[Row]]
) -> Iterator[tuple[Path, Callable[[], VisionLanguageModel]]]:
    """Yield the working folder of a measure of pairs, and a function that loads the model."""
    contents = settings.model_spec.contents()
    with (
        still(run.output, lines),
        output_folder(run.output, settings.record(), run.resume, contents=contents) as folder,
    ):
        yield folder, partial(settings.model_spec.open, contents)


def _pairs(settings: Settings, processes: Processes) -> tuple[Dataset, dict[str, Any]]:
    if processes.count > 1:
        raise InputError(f"--measure {settings.measure} runs in one process, not {processes.count}; launch it alone.")
    rows, record = questions.open_split(
        str(settings.dataset), settings.split, settings.dataset_revision, settings.credentialed
    )
    if settings.limit is not None:
        kept = chosen_ids(rows["id"], settings.limit, settings.seed)
        rows = rows.select([place for place, id_ in enumerate(rows["id"]) if id_ in kept])
    return rows, record | {"limit": settings.limit, "rows": len(rows)}


MEASURES = {"answers": answers, "preference": preference, "visual_reliance": visual_reliance}
