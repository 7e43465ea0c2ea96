"""Answer and score all questions into an evaluation folder; resumable at any moment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.answering import Answering, Batch, Generation
from mmedpo.evaluation.contents import QUESTIONS, keep
from mmedpo.evaluation.predictions import Line, unanswered, without_open_thoughts
from mmedpo.evaluation.questions import Question, QuestionSet
from mmedpo.evaluation.score import Scoring, finish
from mmedpo.runs import formats
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import ALONE, Processes
from mmedpo.runs.provenance import versions
from mmedpo.schema import TASKS

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

log = logging.getLogger(__name__)


def evaluate(
    answering: Answering,
    asked: QuestionSet,
    folder: Path,
    generation: Generation | None = None,
    scoring: Scoring | None = None,
    record: dict[str, Any] | None = None,
    processes: Processes = ALONE,
    accept_unanswered: bool = False,
    judges: Judges | None = None,
) -> dict[str, Any] | None:
    """Answer every question, score the answers, and write an evaluation folder (docs/files.md).

    Args:
        answering: model in this process or behind an endpoint.
        asked: questions with their images.
        folder: working folder; answers in its ledgers are not generated again.
        generation: generation settings.
        scoring: protocols of the scores.
        record: further fields of results.json (name, command, ...).
        processes: processes of this launch, which share the batches.
        accept_unanswered: score unanswered questions as '' instead of raising.
        judges: chat models that make some scores.

    Returns:
        The content of results.json; None in all processes but the first.

    Raises:
        InputError: unreadable images, or questions without an answer; finished answers are kept.
        Stopped: the budget of an endpoint is spent.
    """
    generation, scoring = generation or Generation(), scoring or Scoring()
    rows = asked.rows()
    digest = keep(rows, folder / QUESTIONS) if processes.first else None
    ledgers = [Ledger(folder / f"{name}.ledger") for name in ("answers", "failures", "launches")]
    answers, failures, launches = ledgers
    share = batches(asked.questions, generation.batch_size)[processes.rank :: processes.count]
    _answer(answering, share, asked, generation, ledgers, processes)
    processes.finish(folder)
    if not processes.first:
        return None
    said = without_open_thoughts({q.id: answers[q.id] for q in asked.questions if q.id in answers})
    lost = {q.id: failures.get(q.id) for q in asked.questions if q.id not in said}
    if lost and not accept_unanswered:
        faults = [Fault(id_, "answer", str(failure)) for id_, failure in lost.items()]
        raise InputError(
            f"{len(lost)} of {len(asked.questions)} questions got no answer. The others are kept: ask again with "
            "--resume, or add --accept-unanswered to score these as ''.",
            faults,
        )
    said |= {id_: unanswered(why) for id_, why in lost.items()}
    lines = [said[question.id] for question in asked.questions]
    requests, served = _each(lines, "sent"), _each(lines, "served")
    if len(served) > 1:
        log.warning(
            "The endpoint's model changed during the run. All answers are scored as those of one model: %s", served
        )
    results = {
        "format": formats.RESULTS, **(record or {}), **asked.record, "questions_sha256": digest,
        "versions": versions(), "seed": generation.seed, **answering.record(asked.questions[0].prompt),
        "settings": asdict(generation), "processes": processes.count, "seconds": round(sum(launches.values()), 1),
        **({"requests": requests} if requests else {}), **({"served": served} if served else {}),
    }  # fmt: skip
    results = finish(folder, list(zip(rows, lines, strict=True)), scoring, results, judges)
    for ledger in ledgers:
        ledger.close()
    return results


def _each(lines: Sequence[Line], name: str) -> list[Mapping[str, Any]]:
    """Remove the field `name` ("sent" or "served", of endpoints only) from the lines; return its distinct values."""
    values = [line.pop(name, None) for line in lines]
    return list({json.dumps(value, sort_keys=True): value for value in values if value}.values())


def batches(questions: Sequence[Question], size: int) -> list[Batch]:
    """Return batches of one task, with the questions about one image together, which share its computation.

    Images with the longest questions come first, so that running out of memory shows at once. Batches depend on the
    questions only, not on finished answers, since sampling and rounding depend on the batch.
    """
    most: dict[Any, int] = {}  # characters of the longest prompt
    for q in questions:
        most[q.task, q.image] = max(most.get((q.task, q.image), 0), len(q.prompt))

    def order(q: Question) -> Any:
        return TASKS.index(q.task), most[q.task, q.image], q.image, len(q.prompt), q.prompt, q.id

    ordered = sorted(questions, key=order, reverse=True)
    groups = [list(group) for _, group in groupby(ordered, key=lambda question: question.task)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _answer(
    answering: Answering,
    share: Sequence[Batch],
    asked: QuestionSet,
    generation: Generation,
    ledgers: Sequence[Ledger],
    processes: Processes,
) -> None:
    """Fill the ledgers with answers and failures by question and the seconds of each launch."""
    answers, failures, launches = ledgers
    launch, begun = str(time.time_ns()), time.monotonic()
    with Progress(disable=not processes.first) as progress:
        task = progress.add_task("Answering", total=sum(map(len, share)))

        def keep(new: Mapping[str, Line]) -> None:
            answers.update(new)
            progress.advance(task, len(new))
            if processes.first:
                launches.put(launch, time.monotonic() - begun)

        progress.advance(task, sum(question.id in answers for batch in share for question in batch))
        failed = answering.answer(share, asked, generation, answers, keep)
    failures.update(failed, keep=False)
