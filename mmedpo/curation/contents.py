"""Digests of the models and samples of a curation.

A resumed run compares them with those recorded at its start, so that it never mixes old and new answers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from mmedpo.curation import prompts
from mmedpo.curation.settings import Settings
from mmedpo.curation.source import open_source
from mmedpo.data import changes
from mmedpo.data.sources import Source
from mmedpo.errors import InputError
from mmedpo.models.fingerprint import model_contents
from mmedpo.runs.formats import STANDIN
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import portable
from mmedpo.runs.run_folder import ROWS, read_object, record_contents

Contents = Mapping[str, str | None]

log = logging.getLogger(__name__)

REDO = "Or do these alone again, and keep the rest, with --redo-changed."


def of_models(settings: Settings) -> Contents:
    """Return the SHA-256 digest of each model by its role; None for endpoints and stand-ins, which have no files.

    Raises:
        InputError: a model cannot be found or read.
    """
    found = {"chat": _of_chat(settings.chat or ""), "localizer": _of_localizer(settings.localizer)}
    judges = {f"judge {portable(judge)}": _of_chat(judge) for judge in settings.scorers}
    return {"model": settings.model and model_contents(settings.model), **found, **judges}


def _of_chat(spec: str) -> str | None:
    scheme, _, name = spec.partition(":")
    return model_contents(name) if scheme == "local" and name else None


def _of_localizer(spec: str) -> str | None:
    kind, _, name = spec.partition(":")
    if kind == "medklip" and name:
        from mmedpo.curation import medklip  # loads torch

        return medklip.contents(Path(name))
    return model_contents(name) if kind == "detector" and name else None


def settle(
    settings: Settings, source: Source, folder: Path, ledgers: Mapping[str, Ledger], redo: bool, models: Contents | None
) -> Contents:
    """Compare samples and models with those recorded when the run in `folder` began; record them in a new run.

    Args:
        ledgers: of the steps, with one value per sample. Values of removed samples are dropped.
        redo: drop the values of changed samples too.
        models: `of_models(settings)`, if already computed.

    Returns:
        The digest of all samples ("source") and of each model.

    Raises:
        InputError: samples changed and `redo` is false; no sample of the run's start is left; a model was replaced or
            cannot be read.
    """
    digest = _settle_questions(source, folder, ledgers, redo, settings.chat or "")
    models = of_models(settings) if models is None else models
    record_contents(folder, settings.record(), {**models, "prompts of mmedpo": prompts.contents()})
    return {"source": digest, **models}


def _settle_questions(source: Source, folder: Path, ledgers: Mapping[str, Ledger], redo: bool, chat: str) -> str:
    with closing(Ledger(folder / ROWS)) as recorded:
        found = changes.compare(changes.of_samples(source.samples), recorded)
        gone = [*found.changed, *found.removed]
        if not found.kept and not gone:  # a new run
            return found.digest
        if len(found.removed) == len(gone) and not found.kept:
            raise InputError(
                f"{source.name} has none of the {len(gone)} questions that this run began with, which are known by "
                "their id, or else by table and line. Restore the table, or start a new --output."
            )
        if not redo:
            found.refuse(source.name, REDO)
        for ledger in ledgers.values():
            ledger.drop(gone)
        if (gone or found.added) and chat.startswith(STANDIN):  # a stand-in's choice depends on all gold answers
            for step in ("dispute", "judge"):
                ledgers[step].drop(sample.id for sample in source.samples)
        changes.accept(found, changes.of_samples(source.samples), recorded)
    counts = {"added": found.added, "removed": found.removed, "changed, and done again": found.changed}
    if said := ", ".join(f"{len(ids)} {what}" for what, ids in counts.items() if ids):
        log.warning(f"{source.name}: questions since this run began: {said}.")
    return found.digest


def check_finished(settings: Settings, output: Path) -> None:
    """Raise InputError if the samples differ from those that the finished dataset in `output` was made of."""
    made_of = read_object(output / "manifest.json").get("contents", {}).get("source")
    source = open_source(settings)
    if made_of not in (None, changes.digest_of(changes.of_samples(source.samples))):
        raise InputError(
            f"{output} is finished, but questions of {source.name} changed since, or some were added or removed. "
            "Restore the source, or choose another --output."
        )
