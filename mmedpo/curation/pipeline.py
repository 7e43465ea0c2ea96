"""Curate a source into a preference dataset; every step writes a ledger, so that an interrupted run can resume.

Steps: `sample` adds candidates of the target model; `dispute` a rejected response, or the reason for none; `locate` the
lesion's region; `judge` clinical relevance. Weights over all pairs and the rows follow. Several processes share the
samples by blocks; the first one writes the rows.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from mmedpo import schema
from mmedpo.curation import contents, hallucinate, relevance, rows, sampling, weights
from mmedpo.curation.alternatives import Alternatives, Pool
from mmedpo.curation.contents import Contents
from mmedpo.curation.localize import Localizer, bounded
from mmedpo.curation.settings import Settings
from mmedpo.curation.source import open_source
from mmedpo.curation.tools import Tools, open_tools
from mmedpo.data import consent, images
from mmedpo.data.samples import Sample
from mmedpo.data.sources import Source
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatModel
from mmedpo.models.chat.cache import tally
from mmedpo.models.chat.limits import Limits
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import ALONE, Processes
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.run_folder import write_json

log = logging.getLogger(__name__)

BLOCK = 256  # samples that a step records at once and a process takes at a time
FAILURES = (hallucinate.NO_ANSWER, relevance.NO_SCORE)  # not recorded, so that a resumed run asks again
FAULTY_ROW = "faulty row of the source"
PROMPTS = {
    "select": hallucinate.SELECT, "inject": hallucinate.INJECT, "flip": hallucinate.FLIP, "judge": relevance.JUDGE,
}  # fmt: skip
STEPS = ("sample", "dispute", "locate", "judge")

Work = Callable[[Sequence[Sample]], Sequence[Any]]


class NothingMade(InputError):
    """Raised by a finished run that made no row."""


def curate_folder(
    settings: Settings,
    folder: Path,
    command: str = "",
    limits: Limits | None = None,
    cache: Path | None = None,
    processes: Processes = ALONE,
    precomputed: rows.Precomputed | None = None,
    third_parties: bool = False,
    models: Contents | None = None,
    redo_changed: bool = False,
) -> dict[str, Any] | None:
    """Curate `settings.source` into `folder`: Parquet, `manifest.json`, `rejects.jsonl`.

    Args:
        folder: a working folder; finished work in its ledgers is not repeated.
        command: recorded unchanged.
        limits: on the calls of chat endpoints; they do not change the result.
        cache: file of answered calls, shared with other runs; by default this run's own.
        processes: of this launch.
        precomputed: answers, scores and regions computed earlier. If it has answers, `settings` names no chat model.
        third_parties: chat models elsewhere may receive restricted data.
        models: `contents.of_models(settings)`, if already computed.
        redo_changed: repeat samples that changed since the run began; otherwise they raise.

    Returns:
        The manifest (docs/files.md); None in all processes but the first.

    Raises:
        InputError: no chat model or judges are named; the source, a model, a judge or an option cannot work; every pair
            was rejected.
        Stopped: a budget of the limits is spent.
    """
    precomputed = precomputed or rows.Precomputed()
    if not precomputed.answers:
        settings.refuse_unnamed()
    settings = settings.resolved(say=log.warning if processes.first else log.debug)
    source = open_source(settings, precomputed.questions)
    for notice in (*source.notices, source.split_notice) if processes.first else ():
        log.warning(notice)
    sent = consent.to_endpoints(
        source.name if source.credentialed else None, (settings.chat or "none", *settings.judges), third_parties,
        len(source.samples), settings.show_images, source.marked_by, processes.first,
    )  # fmt: skip
    ledgers = {name: Ledger(folder / f"{name}.ledger") for name in (*STEPS, "used")}
    made_of: Contents = {}
    if processes.first:
        steps = {name: ledgers[name] for name in STEPS}
        made_of = contents.settle(settings, source, folder, steps, redo_changed, models)
    processes.open(folder, "contents")
    calls = Ledger(cache or folder / "calls.ledger")
    tools = open_tools(
        settings, (limits or Limits()).share(processes.count), calls, ledgers["used"], source.credentialed
    )
    share = [
        source.samples[start : start + BLOCK]
        for number, start in enumerate(range(0, len(source.samples), BLOCK))
        if number % processes.count == processes.rank
    ]
    if processes.first:
        ledgers["dispute"].update(precomputed.answers)
        ledgers["judge"].update({id: {"score": score} for id, score in precomputed.scores.items()})
        ledgers["locate"].update(precomputed.regions)
    revision = _sample(settings, share, ledgers["sample"], processes)
    if tools.chat is not None:
        _choose_rejected(settings, share, source.samples, tools.chat, ledgers, processes)
    if settings.makes_visual_pairs:
        _locate(settings, share, tools.localizer, ledgers["locate"], processes)
    if tools.panel is not None:
        _judge(share, tools.panel, ledgers, processes)
    processes.finish(folder)
    if processes.first:
        manifest = _assemble(
            settings, source, tools, ledgers, revision, folder, command, precomputed.rejects, sent, made_of
        )
    else:
        manifest = None
    for ledger in (*ledgers.values(), calls):
        ledger.close()
    return manifest


def _each(
    share: Sequence[Sequence[Sample]], done: Ledger, what: str, work: Work, processes: Processes, size: int = BLOCK
) -> None:
    """Record `work` of all samples that are not done, at most `size` at a time; later steps rely on what is done."""
    batches = [block[start : start + size] for block in share for start in range(0, len(block), size)]
    for batch in track(batches, description=what, disable=not batches or not processes.first):
        missing = [sample for sample in batch if sample.id not in done]
        if not missing:
            continue
        values = {sample.id: value for sample, value in zip(missing, work(missing), strict=True)}
        lost = {id for id, value in values.items() if isinstance(value, dict) and value.get("reason") in FAILURES}
        done.update({id: value for id, value in values.items() if id not in lost})
        done.update({id: values[id] for id in lost}, keep=False)


def _sample(settings: Settings, share: Sequence[Sequence[Sample]], done: Ledger, processes: Processes) -> str | None:
    """Sample candidates for all samples but those that are flipped; return the target model's revision."""
    if settings.model is None or not settings.writes_answers:
        return None
    if settings.style != "free":
        share = [[sample for sample in block if hallucinate.flip(sample.answer) is None] for block in share]
    sampler = sampling.Sampler(settings)
    blocks = sampling.by_task(share)
    _each(blocks, done, "Sampling the target model", sampler.sample, processes, settings.batch_size)
    return sampler.revision


def _choose_rejected(
    settings: Settings,
    share: Sequence[Sequence[Sample]],
    samples: Sequence[Sample],
    chat: ChatModel,
    ledgers: Mapping[str, Ledger],
    processes: Processes,
) -> None:
    """Record a rejected response per sample, {"text", "made_by", ...}, or {"reason", "detail"}."""
    offline = chat.name.startswith(STANDIN)  # only stand-ins read other answers
    pools = {
        task: Pool((s.answer for s in samples if s.task == task and offline), settings.seed) for task in schema.TASKS
    }

    def item(sample: Sample) -> hallucinate.Item:
        return hallucinate.Item(
            sample.question, sample.answer, sample.task, sampling.texts(ledgers["sample"].get(sample.id)),
            Alternatives(pools[sample.task], sample), _shown(sample) if settings.show_images else None,
        )  # fmt: skip

    def work(batch: Sequence[Sample]) -> list[dict[str, Any]]:
        choices = hallucinate.choose(chat, [item(sample) for sample in batch], settings.style)  # type: ignore[arg-type]
        return [asdict(choice) for choice in choices]

    _each(share, ledgers["dispute"], "Choosing wrong answers", work, processes)


def _shown(sample: Sample) -> bytes:
    # Re-encoded, since the file's own header may name the patient.
    encoded: bytes = images.png(np.asarray(images.open_rgb(sample.image)), sample.image.stem)["bytes"]
    return encoded


def _locate(
    settings: Settings, share: Sequence[Sequence[Sample]], localizer: Localizer, done: Ledger, processes: Processes
) -> None:
    def work(batch: Sequence[Sample]) -> list[dict[str, Any]]:
        return [
            bounded(region, sample, settings.max_coverage).record()
            for region, sample in zip(localizer.locate(batch), batch, strict=True)
        ]

    _each(share, done, "Locating lesions", work, processes)


def _judge(
    share: Sequence[Sequence[Sample]], panel: relevance.Panel, ledgers: Mapping[str, Ledger], processes: Processes
) -> None:
    disputed = ledgers["dispute"]

    def work(batch: Sequence[Sample]) -> list[dict[str, Any] | None]:
        found = [disputed[sample.id] for sample in batch]
        scored = panel.score([
            relevance.Item(sample.question, sample.answer, wrong["text"])
            for sample, wrong in zip(batch, found, strict=True) if "text" in wrong
        ])  # fmt: skip
        scores = iter(scored)
        return [asdict(next(scores)) if "text" in wrong else None for wrong in found]

    _each(share, ledgers["judge"], "Judging relevance", work, processes)


def _assemble(
    settings: Settings,
    source: Source,
    tools: Tools,
    ledgers: Mapping[str, Ledger],
    revision: str | None,
    folder: Path,
    command: str,
    left_out: Sequence[rows.Reject],
    sent: Mapping[str, Any],
    made_of: Contents,
) -> dict[str, Any]:
    """Write weights, rows, rejects and the manifest."""
    noise = settings.corruption if settings.makes_visual_pairs else None
    rejects: Counter[str] = Counter()
    details: Counter[str] = Counter()
    faulty = [rows.Reject(fault.row, "", FAULTY_ROW, str(fault)) for fault in source.faults]
    made = chain(((None, reject) for reject in (*left_out, *faulty)), rows.pair_up(source.samples, ledgers, noise))
    pairs = list(_accepted(made, folder / "rejects.jsonl", rejects, details))
    if not pairs:
        raise NothingMade(_all_rejected_message(source, rejects, details, folder / "rejects.jsonl"))
    scores, kinds = [pair.relevance for pair in pairs], [pair.dispreference for pair in pairs]
    found, normalization = weights.normalize(scores, settings.weights, kinds, settings.weights_over)
    target = portable(settings.model) if settings.model and tools.chat else None  # else nothing was sampled
    localizer = portable(tools.localizer.name)
    heated = settings.localizer.startswith(("heatmap", "medklip"))
    asked = settings.localizer.startswith(("detector", "medklip"))
    counts = Counter(kinds)
    makers = rows.Makers(
        target, revision, localizer, settings.mask_rule if heated else None, settings.corruption, settings.seed
    )
    schema.save(rows.dataset_rows(pairs, map(float, found), ledgers, makers), folder, shard_size=settings.shard_size)
    manifest = {
        "format": "mmedpo.manifest/1", "command": command, "versions": versions(), "seed": settings.seed,
        "source": source.record(settings.split), "target_model": {"name": target, "revision": revision},
        **({"candidates": sampling.counted(ledgers["sample"].values())} if tools.chat and target else {}),
        "chat_model": tools.chat and portable(tools.chat.name), "judges": tools.judges,
        "panel": tools.panel and {"mode": settings.panel, "rounds": settings.rounds, "tolerance": settings.tolerance},
        "localizer": localizer, "query": settings.query if asked else None, "mask_rule": makers.mask_rule,
        "noise": noise and noise.record(), "style": settings.style,
        "prompt_versions": PROMPTS, "calls": {portable(name): spent for name, spent in tally(ledgers["used"]).items()},
        "counts": dict(counts), "rejects": dict(rejects.most_common()),
        "standins": tools.standins(counts, _rejected_by(pairs, ledgers["dispute"]), settings.model),
        "weights": normalization.record(), "mask_coverage": _coverage(pairs, ledgers["locate"], settings),
        "settings": {**settings.recipe(), "source_name": source.name},
        "contents": {role: digest for role, digest in made_of.items() if digest}, **sent,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return manifest


def _all_rejected_message(source: Source, reasons: Counter[str], details: Counter[str], file: Path) -> str:
    """Return the message of a run without a pair; details of restricted data are left out."""
    why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
    shown = [] if source.credentialed else [f"{detail[:120]} ({n})" for detail, n in details.most_common(3) if n]
    most = f" The commonest details: {'; '.join(shown)}." if shown else ""
    return f"Every pair of {source.name} was rejected: {why}.{most} All are in {file}; mend what they name."


def _rejected_by(pairs: Sequence[rows.Pair], disputed: Ledger) -> set[str]:
    """Return the makers of the rejected responses in rows."""
    worded = (rows.TEXT_PAIR, schema.REVERSED[0])
    return {disputed[pair.sample.id]["made_by"] for pair in pairs if pair.dispreference in worded}


def _accepted(
    made: Iterable[tuple[rows.Pair | None, rows.Reject | None]], file: Path, counts: Counter[str], details: Counter[str]
) -> Iterator[rows.Pair]:
    """Yield the pairs, write the rejects, and count them by reason and by detail."""
    with file.open("w", encoding="utf-8") as lines:
        for pair, reject in made:
            if pair is not None:
                yield pair
            if reject is not None:
                counts[reject.reason] += 1
                details[reject.detail] += bool(reject.detail)
                lines.write(json.dumps(asdict(reject), ensure_ascii=False) + "\n")


def _coverage(pairs: Sequence[rows.Pair], located: Ledger, settings: Settings) -> dict[str, float] | None:
    visual = [pair for pair in pairs if pair.dispreference != rows.TEXT_PAIR]
    if not visual:
        return None
    shares = [1.0 if settings.corruption.whole else located[pair.sample.id]["coverage"] for pair in visual]
    return {"mean": sum(shares) / len(shares), "max": max(shares), "bound": settings.max_coverage}
