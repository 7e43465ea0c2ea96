"""Dataset builders: readers of datasets as their authors publish them.

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
import importlib.util
import sys
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

from mmedpo.curation.rows import Precomputed
from mmedpo.curation.settings import Settings
from mmedpo.data import credentialed
from mmedpo.data.origin import dataset_commit
from mmedpo.errors import InputError
from mmedpo.hub.readers import Hub
from mmedpo.hub.upstream import read_precomputed, stamp, write_source
from mmedpo.runs import packaged
from mmedpo.runs.run_folder import SOURCE_FOLDER

HUB = "hub:"


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


def read_upstream(
    builder: ModuleType, upstream: Path | Hub, settings: Settings, options: Any, folder: Path
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
    with credentialed.hiding_cells(settings.credentialed):
        rows = builder.read(upstream, options)
        write_source(rows, name_of(builder), source, settings.skip_faulty, about, settings.source_name, named, as_of)
    precomputed, about = read_precomputed(source, about)
    if source.exists():
        settings.source, settings.image_folders = source, [str(folder) for folder in named]
        settings.credentialed |= bool(about.get("credentialed"))
        if settings.credentialed:
            (source / credentialed.MARKER).touch()
    return precomputed, about


def open_upstream(builder: ModuleType, source: Path) -> Path | Hub:
    """Return a builder's source as --source names it.

    Raises:
        InputError: it does not exist, or has another layout.
    """
    text = str(source)
    if text.startswith(HUB) and builder.SOURCE:
        repository, _, revision = text.removeprefix(HUB).partition("@")
        if not repository:
            raise InputError(f"The source {text!r} names no repository. Write for example {builder.SOURCE}.")
        return Hub(repository, dataset_commit(repository, revision or None))
    if not source.exists():
        hub = f" To read it from the Hub, give {builder.SOURCE} (or another hub:user/name)." if builder.SOURCE else ""
        raise InputError(
            f"The source {text} does not exist. `mmedpo build {name_of(builder)} --help` describes it.{hub}"
        )
    _check_layout(builder, source)
    return source


def _check_layout(builder: ModuleType, path: Path) -> None:
    """Raise InputError if `path` has none of the builder's layouts; suggest the builder that fits."""
    if not builder.LAYOUTS or _is_laid_out(path, builder):
        return
    name = name_of(builder)
    wanted = " or ".join(" with ".join(layout) for layout in builder.LAYOUTS)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) if path.is_dir() else "one file"
    fitting = [other for other in names() if other != name and _is_laid_out(path, load(other))]
    hint = f" It looks like the source of `mmedpo build {fitting[0]}`." if fitting else ""
    raise InputError(f"{path} does not have the layout of {name} ({wanted}). It holds {held or 'nothing'}.{hint}")


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


def is_restricted(upstream: Path | Hub, options: Any) -> bool:
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
