"""Run dataset builders: turn a dataset as its authors publish it into preference pairs.

A builder is a module of `dataset_builders/` (no package) with facts and a reader:

- its docstring: what the data is (the first line), its terms, its flaws, an example;
- `SOURCE`: the default of --source (`hub:user/name`), or None;
- `LAYOUTS`: file patterns that identify a local source, one tuple per layout; empty accepts any source;
- `LICENSE`: of the rows; None if the user has to give it;
- `CREDENTIALED`: its terms forbid redistribution;
- `UPSTREAM_SPLIT`: what the authors' split keeps together ("by question", "by image", "by patient"), None if there is
  no split, or a function of the source that returns one of these;
- `OPTIONS`: suitable options of `mmedpo curate`; recipes and the command line override them;
- `HAS_PAIRS`: its rows bring rejected responses;
- `Options`: a dataclass of its own options;
- `read(source, options)`: yields `readers.Item`s, or returns None if the source is a source folder already.
"""

from __future__ import annotations

import ast
import errno
import importlib.util
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

from mmedpo.curation.rows import Precomputed
from mmedpo.curation.run import Contents, check_finished, curate_folder, of_models
from mmedpo.curation.settings import Run, Settings
from mmedpo.data import credentialed
from mmedpo.data.loading import dataset_commit
from mmedpo.errors import AlreadyFinished, InputError
from mmedpo.hub import cards
from mmedpo.hub.readers import Hub
from mmedpo.hub.upstream import read_precomputed, stamp, write_source
from mmedpo.report import audit
from mmedpo.runs import packaged, writable
from mmedpo.runs.options import option
from mmedpo.runs.processes import ALONE, Processes
from mmedpo.runs.run_folder import SOURCE_FOLDER, output_folder, scratch_folder, short_folder, write_json

HUB = "hub:"
# Options of rejected responses and judges; unused if both come with the data.
MAKING = ("model", "samples", "temperature", "chat", "style", "show_images", "judges", "panel", "rounds", "tolerance")


@dataclass
class Build(Run):
    """Options of a builder's run: those of a curation, and where source and dataset go."""

    keep_source: Path | None = field(
        default=None, metadata={"help": "Folder to keep the source in (its table and images), for mmedpo evaluate."}
    )
    publish: str | None = field(default=None, metadata={"help": "Hub repository to publish to, USER/NAME."})
    fill: list[str] = field(
        default_factory=list, metadata={"help": "KEY=TEXT for open fields of the card to publish: license, privacy."}
    )
    yes: bool = option(False, "Publish without asking, also with fields of the card left open.")


@dataclass
class Options:
    """Options of a builder without its own."""


def names() -> dict[str, str]:
    """Return the builders with the first line of their docstrings; raise as `packaged.folder`."""
    files = sorted(packaged.folder("dataset_builders").glob("[!_]*.py"))
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in files}
    return {name: (doc or "").split("\n")[0] for name, doc in docs.items()}


def load(name: str) -> ModuleType:
    """Return the builder's module.

    Raises:
        InputError: there is no such builder; the message lists all.
    """
    known = names()
    if name not in known:
        raise InputError(f"There is no builder {name!r}; there are {', '.join(known)}.")
    file = packaged.folder("dataset_builders") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"dataset_builders.{name}", file)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look up their types here
    spec.loader.exec_module(module)
    return module


def name_of(builder: ModuleType) -> str:
    return builder.__name__.rpartition(".")[2]


def options_of(builder: ModuleType) -> Any:
    """Return the dataclass of a builder's own options."""
    return getattr(builder, "Options", Options)


def defaults(builder: ModuleType) -> dict[str, Any]:
    """Return a builder's options; recipes and the command line override them."""
    given = {"source": builder.SOURCE, "license": builder.LICENSE, "credentialed": builder.CREDENTIALED or None}
    known = {option.name for option in fields(Settings)}
    return {**{name: value for name, value in given.items() if value is not None and name in known}, **builder.OPTIONS}


def make_dataset(
    settings: Settings, run: Run, folder: Path, command: str, processes: Processes,
    models: Contents | None = None, precomputed: Precomputed | None = None,
    about_source: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Curate into a working folder, audit the rows and write the card.

    Args:
        models, precomputed: as for `curate_folder`.
        about_source: facts to add to the manifest's "source".

    Returns:
        The manifest; None in all processes but the first.
    """
    if run.cache:  # stand-ins open none
        writable.check(run.cache, resume=True, option="--cache")
    cache = run.cache or run.output.resolve().parent / "calls.sqlite"
    cards.check_template("dataset")
    manifest = curate_folder(
        settings,
        folder,
        command,
        run.limits,
        cache,
        processes,
        precomputed,
        run.third_parties,
        models,
        run.redo_changed,
    )
    if manifest is None:
        return None
    manifest["source"].update(about_source or {})
    if precomputed and precomputed.answers:
        makers = sorted({answer["made_by"] for answer in precomputed.answers.values() if "made_by" in answer})
        manifest |= {"chat_model": ", ".join(makers), "judges": makers, "style": None, "prompt_versions": {}}
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "audit.json", audit.audit(str(folder), name=run.output.name))
    cards.write_dataset_card(folder)
    return manifest


def build(
    builder: ModuleType, settings: Settings, run: Build, options: Any, command: str,
    prepare: Callable[[], None] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Read, split, curate, audit and write a dataset.

    Args:
        prepare: called once the source is open, before it is read.

    Returns:
        The manifest; None in all processes but the first, and if a finished dataset is only to be published.

    Raises:
        InputError: the source does not have the builder's layout, rows are faulty (all are listed), or as
            `curate_folder`.
    """
    name, processes = name_of(builder), Processes.here()
    cards.check_template("dataset")
    upstream = _open(builder, settings, run)
    if prepare is not None:
        prepare()
    settings.credentialed |= _is_restricted(upstream, options)
    record = {**settings.record(), **asdict(options), "builder": name, "keep_source": run.keep_source}
    record = {key: str(value) if isinstance(value, Path) else value for key, value in record.items()}
    manifest, models = None, of_models(settings) if run.resume else None
    try:
        with output_folder(run.output, record, run.resume, processes, models) as folder:
            precomputed, about = read_upstream(builder, upstream, settings, options, folder, processes)
            source = folder / SOURCE_FOLDER
            if run.keep_source and not source.exists():
                raise InputError(f"{upstream} is a source folder already; leave out --keep-source.")
            manifest = make_dataset(settings, run, folder, command, processes, models, precomputed, about)
            if manifest and run.keep_source is None:
                shutil.rmtree(source, ignore_errors=True)
    except AlreadyFinished:
        _keep(run)
        if run.publish is None:
            if processes.first:
                _check_finished(builder, upstream, settings, options, run)
            raise
    if manifest:
        _keep(run)
    return manifest


def _check_finished(builder: ModuleType, upstream: Path | Hub, settings: Settings, options: Any, run: Build) -> None:
    """Read the source again; raise InputError if the finished dataset was made of another one."""
    with scratch_folder(run.output.resolve()) as folder:
        read_upstream(builder, upstream, settings, options, folder, ALONE)
        check_finished(settings, run.output)


def read_upstream(
    builder: ModuleType, upstream: Path | Hub, settings: Settings, options: Any, folder: Path, processes: Processes
) -> tuple[Precomputed, dict[str, Any]]:
    """Let a builder read an opened source into a source folder, which `settings` name from then on.

    Args:
        upstream: as returned by `open_upstream`.
        folder: a working folder.

    Returns:
        Precomputed results that came with the source, and facts for the manifest.

    Raises:
        InputError: the source does not have the builder's layout, or rows are faulty.
    """
    source, about = folder / SOURCE_FOLDER, _about(builder, upstream) | _portable(options)
    named = _named_folders(upstream, settings, options)
    as_of = stamp(upstream, [value for value in asdict(options).values() if isinstance(value, Path)])
    if processes.first:
        with credentialed.hiding_cells(settings.credentialed):
            rows = builder.read(upstream, options)
            write_source(
                rows, name_of(builder), source, settings.skip_faulty, about, settings.source_name,
                named, as_of,
            )  # fmt: skip
    processes.open(folder, "source", patience=math.inf)
    precomputed, about = read_precomputed(source, about)
    if source.exists():
        settings.source, settings.image_folders = source, [str(folder) for folder in named]
        settings.credentialed |= bool(about.get("credentialed"))
        if settings.credentialed:
            (source / credentialed.MARKER).touch()
    return precomputed, about


def _open(builder: ModuleType, settings: Settings, run: Build) -> Path | Hub:
    """Return the named source after all checks that need no reading."""
    if builder.CREDENTIALED and not getattr(settings, "credentialed", True):
        raise InputError(
            f"{name_of(builder)} is credentialed data, which no option changes: leave --credentialed alone."
        )
    if builder.HAS_PAIRS:
        _refuse_makers(builder, settings)
    else:
        settings.refuse_unnamed()
    _check_keeping(run)
    return open_upstream(builder, settings.source)


def open_upstream(builder: ModuleType, source: Path) -> Path | Hub:
    """Return a builder's source as --source names it.

    Raises:
        InputError: it does not exist, or has another layout.
    """
    text = str(source)
    if text.startswith(HUB) and builder.SOURCE:
        repository, _, revision = text.removeprefix(HUB).partition("@")
        if not repository:
            raise InputError(f"The source {text!r} names no repository; write {builder.SOURCE}, for one.")
        return Hub(repository, dataset_commit(repository, revision or None))
    if not source.exists():
        hub = f" For the Hub's, write {builder.SOURCE} (or another hub:user/name)." if builder.SOURCE else ""
        raise InputError(f"The source {text} does not exist; `mmedpo build {name_of(builder)} --help` says more.{hub}")
    _check_layout(builder, source)
    return source


def _refuse_makers(builder: ModuleType, settings: Settings) -> None:
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(Settings)}
    idle = [f"--{option}" for option in MAKING if getattr(settings, option) != made[option]]
    if idle:
        name = name_of(builder)
        raise InputError(f"{name} brings its wrong answers and their scores along: leave out {', '.join(idle)}.")


def _check_layout(builder: ModuleType, path: Path) -> None:
    """Raise InputError if `path` has none of the builder's layouts; suggest the builder that fits."""
    if not builder.LAYOUTS or _is_laid_out(path, builder):
        return
    name = name_of(builder)
    wanted = " or ".join(" with ".join(layout) for layout in builder.LAYOUTS)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "one file"
    fitting = [other for other in names() if other != name and _is_laid_out(path, load(other))]
    hint = f" It looks like the source of `mmedpo build {fitting[0]}`." if fitting else ""
    raise InputError(f"{path} is not laid out as {name} knows it ({wanted}); it holds {held or 'nothing'}.{hint}")


def _is_laid_out(path: Path, builder: ModuleType) -> bool:
    if path.is_file():
        return any(len(layout) == 1 and fnmatch(path.name, layout[0]) for layout in builder.LAYOUTS)
    return any(all(any(path.glob(pattern)) for pattern in layout) for layout in builder.LAYOUTS)


def _portable(options: Any) -> dict[str, Any]:
    """Return the options of a builder that mean the same on other machines, for the manifest."""
    chosen = {name: value for name, value in asdict(options).items() if isinstance(value, str | int | float)}
    return {"options": chosen} if chosen else {}


def _about(builder: ModuleType, upstream: Path | Hub) -> dict[str, Any]:
    """Return facts about the source for the manifest."""
    split = builder.UPSTREAM_SPLIT
    facts = {"builder": name_of(builder), "upstream_split": split(upstream) if callable(split) else split}
    if isinstance(upstream, Hub):
        facts |= {"hub": upstream.name, "revision": upstream.revision}
    return {**facts, "credentialed": True} if builder.CREDENTIALED else facts


def _is_restricted(upstream: Path | Hub, options: Any) -> bool:
    """Return whether a marker file beside the source, or the source's name, marks restricted data.

    Checked here because the folder that a builder writes has another name and no marker.
    """
    if isinstance(upstream, Hub):
        return credentialed.telling([upstream.name]) is not None
    paths = [path for path in (upstream, *asdict(options).values()) if isinstance(path, Path)]
    return any(map(credentialed.of_path, paths))


def _named_folders(upstream: Path | Hub, settings: Settings, options: Any) -> list[Path]:
    """Return the folders that the user named; a builder may take files from them."""
    from huggingface_hub.constants import HF_HUB_CACHE

    own = [value for value in asdict(options).values() if isinstance(value, Path)]
    source = Path(HF_HUB_CACHE) if isinstance(upstream, Hub) else upstream
    return [*([source] if source.is_dir() else []), *own, *map(Path, settings.image_folders)]


def _check_keeping(run: Build) -> None:
    """Raise InputError if the source cannot be kept at the end."""
    keep, output = run.keep_source, run.output
    if keep is None:
        return
    if keep.resolve().is_relative_to(output.resolve()) or output.resolve().is_relative_to(keep.resolve()):
        raise InputError(f"--keep-source {keep} and --output {output} overlap; choose folders beside each other.")
    writable.check(keep, resume=output.exists(), option="--keep-source")


def _keep(run: Build) -> None:
    """Move the source out of the finished dataset into --keep-source, whole or not at all, unless already done."""
    source, keep = run.output / SOURCE_FOLDER, run.keep_source
    if keep is None or not source.exists() or not Processes.here().first:
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
