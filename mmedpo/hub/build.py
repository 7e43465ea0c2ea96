"""Build a preference dataset by a builder: read, split, curate, audit, write."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from mmedpo.curation.estimate import Estimate, estimate
from mmedpo.curation.rows import Precomputed
from mmedpo.curation.run import Contents, check_finished, curate_folder, of_models
from mmedpo.curation.settings import Run, Settings
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.hub import builders, cards
from mmedpo.hub.readers import Hub
from mmedpo.report import audit
from mmedpo.runs import writable
from mmedpo.runs.executors import submitted
from mmedpo.runs.json_files import write_json
from mmedpo.runs.options import option
from mmedpo.runs.run_folder import LOCK, SOURCE_FOLDER, output_folder, scratch_folder, short_folder, working_folder

# Options of rejected responses and judges; unused if both come with the data.
MAKING = (
    "model", "samples", "temperature", "pairs", "min_gap", "length_ratio", "chosen", "max_changed", "chat", "style",
    "show_images", "judges", "panel", "rounds", "tolerance",
)  # fmt: skip


@dataclass
class Build(Run):
    """Options of a builder's run: those of a curation, and where source and dataset go."""

    keep_source: Path | None = field(
        default=None, metadata={"help": "Folder to keep the source in (its table and images), for mmedpo evaluate."}
    )
    source_only: bool = option(False, "Write only the source, to --output, for mmedpo evaluate; nothing is curated.")
    publish: str | None = field(default=None, metadata={"help": "Hub repository to publish to, USER/NAME."})
    fill: list[str] = field(
        default_factory=list, metadata={"help": "KEY=TEXT for open fields of the card to publish: license, privacy."}
    )
    yes: bool = option(False, "Publish without asking, also with fields of the card left open.")


def make_dataset(
    settings: Settings, run: Run, folder: Path, command: str, models: Contents | None = None,
    precomputed: Precomputed | None = None,
    about_source: Mapping[str, Any] | None = None, complete: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Curate into a working folder, audit the rows and write the card.

    Args:
        models, precomputed: as for `curate_folder`.
        about_source: facts to add to the manifest's "source".
        complete: returns the final manifest; it may change the rows, which are audited after it.

    Returns:
        The manifest.
    """
    if run.cache:  # stand-ins open none
        writable.check(run.cache, resume=True, option="--cache")
    cards.check_template("dataset")
    manifest = curate_folder(
        settings, folder, command, run.limits, run.calls, precomputed, run.third_parties, models, run.redo_changed,
        run.judges_below_bar, run,
    )  # fmt: skip
    manifest["source"].update(about_source or {})
    if precomputed and precomputed.answers:
        makers = sorted({answer["made_by"] for answer in precomputed.answers.values() if "made_by" in answer})
        manifest |= {"chat_model": ", ".join(makers), "judges": makers, "style": None, "prompt_versions": {}}
    manifest = complete(manifest) if complete else manifest
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "audit.json", audit.audit(str(folder), name=run.output.name))
    cards.write_dataset_card(folder)
    return manifest


def recorded_options(settings: Settings, options: Any, **more: Any) -> dict[str, Any]:
    """Return the options that a resumed run must share: those of the curation, of its builder, and `more`."""
    record = {**settings.record(), **asdict(options), **more}
    return {key: str(value) if isinstance(value, Path) else value for key, value in record.items()}


def build(
    builder: ModuleType, settings: Settings, run: Build, options: Any, command: str,
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Read, split, curate, audit and write a dataset.

    Args:
        prepare: called once the source is open, before it is read.

    Returns:
        The manifest; None if a finished dataset is only to be published.

    Raises:
        InputError: the source does not have the builder's layout, rows are faulty (all are listed), or as
            `curate_folder`.
    """
    run.resume |= submitted(working_folder(run.output), run)
    cards.check_template("dataset")
    upstream = _open(builder, settings, run)
    if prepare is not None:
        prepare()
    settings.credentialed |= builders.is_restricted(upstream, options)
    record = recorded_options(settings, options, builder=builders.name_of(builder), keep_source=run.keep_source)
    manifest, models = None, of_models(settings) if run.resume else None
    try:
        with output_folder(run.output, record, run.resume, contents=models) as folder:
            precomputed, about = builders.read_upstream(builder, upstream, settings, options, folder)
            source = folder / SOURCE_FOLDER
            if run.keep_source and not source.exists():
                raise InputError(f"{upstream} is a source folder already. Leave out --keep-source.")
            manifest = make_dataset(settings, run, folder, command, models, precomputed, about)
            if run.keep_source is None:
                shutil.rmtree(source, ignore_errors=True)
    except AlreadyFinished:
        _keep(run)
        if run.publish is None:
            _check_finished(builder, upstream, settings, options, run)
            raise
    if manifest:
        _keep(run)
    return manifest


def estimate_build(builder: ModuleType, settings: Settings, run: Build, options: Any) -> Estimate:
    """Read a source and return what its curation would cost. Raises as `build`."""
    upstream = _open(builder, settings, run)
    settings.credentialed |= builders.is_restricted(upstream, options)
    with scratch_folder(run.output.resolve()) as folder:
        precomputed, _ = builders.read_upstream(builder, upstream, settings, options, folder)
        return estimate(settings, run, folder, precomputed)


def write_source(builder: ModuleType, settings: Settings, run: Build, options: Any) -> Counter[str]:
    """Write the source that a builder reads, without curation.

    Returns:
        Number of rows "read", and of those left out by reason.

    Raises:
        InputError: options of a curation are given, or as `build`.
    """
    idle = [name for name in ("keep_source", "publish", "resume") if getattr(run, name)]
    if idle:
        raise InputError(f"--source-only curates nothing. Leave out --{', --'.join(idle).replace('_', '-')}.")
    upstream = builders.open_upstream(builder, settings.source)
    settings.credentialed |= builders.is_restricted(upstream, options)
    with short_folder(run.output) as folder:
        precomputed, about = builders.read_upstream(builder, upstream, settings, options, folder)
        source = folder / SOURCE_FOLDER
        if not source.exists():
            raise InputError(f"{upstream} is a source folder already. Leave out --source-only.")
        for entry in folder.iterdir():
            if entry not in (source, folder / LOCK):
                entry.unlink()  # the ledger of the source
        for entry in source.iterdir():
            entry.rename(folder / entry.name)
        source.rmdir()
    return Counter({"read": about["rows"]}) + Counter(reject.reason for reject in precomputed.rejects)


def _check_finished(builder: ModuleType, upstream: Path | Hub, settings: Settings, options: Any, run: Build) -> None:
    """Read the source again; raise InputError if the finished dataset was made of another one."""
    with scratch_folder(run.output.resolve()) as folder:
        builders.read_upstream(builder, upstream, settings, options, folder)
        check_finished(settings, run.output)


def _open(builder: ModuleType, settings: Settings, run: Build) -> Path | Hub:
    """Return the named source after all checks that need no reading."""
    if builder.CREDENTIALED and not getattr(settings, "credentialed", True):
        raise InputError(
            f"{builders.name_of(builder)} is restricted data, which no option changes. Leave out --credentialed."
        )
    if builder.HAS_PAIRS:
        _refuse_makers(builder, settings)
    else:
        settings.refuse_unnamed()
    _check_keeping(run)
    return builders.open_upstream(builder, settings.source)


def _refuse_makers(builder: ModuleType, settings: Settings) -> None:
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Settings)}
    idle = [f"--{option}" for option in MAKING if getattr(settings, option) != made[option]]
    if idle:
        name = builders.name_of(builder)
        raise InputError(f"{name} comes with rejected responses and scores. Leave out {', '.join(idle)}.")


def _check_keeping(run: Build) -> None:
    """Raise InputError if the source cannot be kept at the end."""
    keep, output = run.keep_source, run.output
    if keep is None:
        return
    if keep.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(keep.resolve()):
        raise InputError(f"--keep-source {keep} and --output {output} overlap. Choose folders beside each other.")
    writable.check(keep, resume=output.exists(), option="--keep-source")


def _keep(run: Build) -> None:
    """Move the source out of the finished dataset into --keep-source, whole or not at all, unless already done."""
    source, keep = run.output / SOURCE_FOLDER, run.keep_source
    if keep is None or not source.exists():
        return
    writable.refuse_existing(keep, "--keep-source")
    keep.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(keep)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with short_folder(keep) as working:  # on another file system
            shutil.copytree(source, working, dirs_exist_ok=True)
        shutil.rmtree(source)
