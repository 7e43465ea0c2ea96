"""One curation: consent asked, a resumed run compared with its start, phases run as tasks, manifest written."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmedpo.curation import judge_check, prompts
from mmedpo.curation.ask import ask, check
from mmedpo.curation.blocks import STEPS, Curation, write_blocks
from mmedpo.curation.plan import open_chat, open_panel, open_source, with_noise_pixels
from mmedpo.curation.rows import Precomputed
from mmedpo.curation.settings import Settings
from mmedpo.curation.weigh import FACTS, weigh
from mmedpo.curation.write import SPLIT, write
from mmedpo.data import changes, consent, shards
from mmedpo.data.sources import Source
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.models.adapters import adapter_contents
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs.executors import Phase, Spread, run_phases
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.json_files import read_object, write_json
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable, versions
from mmedpo.runs.recorded import record_contents
from mmedpo.runs.run_folder import ROWS, WEIGHED

log = logging.getLogger(__name__)

REDO = "Or curate only these again, with --redo-changed."

Contents = Mapping[str, str | None]  # digests of models by role


def curate_folder(
    settings: Settings,
    folder: Path,
    command: str = "",
    limits: Limits | None = None,
    cache: Path | None = None,
    precomputed: Precomputed | None = None,
    third_parties: bool = False,
    models: Contents | None = None,
    redo_changed: bool = False,
    judges_below_bar: str = "stop",
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Curate `settings.source` into `folder`: Parquet, `manifest.json`, `rejects.jsonl`.

    Args:
        folder: a working folder; what the results in it hold is not done again.
        command: recorded unchanged.
        cache: file of answered calls, shared with other runs; by default this run's own.
        precomputed: if it has answers, `settings` names no chat model.
        third_parties: chat models elsewhere may receive restricted data.
        models: `of_models(settings)`, if already computed.
        redo_changed: repeat samples that changed since the run began; otherwise they raise.
        judges_below_bar: "stop" raises where the judges fail their check (`judge_check`), "go" notes it.
        spread: where the tasks run, and how many; by default all in this process.

    Returns:
        The manifest (docs/files.md).

    Raises:
        InputError: the source, a model or an option cannot work; the judges are below the bar; every pair was rejected.
        Stopped: a budget of `limits` is spent.
    """
    curation = prepare(
        settings, folder, command, limits, cache, precomputed, third_parties, models, redo_changed, judges_below_bar
    )
    spread = spread or Spread()
    curation = replace(curation, one_machine=spread.executor == "local")
    curation.keep_calls()  # of an earlier start with another number of tasks
    if not curation.one_machine:
        curation.copy_calls()
    run_phases(phases(curation, spread.tasks), folder, spread)
    return finish(curation)


def phases(curation: Curation, tasks: int) -> list[Phase]:
    """Return the phases of a curation; with several tasks the models are checked before."""
    contents = curation.facts["contents"]
    digest, gpu = contents["source"], contents.keys() > {"source"}  # models with files run in the tasks
    checked = [Phase("check", partial(check, curation), gpu=gpu, digest=digest)] if tasks > 1 else []
    return [
        *checked, Phase("ask", partial(ask, curation), tasks, gpu=gpu, digest=digest),
        Phase("weigh", partial(weigh, curation)), Phase("write", partial(write, curation), tasks),
    ]  # fmt: skip


def prepare(
    settings: Settings, folder: Path, command: str = "", limits: Limits | None = None, cache: Path | None = None,
    precomputed: Precomputed | None = None, third_parties: bool = False, models: Contents | None = None,
    redo_changed: bool = False, judges_below_bar: str = "stop",
) -> Curation:  # fmt: skip
    """Read and compare the source, ask for consent, and write the samples in blocks; arguments as `curate_folder`."""
    precomputed = precomputed or Precomputed()
    if not precomputed.answers:
        settings.refuse_unnamed()
    settings = with_noise_pixels(settings)
    source = open_source(settings, precomputed.questions, cache)
    for notice in (*source.notices, source.split_notice):
        log.warning(notice)
    sent = consent.to_endpoints(
        source.name if source.credentialed else None, settings.asked, third_parties,
        len(source.samples), settings.shows_images, source.marked_by,
    )  # fmt: skip
    with closing(Ledger(folder / ROWS)) as recorded:
        found = _compare_questions(source, recorded, redo_changed)
        models = of_models(settings) if models is None else models
        record_contents(folder, settings.record(), {**models, "prompts of mmedpo": prompts.contents()})
        write_blocks(folder, source.samples, precomputed, _gone(found, source, settings))
        changes.accept(found, changes.of_samples(source.samples), recorded)
    facts = {
        "format": "mmedpo.manifest/1", "command": command, "versions": versions(), "seed": settings.seed,
        "source": source.record(settings.split), "settings": {**settings.recipe(), "source_name": source.name},
        "contents": {role: digest for role, digest in {"source": found.digest, **models}.items() if digest}, **sent,
    }  # fmt: skip
    return Curation(
        folder.absolute(), settings, replace(source, samples=[]), Precomputed(rejects=precomputed.rejects),
        limits or Limits(),
        cache or folder / "calls.ledger", judges_below_bar, len(source.samples), facts,
    )  # fmt: skip


def finish(curation: Curation) -> dict[str, Any]:
    """Write the manifest of a curation whose phases are complete, and remove what only they need."""
    curation.keep_calls()
    facts = read_object(curation.folder / WEIGHED / FACTS)
    shards.finish(curation.folder, SPLIT, facts["shards"])
    listed = curation.models()["listed_by_endpoint"]
    first = {name: curation.facts[name] for name in ("format", "command", "versions", "seed", "source")}
    manifest = {**first, **facts["manifest"], **curation.facts, **({"listed_by_endpoint": listed} if listed else {})}
    write_json(curation.folder / "manifest.json", manifest)
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


def _compare_questions(source: Source, recorded: Ledger, redo: bool) -> changes.Changes:
    """Compare the samples with those of the run's start; record them in a new run.

    Raises:
        InputError: samples changed and `redo` is false; no sample of the run's start is left.
    """
    found = changes.compare(changes.of_samples(source.samples), recorded)
    gone = [*found.changed, *found.removed]
    if not found.kept and not gone:  # a new run
        return found
    if len(found.removed) == len(gone) and not found.kept:
        raise InputError(
            f"{source.name} has none of the {number_of(len(gone), 'questions')} of this run's start, which are "
            "identified by id, or else by table and line. Restore the table, or start a new --output."
        )
    if not redo:
        found.refuse(source.name, REDO)
    counts = {"added": found.added, "removed": found.removed, "changed and curated again": found.changed}
    if said := ", ".join(f"{len(ids)} {what}" for what, ids in counts.items() if ids):
        log.warning(f"{source.name}: questions since the start of this run: {said}.")
    return found


def _gone(found: changes.Changes, source: Source, settings: Settings) -> dict[str, set[str]]:
    """Return the ids, by step, whose earlier results no longer count."""
    gone = {step: {*found.changed, *found.removed} for step in STEPS}
    others = gone["dispute"] or (found.added and found.kept)
    if others and (settings.chat or "").startswith(STANDIN):  # a stand-in's choice depends on all gold answers
        gone |= {step: {sample.id for sample in source.samples} for step in ("dispute", "judge")}
    return gone


def check_finished(settings: Settings, output: Path, cache: Path | None = None) -> None:
    """Raise InputError if the samples differ from those that the finished dataset in `output` was made of."""
    made_of = read_object(output / "manifest.json").get("contents", {}).get("source")
    source = open_source(settings, cache=cache)
    if made_of not in (None, changes.digest_of(changes.of_samples(source.samples))):
        raise InputError(
            f"{output} is finished, but questions of {source.name} were changed, added or removed since. "
            "Restore the source, or choose another --output."
        )
