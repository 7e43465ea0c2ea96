"""Curation, from a source to a preference dataset: each step writes to a ledger, so that a killed run goes on.

Steps and what each adds to a question: `sample` candidates of the target model; `dispute` a dispreferred answer or a
reason why there is none; `locate` lesion boxes; `judge` clinical relevance; then weights over all pairs, and rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from rich.progress import track

from mmedpo import schema
from mmedpo.curation import hallucinate, relevance, rows, weights
from mmedpo.curation.chat import open_chat
from mmedpo.curation.localize import Localizer, open_localizer
from mmedpo.errors import InputError
from mmedpo.models import Sampling, VisionLanguageModel, open_rgb
from mmedpo.sources import Sample, Source, read_source, refuse_faults
from mmedpo.text import unit_interval, words
from mmedpo.workdir import Ledger, portable, versions, write_json

CHUNK = 32  # questions a step finishes before they are recorded
OUTAGE = 8  # questions that fail together: the endpoint is gone, and not one question odd
SHOWN_ALTERNATIVES = 12
FAILURES = (hallucinate.NO_ANSWER, relevance.NO_SCORE)  # never kept: a resumed run asks again


@dataclass(frozen=True)
class Settings:
    """All that decides what a curation makes; fields are explained by `mmedpo curate --help`."""

    source: Path
    split: str | None = None
    limit: int | None = None
    license: str = "unknown"
    model: str | None = None
    chat: str = "standin:rules"
    judges: tuple[str, ...] = ("standin:strict", "standin:lenient", "standin:lexical")
    localizer: str = "boxes"
    samples: int = 4
    temperature: float = 1.0
    style: str = "match"
    noise_step: int = 800
    weights: str = "rescale"
    rounds: int = 5
    seed: int = 0
    skip_faulty: bool = False

    def __post_init__(self) -> None:
        if self.weights not in weights.METHODS:
            raise InputError(f"The weight method {self.weights!r} is unknown; use one of {', '.join(weights.METHODS)}.")
        if self.style not in get_args(hallucinate.Style):
            raise InputError(f"The style {self.style!r} is unknown; use {' or '.join(get_args(hallucinate.Style))}.")
        if not 1 <= self.noise_step <= 1000:
            raise InputError(f"The noise step is {self.noise_step}; it must be in 1 .. 1000.")

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "source": str(self.source), "judges": list(self.judges)}


def curate_folder(settings: Settings, folder: Path, command: str = "") -> dict[str, Any]:
    """Curate `settings.source` into `folder`: Parquet, `manifest.json`, `rejects.jsonl`.

    Args:
        folder: a working folder; what its ledgers hold is not done again.
        command: recorded as it is.

    Returns:
        The manifest (docs/architecture.md).

    Raises:
        InputError: the source, a model, a judge or an option cannot work, or every pair was rejected.
    """
    source = read_source(settings.source, settings.split, settings.limit, settings.seed, settings.license)
    refuse_faults(source, settings.skip_faulty)
    chat = open_chat(settings.chat, seed=settings.seed)
    panel = relevance.Panel([open_chat(judge, seed=settings.seed) for judge in settings.judges], settings.rounds)
    localizer = open_localizer(settings.localizer)

    steps = {name: Ledger(folder / f"{name}.ledger") for name in ("sample", "dispute", "locate", "judge")}
    revision = _sample(settings, source.samples, steps["sample"])
    _dispute(settings, source.samples, steps["sample"], chat, steps["dispute"])
    _locate(source.samples, localizer, steps["locate"])
    _judge(source.samples, steps["dispute"], panel, steps["judge"])

    pairs, rejects = rows.pair_up(source.samples, steps["dispute"], steps["judge"], steps["locate"])
    rejects += [rows.Reject(fault.row, "", "faulty row of the source", str(fault)) for fault in source.faults]
    if not pairs:
        raise InputError(f"Every pair of {source.name} was rejected: {_tally(rejects)}.")
    found, normalization = weights.normalize([pair.relevance for pair in pairs], settings.weights)
    target = settings.model and portable(settings.model)
    made_by = rows.Makers(
        target, revision, portable(localizer.name), localizer.query, settings.noise_step, settings.seed
    )
    coverages: list[float] = []
    schema.save(rows.dataset_rows(pairs, found.tolist(), steps, made_by, coverages), folder)
    lines = [json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects]
    (folder / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
    manifest = {
        "format": "mmedpo.manifest/1", "command": command, "versions": versions(), "seed": settings.seed,
        "source": _describe(settings, source), "target_model": {"name": target, "revision": revision},
        "chat_model": chat.name, "judges": [portable(judge) for judge in settings.judges],
        "localizer": made_by.localizer,
        "noise": {"method": "diffusion", "step": settings.noise_step}, "style": settings.style,
        "prompt_versions": {"select": hallucinate.SELECT, "inject": hallucinate.INJECT, "judge": relevance.JUDGE},
        "counts": dict(Counter(pair.dispreference for pair in pairs)), "rejects": _tally(rejects),
        "weights": normalization.record(),
        "mask_coverage": {"mean": sum(coverages) / len(coverages), "max": max(coverages)} if coverages else None,
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    for ledger in steps.values():
        ledger.close()
    return manifest


def _chunks(
    samples: Sequence[Sample], done: Ledger, what: str, work: Callable[[Sequence[Sample], int], list[Any]]
) -> None:
    """Give `work` the samples of each chunk that are not done, with the chunk's start, and record what it returns.

    What is done stays as it is, since later steps have built on it.
    """
    for start in track(range(0, len(samples), CHUNK), description=what, disable=not samples):
        missing = [sample for sample in samples[start : start + CHUNK] if sample.id not in done]
        if not missing:
            continue
        values = work(missing, start)
        failed = [isinstance(value, dict) and value.get("reason") in FAILURES for value in values]
        if all(failed) and len(failed) >= OUTAGE:
            raise InputError(
                f"{what}: none of {len(failed)} questions was answered ({values[0]}). What was finished is kept: "
                "see to the endpoint and run the same command with --resume."
            )
        for sample, value, lost in zip(missing, values, failed, strict=True):
            done.put(sample.id, value, keep=not lost)


def _sample(settings: Settings, samples: Sequence[Sample], done: Ledger) -> str | None:
    """Candidates of the target model, a list of texts a question; empty lists without one. Returns its revision."""
    if settings.model is None:
        _chunks(samples, done, "No target model", lambda chunk, _: [[] for _ in chunk])
        return None
    sampling = Sampling(samples=settings.samples, temperature=settings.temperature)
    model = VisionLanguageModel(settings.model)

    def work(missing: Sequence[Sample], start: int) -> list[Any]:
        # The whole chunk again, since chance depends on the batch.
        chunk = samples[start : start + CHUNK]
        questions = [(open_rgb(sample.image), sample.question) for sample in chunk]
        answers = model.answer(questions, replace(sampling, seed=settings.seed + start))
        found = dict(zip((sample.id for sample in chunk), answers, strict=True))
        return [found[sample.id] for sample in missing]

    _chunks(samples, done, "Sampling the target model", work)
    return model.revision


def _dispute(settings: Settings, samples: Sequence[Sample], sampled: Ledger, chat: Any, done: Ledger) -> None:
    """A dispreferred answer a question: {"text", "made_by", ...}, or {"reason", "detail"}."""
    offline = chat.name.startswith("standin:")  # only they are told other answers
    pools = {task: sorted({s.answer for s in samples if s.task == task and offline}) for task in schema.TASKS}

    def work(chunk: Sequence[Sample], _: int) -> list[Any]:
        items = [
            hallucinate.Item(
                s.question, s.answer, s.task, sampled[s.id], _alternatives(s, pools[s.task], settings.seed)
            )
            for s in chunk
        ]
        return [asdict(choice) for choice in hallucinate.choose(chat, items, settings.style)]  # type: ignore[arg-type]

    _chunks(samples, done, "Choosing wrong answers", work)


def _alternatives(sample: Sample, pool: Sequence[str], seed: int) -> list[str]:
    """A few other gold answers of the task, those of the nearest length first, ties in a seeded order."""
    length = len(words(sample.answer))

    def distance(answer: str) -> tuple[int, float]:
        return abs(len(words(answer)) - length), unit_interval("alternative", seed, sample.id, answer)

    return sorted((answer for answer in pool if answer != sample.answer), key=distance)[:SHOWN_ALTERNATIVES]


def _locate(samples: Sequence[Sample], localizer: Localizer, done: Ledger) -> None:
    def work(chunk: Sequence[Sample], _: int) -> list[Any]:
        return [[asdict(box) for box in boxes] for boxes in localizer.locate(chunk)]

    _chunks(samples, done, "Locating lesions", work)


def _judge(samples: Sequence[Sample], disputed: Ledger, panel: relevance.Panel, done: Ledger) -> None:
    def work(chunk: Sequence[Sample], _: int) -> list[Any]:
        return [asdict(scored) for scored in panel.score([
            relevance.Item(sample.question, sample.answer, disputed[sample.id]["text"]) for sample in chunk
        ])]  # fmt: skip

    _chunks([sample for sample in samples if "text" in disputed[sample.id]], done, "Judging relevance", work)


def _tally(rejects: Sequence[rows.Reject]) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in rejects).most_common())


def _describe(settings: Settings, source: Source) -> dict[str, Any]:
    return {
        "name": source.name, "license": source.license, "split": settings.split, "split_by": source.split_by,
        "questions": len(source.samples),
    }  # fmt: skip
