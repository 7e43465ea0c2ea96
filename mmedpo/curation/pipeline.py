"""Steps of a curation; each writes a ledger, so that an interrupted run can resume.

Steps: `sample` adds candidates of the target model; `dispute` a rejected response, or the reason for none; `locate` the
lesion's region; `judge` clinical relevance. Weights over all pairs and the rows follow. Several processes share the
samples by blocks; the first one writes the rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rich.progress import track

from mmedpo import schema
from mmedpo.curation import hallucinate, relevance, rows, sampling
from mmedpo.curation.plan import Plan
from mmedpo.curation.standins import Pool
from mmedpo.curation.weights import Normalization
from mmedpo.data import shards
from mmedpo.data.samples import Sample
from mmedpo.data.sources import Source
from mmedpo.errors import InputError
from mmedpo.models import thoughts
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import Processes
from mmedpo.runs.provenance import portable

BLOCK = 256  # samples that a step records at once and a process takes at a time
# Beginnings of reasons that are not recorded, so that a resumed run asks again.
FAILURES = (
    hallucinate.NO_ANSWER, hallucinate.UNREADABLE, relevance.NO_SCORE, thoughts.CUT_OFF, thoughts.UNFINISHED,
)  # fmt: skip
FAULTY_ROW = "faulty row of the source"
ONLY_TEXT = "the image shows text alone, which is masked"
STEPS = ("sample", "dispute", "locate", "judge")
# What a step does, for messages; rejects without a step are rows of the source.
DOING = {
    "dispute": "choosing rejected responses", "judge": "judging relevance", "locate": "locating lesions",
    "": "reading the source",
}  # fmt: skip
EXAMPLES = 3

Batches = Sequence[Sequence[Sample]]
Ledgers = Mapping[str, Ledger]  # by step


class NothingMade(InputError):
    """Raised by a finished run that made no row."""


@dataclass
class Rejects:
    """Counts of rejects by reason, by task and reason, and by step and reason; the first one of each reason."""

    by_reason: Counter[str] = field(default_factory=Counter)
    by_task: dict[str, Counter[str]] = field(default_factory=dict)
    by_step: dict[str, Counter[str]] = field(default_factory=dict)
    first: dict[str, list[rows.Reject]] = field(default_factory=dict)

    def add(self, reject: rows.Reject) -> None:
        self.by_reason[reject.reason] += 1
        self.by_step.setdefault(reject.step, Counter())[reject.reason] += 1
        if reject.task:
            self.by_task.setdefault(reject.task, Counter())[reject.reason] += 1
        known = self.first.setdefault(reject.reason, [])
        if len(known) < EXAMPLES:
            known.append(reject)

    def examples(self) -> list[rows.Reject]:
        """Return `EXAMPLES` rejects, of different reasons as far as there are, the commonest first."""
        found = [self.first[reason] for reason, _ in self.by_reason.most_common()]
        turns = (known[turn] for turn in range(EXAMPLES) for known in found if turn < len(known))
        return list(islice(turns, EXAMPLES))


@dataclass(frozen=True)
class Made:
    """Facts about the rows of a curation, for its manifest.

    Attributes:
        makers: of the rejected sides.
        candidates: counts of the target model's samples; None if none were sampled.
        counts: of rows by kind of pair.
        rejects: of pairs that were not made.
        selected: how often the chat model chose among candidates.
        standins: names of those that made or scored rows, in the order of the steps.
        mask_coverage: of the visual pairs, or None.
        burnt_text: text found in the images of the rows, and masked; None where it was not looked for.
    """

    makers: rows.Makers
    candidates: dict[str, Any] | None
    counts: Counter[str]
    rejects: Rejects
    selected: dict[str, int]
    standins: list[str]
    weights: Normalization
    mask_coverage: dict[str, float] | None
    burnt_text: dict[str, Any] | None


def curate(
    plan: Plan, ledgers: Ledgers, folder: Path, processes: Processes, precomputed: rows.Precomputed
) -> Made | None:
    """Run the steps and write the rows (Parquet) and `rejects.jsonl` into `folder`; None but in the first process.

    Args:
        ledgers: of `STEPS`. What they hold is not done again.
        precomputed: recorded as work of the steps.

    Raises:
        NothingMade: every pair was rejected.
        InputError, Stopped: by a model.
    """
    samples = plan.source.samples
    blocks = [samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK)]
    share = blocks[processes.rank :: processes.count]
    if plan.masker is not None:
        name = "Masking burnt-in text"
        shown = track(share, name, disable=not processes.first)
        share = [[made for one in block if (made := plan.masker(one))] for block in shown]
    step = partial(run_step, show=processes.first)
    if processes.first:
        ledgers["dispute"].update(precomputed.answers)
        ledgers["judge"].update({id: {"score": score} for id, score in precomputed.scores.items()})
        ledgers["locate"].update(precomputed.regions)
    revision = None
    if plan.sampler is not None:
        target = plan.sampler.load()
        revision = target.revision
        flips = plan.writer is not None and plan.writer.style != "free"
        asked = [[one for one in block if not flips or hallucinate.flip(one.answer) is None] for block in share]
        work = partial(plan.sampler.sample, target)
        step("Sampling the target model", ledgers["sample"], plan.sampler.batches(asked), work)
        del target, work  # its memory is needed by a local judge
    if plan.writer is not None:
        step(
            "Rejected responses",
            ledgers["dispute"],
            share,
            partial(_choose, plan, ledgers["sample"], _pools(plan)),
        )
    if plan.noise is not None:
        step(
            "Locating lesions",
            ledgers["locate"],
            share,
            lambda batch: [plan.localizer.locate(one).record() for one in batch],
        )
    if plan.panel is not None:
        step("Judging relevance", ledgers["judge"], share, partial(_judge, plan.panel, ledgers["dispute"]))
    processes.finish(folder)
    return _write_rows(plan, ledgers, revision, folder, precomputed.rejects) if processes.first else None


def run_step(
    name: str, done: Ledger, batches: Batches, work: Callable[[Sequence[Sample]], Sequence[Any]], show: bool = True
) -> None:
    """Record the work of all samples that are not in `done`, a batch at a time; `name` is shown with its progress."""
    for batch in track(batches, description=name, disable=not batches or not show):
        missing = [sample for sample in batch if sample.id not in done]
        if not missing:
            continue
        values = {sample.id: value for sample, value in zip(missing, work(missing), strict=True)}
        lost = {
            id
            for id, value in values.items()
            if isinstance(value, dict) and str(value.get("reason")).startswith(FAILURES)
        }
        done.update({id: value for id, value in values.items() if id not in lost})
        done.update({id: values[id] for id in lost}, keep=False)


def _pools(plan: Plan) -> dict[str, Pool]:
    """Return the gold answers by task, for a stand-in, which alone reads them."""
    offline = plan.writer is not None and plan.writer.chat.name.startswith(STANDIN)
    samples = plan.source.samples if offline else []
    return {task: Pool((one.answer for one in samples if one.task == task), plan.seed) for task in schema.TASKS}


def _choose(plan: Plan, sampled: Ledger, pools: Mapping[str, Pool], batch: Sequence[Sample]) -> list[dict[str, Any]]:
    """Return a rejected response per sample, {"text", "made_by", ...}, or {"reason", "detail"}."""
    assert plan.writer is not None
    items = [
        hallucinate.Item(
            sample.question, sample.answer, sample.task, sampling.texts(sampled.get(sample.id)),
            partial(pools[sample.task].nearest, sample),
            sampling.sent(sample.image) if plan.writer.show_images else None,
            sample.options, f"{plan.seed} {sample.id}",
        )
        for sample in batch
    ]  # fmt: skip
    return [asdict(choice) for choice in plan.writer.choose(items)]


def _judge(panel: relevance.Panel, disputed: Ledger, batch: Sequence[Sample]) -> list[dict[str, Any] | None]:
    found = [disputed[sample.id] for sample in batch]
    scores = iter(panel.score([
        relevance.Item(sample.prompt, sample.answer, wrong["text"])
        for sample, wrong in zip(batch, found, strict=True) if "text" in wrong
    ]))  # fmt: skip
    return [asdict(next(scores)) if "text" in wrong else None for wrong in found]


def _write_rows(
    plan: Plan, ledgers: Ledgers, revision: str | None, folder: Path, left_out: Sequence[rows.Reject]
) -> Made:
    """Pair up the results of the steps, weigh them, and write rows and rejects."""
    rejects = Rejects()
    faulty = [rows.Reject(fault.row, "", FAULTY_ROW, str(fault)) for fault in plan.source.faults]
    samples = plan.source.samples
    if plan.masker is not None:
        masked = [(one, plan.masker(one)) for one in samples]
        faulty += [rows.Reject(one.id, "", ONLY_TEXT, "", one.task) for one, made in masked if made is None]
        samples = [made for _, made in masked if made is not None]
    made = chain(
        ((None, reject) for reject in (*left_out, *faulty)),
        rows.pair_up(samples, ledgers, plan.noise, plan.min_relevance),
    )
    pairs = rows.by_image(_accepted(made, folder / "rejects.jsonl", rejects))
    if not pairs:
        raise NothingMade(_all_rejected_message(plan.source, rejects, folder / "rejects.jsonl"))
    kinds = [pair.dispreference for pair in pairs]
    found, normalization = plan.weigh([pair.relevance for pair in pairs], groups=kinds)
    makers = rows.Makers(
        plan.sampler.recorded if plan.sampler else None, revision, portable(plan.localizer.name),
        plan.localizer.mask_rule, plan.noise, plan.seed,
    )  # fmt: skip
    shards.save(rows.dataset_rows(pairs, map(float, found), ledgers, makers), folder, shard_size=plan.shard_size)
    candidates = sampling.counted(ledgers["sample"].values()) if plan.sampler else None
    return Made(
        makers, candidates, Counter(kinds), rejects, _selected(ledgers["dispute"].values()),
        _standins(plan, pairs, ledgers["dispute"]), normalization, _coverage(plan, pairs, ledgers["locate"]),
        _burnt_text(plan, pairs),
    )  # fmt: skip


def _accepted(
    made: Iterable[tuple[rows.Pair | None, rows.Reject | None]], file: Path, rejects: Rejects
) -> Iterator[rows.Pair]:
    """Yield the pairs, write the rejects and count them."""
    with file.open("w", encoding="utf-8") as lines:
        for pair, reject in made:
            if pair is not None:
                yield pair
            if reject is not None:
                rejects.add(reject)
                lines.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


def _all_rejected_message(source: Source, rejects: Rejects, file: Path) -> str:
    """Return the message of a run without a pair, by step; examples of restricted data are left out."""
    steps = [
        f"{DOING[step]} lost {found.total()} ({', '.join(f'{reason}: {n}' for reason, n in found.most_common())})"
        for step, found in rejects.by_step.items()
    ]
    shown = [] if source.credentialed else rejects.examples()
    said = "; ".join(f"{one.id}: {one.detail[:160] or one.reason}" for one in shown)
    examples = f" Examples: {said}." if said else ""
    return (
        f"Every pair of {source.name} was rejected: {'; '.join(steps)}.{examples} All are in {file}; correct what "
        "they list."
    )


def _selected(disputed: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return how often the chat model answered which candidate is wrong, found none, or needed not be asked."""
    found = Counter[str]()
    for value in disputed:
        none, version = bool(value.get("none_chosen")), value.get("prompt_version")
        found["none"] += none
        found["answered"] += none or version == hallucinate.SELECT
        found["not_asked"] += version == hallucinate.OPPOSED
    return {name: found[name] for name in ("answered", "none", "not_asked")}


def _standins(plan: Plan, pairs: Sequence[rows.Pair], disputed: Ledger) -> list[str]:
    kinds = {pair.dispreference for pair in pairs}
    worded = (rows.TEXT_PAIR, schema.REVERSED[0])
    makers = {disputed[pair.sample.id]["made_by"] for pair in pairs if pair.dispreference in worded}
    names: list[str] = []
    if plan.sampler and hallucinate.TARGET_MODEL in makers:
        names.append(plan.sampler.standin or "")
    if plan.writer and makers - {hallucinate.FLIPPED}:
        names.append(plan.writer.chat.name)
    if plan.panel and rows.TEXT_PAIR in kinds:
        names += plan.panel.judges
    if kinds - {rows.TEXT_PAIR}:
        names.append(plan.localizer.name)
    return [name for name in names if name.startswith(STANDIN)]


def _burnt_text(plan: Plan, pairs: Sequence[rows.Pair]) -> dict[str, Any] | None:
    if plan.masker is None:
        return None
    used = {pair.sample.id for pair in pairs}
    return plan.masker.record(sample for sample in plan.source.samples if sample.id in used)


def _coverage(plan: Plan, pairs: Sequence[rows.Pair], located: Ledger) -> dict[str, float] | None:
    visual = [pair.sample.id for pair in pairs if pair.dispreference != rows.TEXT_PAIR]
    if not visual or plan.noise is None:
        return None
    shares = [1.0 if plan.noise.whole else located[id]["coverage"] for id in visual]
    return {"mean": sum(shares) / len(shares), "max": max(shares), "bound": plan.localizer.max_coverage}
