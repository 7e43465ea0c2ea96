"""First phase of a curation: the steps that ask models, a block of samples after the other.

Steps: `mask` finds text burnt into images; `sample` adds candidates of the target model; `dispute` a rejected response,
or the reason for none; `locate` the lesion's region; `judge` clinical relevance. Each block has its own results on
disk, so that tasks share nothing, and an interrupted one goes on.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

from rich.progress import Progress, TaskID

from mmedpo import schema
from mmedpo.curation import hallucinate, judge_check, masking, relevance, sampling, text_pairs
from mmedpo.curation.blocks import BLOCK, MODELS, Curation, Group, Parts
from mmedpo.curation.localize import regions_record
from mmedpo.curation.plan import Plan
from mmedpo.curation.standins import Pool
from mmedpo.data.burnt_text import Finder
from mmedpo.data.samples import Sample
from mmedpo.models import thoughts
from mmedpo.models.chat import ChatModel
from mmedpo.models.chat.batch import settle
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.models.chat.limits import Budget
from mmedpo.models.chat.served import served
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.journal import Part
from mmedpo.runs.json_files import write_json
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import BLOCKS, MASKED

log = logging.getLogger(__name__)

# Beginnings of reasons that are not recorded, so that a resumed run asks again.
FAILURES = (
    hallucinate.NO_ANSWER, hallucinate.UNREADABLE, relevance.NO_SCORE, thoughts.CUT_OFF, thoughts.UNFINISHED,
)  # fmt: skip

ROUNDS = 512  # requests that a group of blocks has for each one in flight, so that few wait for its last replies
MOST_BLOCKS = 32  # of a group, for little memory
COLLECTED = (20_000, 20, 50)  # thresholds of the garbage collector

Batches = Sequence[Sequence[Sample]]


class Step(NamedTuple):
    """A step: its name in the results, what is shown with its progress, its work on a batch, and blocks at a time."""

    name: str
    title: str
    work: Callable[[Group, Sequence[Sample]], Sequence[Any]]
    batches: Callable[[Sequence[Sample]], Batches] = lambda samples: [samples]
    blocks: int = 1


def check(curation: Curation, rank: int = 0, tasks: int = 1) -> None:
    """Check the models of a curation before anything is paid for, and record who they are.

    Raises:
        InputError: a model cannot be opened, or the judges are below the bar.
    """
    with curation.opened(rank, tasks) as plan:
        _check(curation, plan)


def ask(curation: Curation, rank: int = 0, tasks: int = 1) -> None:
    """Do the steps of every `tasks`-th block from `rank` on; what its results hold is not done again.

    A single task checks the models first (`check`), and shows progress.

    Raises:
        InputError, Stopped: by a model; or requests wait for batches.
    """
    if tasks > 1 and rank >= curation.blocks:
        return  # no models are loaded for nothing
    with curation.opened(rank, tasks) as plan, _rare_collections():
        if tasks == 1:
            _check(curation, plan)
        run_steps(curation, plan, rank, tasks)
        settle(plan.chats)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector leave out modules and models, and run rarely, which makes calls a sixth faster."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*COLLECTED)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def run_steps(curation: Curation, plan: Plan, rank: int = 0, tasks: int = 1) -> None:
    """Do what `ask` does, with models that are open."""
    numbers = range(rank, curation.blocks, tasks)
    for number in numbers:
        curation.begin(number)
    for step in _steps(curation, plan):
        with Progress(disable=tasks > 1 or not numbers) as progress:
            shown = progress.add_task(step.title, total=sum(map(curation.size, numbers)))
            if progress.console.is_terminal:  # a group may take minutes
                plan.budget.on_calls = partial(_show_calls, progress, shown, step.title, plan.budget)
            finished = 0
            for group in (numbers[start : start + step.blocks] for start in range(0, len(numbers), step.blocks)):
                with curation.group(group) as (samples, results):
                    samples = samples if step.name == "mask" else curation.masked(samples, results)
                    work, advance = partial(step.work, results), partial(progress.advance, shown)
                    run_step(results[step.name], step.batches(samples), work, advance)
                finished += sum(map(curation.size, group))
                progress.update(shown, completed=finished, description=step.title)


def _show_calls(progress: Progress, shown: TaskID, title: str, budget: Budget) -> None:
    progress.update(shown, description=f"{title}, {budget.calls:,} calls")


def run_step(
    done: Part | Parts,
    batches: Batches,
    work: Callable[[Sequence[Sample]], Sequence[Any]],
    advance: Callable[[int], None] = lambda samples: None,
) -> None:
    """Record the work of all samples that are not in `done`, a batch at a time; `advance` gets their number."""
    for batch in batches:
        missing = [sample for sample in batch if sample.id not in done]
        if not missing:
            continue
        values = {sample.id: value for sample, value in zip(missing, work(missing), strict=True)}
        lost = {
            id
            for id, value in values.items()
            if isinstance(value, dict) and str(value.get("reason")).startswith(FAILURES)
        }
        # A sample that an earlier step lost has no value here, and gets one in a resumed run.
        done.update({id: value for id, value in values.items() if id not in lost and value is not None})
        done.update({id: values[id] for id in lost}, keep=False)
        advance(len(batch))


def _check(curation: Curation, plan: Plan) -> None:
    listed = served(plan.chats, log.warning)
    record_models(
        curation, plan, judge_check.before_run(plan.panel, curation.below_bar) if plan.panel else None, listed
    )


def record_models(
    curation: Curation, plan: Plan, checked: Mapping[str, Any] | None = None, listed: Mapping[str, Any] | None = None
) -> None:
    """Write `MODELS`: who the models are, the judges' check, and what endpoints list."""
    panel, writer, sampler = plan.panel, plan.writer, plan.sampler
    write_json(curation.folder / BLOCKS / MODELS, {
        "target_model": sampler.record() if sampler else {"name": None, "revision": None},
        "sampled_by": sampler and sampler.recorded,
        "chat_model": portable(writer.chat.name) if writer and writer.chat else None,
        "judges": list(panel.judges) if panel else [], "panel": panel and panel.record(), "judge_check": checked,
        "localizer": portable(plan.localizer.name), "query": plan.localizer.query,
        "mask_rule": plan.localizer.mask_rule, "max_coverage": plan.localizer.max_coverage,
        "listed_by_endpoint": listed or {},
    })  # fmt: skip


def _steps(curation: Curation, plan: Plan) -> Iterable[Step]:
    """Yield the steps of a plan; the models of one are freed before the next."""
    if curation.settings.mask_text:
        masker = masking.Masker(curation.folder / MASKED, Finder())
        yield Step("mask", "Masking burnt-in text", lambda _, batch: list(map(masker.find, batch)))
    if plan.sampler is not None:
        sampler, writer = plan.sampler, plan.writer
        target = cache(sampler.load)

        def batches(samples: Sequence[Sample]) -> Batches:
            return sampler.batches([one for one in samples if writer is None or writer.wants(one)])

        def sample(_: Group, batch: Sequence[Sample]) -> Sequence[Any]:
            return sampler.sample(target(), batch)

        yield Step("sample", "Sampling the target model", sample, batches)
        target.cache_clear()  # its memory is needed by a local judge
        settle(plan.chats)
    if plan.writer is not None:
        pools = _pools(curation, plan)
        blocks = 1 if plan.writer.show_images else _together([plan.writer.chat])  # a group's images are held
        yield Step("dispute", "Rejected responses", partial(_choose, plan, pools), blocks=blocks)
    if plan.noise is not None:
        yield Step(
            "locate", "Locating lesions", lambda _, batch: [regions_record(plan.localizer.locate(one)) for one in batch]
        )
    if (panel := plan.panel) is not None:
        yield Step("judge", "Judging relevance", partial(_judge, panel), blocks=_together(panel.judges.values()))


def _together(chats: Iterable[ChatModel | None]) -> int:
    """Return how many blocks chat models are asked at a time.

    Requests to endpoints are independent; batches of models in this process are those of a block, for any tasks.
    """
    clients = [getattr(chat, "chat", None) for chat in chats]
    if not all(isinstance(client, EndpointChat) for client in clients):
        return 1
    return min(MOST_BLOCKS, -(-ROUNDS * max(client.concurrency for client in clients if client) // BLOCK))


def _pools(curation: Curation, plan: Plan) -> dict[str, Pool]:
    """Return the gold answers by task, for a stand-in, which alone reads them."""
    answers: dict[str, set[str]] = {task: set() for task in schema.TASKS}
    if plan.writer is not None and plan.writer.chat and plan.writer.chat.name.startswith(STANDIN):
        for number in range(curation.blocks):
            for one in curation.samples(number):
                answers[one.task].add(one.answer)
    return {task: Pool(found, plan.seed) for task, found in answers.items()}


def _choose(plan: Plan, pools: Mapping[str, Pool], results: Group, batch: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a rejected response per sample, {"text", "made_by", ...}, or {"reason", "detail"}."""
    assert plan.writer is not None
    items = [
        hallucinate.Item(
            sample.question, sample.answer, sample.task, sampling.texts(results["sample"].get(sample.id)),
            partial(pools[sample.task].nearest, sample),
            tuple(map(sampling.sent, sample.files)) if plan.writer.show_images else (),
            sample.options, f"{plan.seed} {sample.id}", (results["sample"].get(sample.id) or {}).get("reason", ""),
        )
        for sample in batch
    ]  # fmt: skip
    return [text_pairs.record(choice) for choice in plan.writer.choose(items)]


def _judge(panel: relevance.Panel, results: Group, batch: Sequence[Sample]) -> list[dict[str, Any] | None]:
    found = [results["dispute"][sample.id] for sample in batch]
    scores = iter(panel.score([
        relevance.Item(sample.prompt, sample.answer, wrong["text"])
        for sample, wrong in zip(batch, found, strict=True) if "text" in wrong
    ]))  # fmt: skip
    return [vars(next(scores)) if "text" in wrong else None for wrong in found]
