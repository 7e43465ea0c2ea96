"""One curation: consent asked, models opened, a resumed run compared with its start, steps run, manifest written."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmedpo.curation import hallucinate, judge_check, masking, pipeline, prompts, relevance
from mmedpo.curation.masking import Masker
from mmedpo.curation.plan import Plan, open_chat, open_panel, open_plan, open_source, with_noise_pixels
from mmedpo.curation.rows import Precomputed
from mmedpo.curation.settings import Settings
from mmedpo.data import changes, consent
from mmedpo.data.burnt_text import Finder
from mmedpo.data.sources import Source
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models.adapters import adapter_contents
from mmedpo.models.chat.cache import tally
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.served import served
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.processes import ALONE, Processes
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.recorded import record_contents
from mmedpo.runs.run_folder import ROWS
from mmedpo.schema import TASKS

log = logging.getLogger(__name__)

PROMPTS = {
    "select": hallucinate.SELECT, "opposed": hallucinate.OPPOSED, "inject": hallucinate.INJECT,
    "flip": hallucinate.FLIP, "option": hallucinate.PICK, "judge": relevance.JUDGE,
}  # fmt: skip
REDO = "Or curate only these again, with --redo-changed."

Contents = Mapping[str, str | None]  # digests of models by role


def curate_folder(
    settings: Settings,
    folder: Path,
    command: str = "",
    limits: Limits | None = None,
    cache: Path | None = None,
    processes: Processes = ALONE,
    precomputed: Precomputed | None = None,
    third_parties: bool = False,
    models: Contents | None = None,
    redo_changed: bool = False,
    judges_below_bar: str = "stop",
) -> dict[str, Any] | None:
    """Curate `settings.source` into `folder`: Parquet, `manifest.json`, `rejects.jsonl`.

    Args:
        folder: a working folder; finished work in its ledgers is not repeated.
        command: recorded unchanged.
        cache: file of answered calls, shared with other runs; by default this run's own.
        precomputed: if it has answers, `settings` names no chat model.
        third_parties: chat models elsewhere may receive restricted data.
        models: `of_models(settings)`, if already computed.
        redo_changed: repeat samples that changed since the run began; otherwise they raise.
        judges_below_bar: "stop" raises where the judges fail their check (`judge_check`), "go" notes it.

    Returns:
        The manifest (docs/files.md); None in all processes but the first.

    Raises:
        InputError: the source, a model or an option cannot work; the judges are below the bar; every pair was rejected.
        Stopped: a budget of `limits` is spent.
    """
    precomputed = precomputed or Precomputed()
    if not precomputed.answers:
        settings.refuse_unnamed()
    texts = Ledger(folder / "text.ledger")
    masker = Masker(folder / masking.FOLDER / str(processes.rank), Finder(texts)) if settings.mask_text else None
    settings = with_noise_pixels(settings, say=log.warning if processes.first else log.debug)
    source = open_source(settings, precomputed.questions)
    for notice in (*source.notices, source.split_notice) if processes.first else ():
        log.warning(notice)
    sent = consent.to_endpoints(
        source.name if source.credentialed else None, settings.asked, third_parties,
        len(source.samples), settings.shows_images, source.marked_by, processes.first,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(closing(texts))
        steps = {name: stack.enter_context(closing(Ledger(folder / f"{name}.ledger"))) for name in pipeline.STEPS}
        used = stack.enter_context(closing(Ledger(folder / "used.ledger")))
        calls = stack.enter_context(closing(Ledger(cache or folder / "calls.ledger")))
        contents: Contents = {}
        if processes.first:
            contents = compare_contents(settings, source, folder, steps, redo_changed, models)
        processes.open(folder, "contents")
        budget = Budget((limits or Limits()).share(processes.count))
        plan = replace(open_plan(settings, source, budget, calls, used), masker=masker)
        listed = served(plan.chats, log.warning) if processes.first else {}
        checked = None
        if processes.first and plan.panel is not None:  # before anything is paid for
            checked = judge_check.before_run(plan.panel, judges_below_bar)
        processes.open(folder, "judges", math.inf)
        made = pipeline.curate(plan, steps, folder, processes, precomputed)
        if made is None:
            return None
        manifest = {
            "format": "mmedpo.manifest/1", "command": command, "versions": versions(), "seed": settings.seed,
            "source": source.record(settings.split),
            **_facts(plan, made, settings.style, used, steps["judge"], checked),
            "settings": {**settings.recipe(), "source_name": source.name},
            "contents": {role: digest for role, digest in contents.items() if digest}, **sent,
            **({"listed_by_endpoint": listed} if listed else {}),
        }  # fmt: skip
        write_json(folder / "manifest.json", manifest)
        shutil.rmtree(folder / masking.FOLDER, ignore_errors=True)
    return manifest


def check_judges(settings: Settings, limits: Limits | None = None, cache: Path | None = None) -> dict[str, Any]:
    """Let the judges of the settings, stand-ins too, score the pairs of known severity; return `judge_check.check`.

    Args:
        cache: file of answered calls, with which a curation by the same judges costs no second check.

    Raises:
        InputError: no judges are named, or one cannot work.
        Stopped: a budget of `limits` is spent.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        used = stack.enter_context(closing(Ledger(folder / "used.ledger")))
        calls = stack.enter_context(closing(Ledger(cache or folder / "calls.ledger")))
        chat = partial(
            open_chat, budget=Budget(limits or Limits()), cache=calls, used=used, seed=settings.seed,
            batch_size=settings.batch_size, max_tokens=settings.max_reply_tokens,
        )  # fmt: skip
        panel = open_panel(settings, [name for name in settings.judges if name != "none"], chat)
        if panel is None:
            raise InputError("--check-judges: no judge is named. Name those to check with --judges.")
        return judge_check.check(panel)


def _facts(
    plan: Plan, made: pipeline.Made, style: str, used: Ledger, judged: Ledger, checked: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the part of a manifest about who made and scored the rows, and how many."""
    makers, spent = made.makers, tally(used)
    weights = made.weights.record()
    weights["notes"] += [*judge_check.notes(checked), *(relevance.notes(judged.values()) if plan.panel else [])]
    return {
        "target_model": {
            "name": makers.target_model, "revision": makers.revision,
            **(plan.sampler.facts(spent) if plan.sampler else {}),
        },
        **({"candidates": made.candidates, "selected": made.selected} if made.candidates else {}),
        "chat_model": plan.writer and portable(plan.writer.chat.name),
        "judges": list(plan.panel.judges) if plan.panel else [], "panel": plan.panel and plan.panel.record(),
        **({"judge_check": checked} if checked else {}),
        "localizer": makers.localizer, "query": plan.localizer.query, "mask_rule": makers.mask_rule,
        "noise": plan.noise and plan.noise.record(), "style": style, "prompt_versions": PROMPTS,
        "calls": {portable(name): count for name, count in spent.items()},
        "counts": dict(made.counts), "rejects": dict(made.rejects.by_reason.most_common()),
        "rejects_by_task": {
            task: dict(made.rejects.by_task[task].most_common()) for task in TASKS if task in made.rejects.by_task
        },
        "standins": made.standins,
        "weights": weights, "mask_coverage": made.mask_coverage,
        **({"burnt_text": made.burnt_text} if made.burnt_text else {}),
    }  # fmt: skip


def of_models(settings: Settings) -> Contents:
    """Return the SHA-256 digest of each model by its role; None for endpoints and stand-ins, which have no files.

    Raises:
        InputError: a model cannot be found or read.
    """
    found = {"chat": _of_model(settings.chat or ""), "localizer": _of_model(settings.localizer)}
    judges = {f"judge {portable(judge)}": _of_model(judge) for judge in settings.scorers}
    adapter = {"adapter": adapter_contents(settings.adapter)} if settings.adapter else {}
    return {"model": settings.local_model and model_contents(settings.local_model), **adapter, **found, **judges}


def _of_model(spec: str) -> str | None:
    kind, _, name = spec.partition(":")
    if kind == "medklip" and name:
        from mmedpo.curation import medklip  # loads torch

        return medklip.contents(Path(name))
    return model_contents(name) if kind in ("local", "detector") and name else None


def compare_contents(
    settings: Settings, source: Source, folder: Path, steps: Mapping[str, Ledger], redo: bool, models: Contents | None
) -> Contents:
    """Compare samples and models with those recorded when the run in `folder` began; record them in a new run.

    Args:
        steps: ledgers by sample. Values of removed samples are dropped, with `redo` those of changed ones too.
        models: `of_models(settings)`, if already computed.

    Returns:
        The digest of all samples ("source") and of each model.

    Raises:
        InputError: samples changed and `redo` is false; no sample of the run's start is left; a model was replaced.
    """
    digest = _compare_questions(source, folder, steps, redo, settings.chat or "")
    models = of_models(settings) if models is None else models
    record_contents(folder, settings.record(), {**models, "prompts of mmedpo": prompts.contents()})
    return {"source": digest, **models}


def _compare_questions(source: Source, folder: Path, ledgers: Mapping[str, Ledger], redo: bool, chat: str) -> str:
    with closing(Ledger(folder / ROWS)) as recorded:
        found = changes.compare(changes.of_samples(source.samples), recorded)
        gone = [*found.changed, *found.removed]
        if not found.kept and not gone:  # a new run
            return found.digest
        if len(found.removed) == len(gone) and not found.kept:
            raise InputError(
                f"{source.name} has none of the {number_of(len(gone), 'questions')} of this run's start, which are "
                "identified by id, or else by table and line. Restore the table, or start a new --output."
            )
        if not redo:
            found.refuse(source.name, REDO)
        for ledger in ledgers.values():
            ledger.drop(gone)
        if (gone or found.added) and chat.startswith(STANDIN):  # a stand-in's choice depends on all gold answers
            for step in ("dispute", "judge"):
                ledgers[step].drop(sample.id for sample in source.samples)
        changes.accept(found, changes.of_samples(source.samples), recorded)
    counts = {"added": found.added, "removed": found.removed, "changed and curated again": found.changed}
    if said := ", ".join(f"{len(ids)} {what}" for what, ids in counts.items() if ids):
        log.warning(f"{source.name}: questions since the start of this run: {said}.")
    return found.digest


def check_finished(settings: Settings, output: Path) -> None:
    """Raise InputError if the samples differ from those that the finished dataset in `output` was made of."""
    made_of = read_object(output / "manifest.json").get("contents", {}).get("source")
    source = open_source(settings)
    if made_of not in (None, changes.digest_of(changes.of_samples(source.samples))):
        raise InputError(
            f"{output} is finished, but questions of {source.name} were changed, added or removed since. "
            "Restore the source, or choose another --output."
        )
