"""Answer and score all questions into an evaluation folder; resumable at any moment.

Tasks share the batches of questions. Each appends its answers to `answers/00003.journal`, which all may read.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import Progress

from mmedpo.errors import Fault, InputError
from mmedpo.evaluation.answering import Batch, Generation, Opening
from mmedpo.evaluation.contents import QUESTIONS, keep
from mmedpo.evaluation.predictions import Line, unanswered, without_open_thoughts
from mmedpo.evaluation.questions import Question, QuestionSet
from mmedpo.evaluation.score import Scoring, finish
from mmedpo.runs import formats
from mmedpo.runs.executors import Phase, Spread, run_phases
from mmedpo.runs.journal import Journal
from mmedpo.runs.provenance import versions
from mmedpo.runs.run_folder import ANSWERS
from mmedpo.runs.tasks import Job
from mmedpo.schema import TASKS

if TYPE_CHECKING:
    from mmedpo.evaluation.asking import Judges

log = logging.getLogger(__name__)

PHASE = "answer"


@dataclass
class Answered:
    """What the journals of all tasks hold.

    Attributes:
        lines, failures: by question id; a question may be in both, of two launches.
        model: as `Answering.record`; empty if no task came to its end.
        seconds: of all tasks, added up.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def evaluate(
    open_model: Opening,
    asked: QuestionSet,
    folder: Path,
    generation: Generation | None = None,
    scoring: Scoring | None = None,
    record: dict[str, Any] | None = None,
    spread: Spread | None = None,
    accept_unanswered: bool = False,
    judges: Judges | None = None,
    gpu: bool = True,
) -> dict[str, Any]:
    """Answer every question, score the answers, and write an evaluation folder (docs/files.md).

    Args:
        open_model: opens the model in this process or behind an endpoint; picklable, for tasks elsewhere.
        asked: questions with their images.
        folder: working folder; answers in its journals are not generated again.
        generation: generation settings.
        scoring: protocols of the scores.
        record: further fields of results.json (name, command, ...).
        spread: where the tasks run that answer, and how many; by default one in this process.
        accept_unanswered: score unanswered questions as '' instead of raising.
        judges: chat models that make some scores.
        gpu: the model runs in the tasks' processes, on a GPU where there is one.

    Returns:
        The content of results.json.

    Raises:
        InputError: unreadable images, or questions without an answer; finished answers are kept.
        Stopped: the budget of an endpoint is spent.
        TasksFailed, Submitted: as `run_phases`.
    """
    generation, scoring, spread = generation or Generation(), scoring or Scoring(), spread or Spread()
    rows = asked.rows()
    digest = keep(rows, folder / QUESTIONS)
    made = batches(asked.questions, generation)
    tasks, work = min(spread.tasks, len(made)), partial(answer, open_model, asked, made, folder, generation)
    run_phases([Phase(PHASE, work, tasks, gpu)], folder, spread)
    found = read_answers(folder)
    said = without_open_thoughts({q.id: found.lines[q.id] for q in asked.questions if q.id in found.lines})
    lost = {q.id: found.failures.get(q.id) for q in asked.questions if q.id not in said}
    if lost and not accept_unanswered:
        shutil.rmtree(Job.of(PHASE, tasks, folder).folder, ignore_errors=True)  # a resumed run asks again
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
        "versions": versions(), "seed": generation.seed, **found.model,
        "settings": asdict(generation), "processes": tasks, "seconds": round(found.seconds, 1),
        **({"requests": requests} if requests else {}), **({"served": served} if served else {}),
    }  # fmt: skip
    return finish(folder, list(zip(rows, lines, strict=True)), scoring, results, judges)


def _each(lines: Sequence[Line], name: str) -> list[Mapping[str, Any]]:
    """Remove the field `name` ("sent" or "served", of endpoints only) from the lines; return its distinct values."""
    values = [line.pop(name, None) for line in lines]
    return list({json.dumps(value, sort_keys=True): value for value in values if value}.values())


def batches(questions: Sequence[Question], generation: Generation) -> list[Batch]:
    """Return batches of questions about one image after the other, which share its computation.

    A greedy batch holds all questions about its images, which have questions of the same tasks. It takes images until
    they are half of `batch_size` and their questions all of it. Reports have batches of their own: they are long, so
    that full rows save more than shared images. Sampled answers depend on all of their batch, which holds `batch_size`
    questions of one task. Images with the longest questions come first, so that running out of
    memory shows at once. Batches depend on the questions only, not on finished answers, since rounding depends on them.
    """
    size, sampled = generation.batch_size, generation.temperature > 0
    tasks: dict[Any, set[int]] = {}
    most: dict[Any, int] = {}  # characters of the longest prompt
    for q in questions:
        if q.task != "report":
            tasks.setdefault(q.images, set()).add(TASKS.index(q.task))

    def kind(q: Question) -> list[int]:
        alone = sampled or q.task == "report"
        return [TASKS.index(q.task)] if alone else sorted(tasks[q.images], reverse=True)

    for q in questions:
        most[q.images, *kind(q)] = max(most.get((q.images, *kind(q)), 0), len(q.prompt))

    def order(q: Question) -> Any:
        return kind(q), most[q.images, *kind(q)], q.images, TASKS.index(q.task), len(q.prompt), q.prompt, q.id

    made: list[Batch] = []
    for _, alike in groupby(sorted(questions, key=order, reverse=True), key=kind):
        held = 0
        for _, own in groupby(alike, key=lambda q: q.id if sampled else q.images):
            new = [*own]
            if not held or (held >= size // 2 and len(made[-1]) + len(new) > size):
                made.append(new)
                held = 1
            else:
                made[-1] = [*made[-1], *new]
                held += 1
    return made


def answer(
    open_model: Opening, asked: QuestionSet, batches: Sequence[Batch], folder: Path, generation: Generation, rank: int,
    tasks: int,
) -> None:  # fmt: skip
    """Answer every `tasks`-th batch from `rank` on; what the journals in `folder` hold is not answered again.

    No model is opened where nothing is left to do. A single task shows progress.

    Raises:
        InputError, Stopped: by the model.
    """
    share = batches[rank::tasks]
    (done, recorded), ids = _finished(folder), [question.id for batch in share for question in batch]
    if recorded and done.issuperset(ids):
        return
    answering = open_model(tasks)
    launch, begun = str(time.time_ns()), time.monotonic()
    with closing(Journal(_file(folder, rank))) as own, Progress(disable=tasks > 1) as progress:
        own.forget()
        task = progress.add_task("Answering", total=len(ids), completed=len(done.intersection(ids)))

        def keep(new: Mapping[str, Line]) -> None:
            own.part("lines").update(new)
            own.part("seconds").put(launch, time.monotonic() - begun)
            progress.advance(task, len(new))

        failed = answering.answer(share, asked, generation, done, keep)
        own.part("failures").update(failed, keep=False)
        own.part("model").put("record", answering.record(asked.questions[0].prompt))


def _finished(folder: Path) -> tuple[set[str], bool]:
    """Return the ids of the questions that tasks have answered, and True if one recorded its model."""
    done, recorded = set(), False
    for file in _files(folder):
        with closing(Journal(file)) as journal:
            done |= set(journal.part("lines"))
            recorded = recorded or "record" in journal.part("model")
    return done, recorded


def read_answers(folder: Path) -> Answered:
    """Return what the tasks of this launch and of earlier ones, maybe more, left in `folder`."""
    found = Answered()
    for file in reversed(_files(folder)):  # the first count, which are of this launch
        with closing(Journal(file)) as journal:
            lines, failures, model, seconds = map(journal.part, ("lines", "failures", "model", "seconds"))
            found.lines |= {id_: lines[id_] for id_ in lines}
            found.failures |= {id_: failures[id_] for id_ in failures}
            found.model = model.get("record") or found.model
            found.seconds += sum(seconds.values())
    return found


def _file(folder: Path, rank: int) -> Path:
    return folder / ANSWERS / f"{rank:05d}.journal"


def _files(folder: Path) -> list[Path]:
    return sorted((folder / ANSWERS).glob("*.journal"))
