"""Provenance of a run: versions of what made it, and names that are fit for public records."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mmedpo.runs import checkout

REPORTED_PACKAGES = (
    "mmedpo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "deepspeed",
    "datasets",
    "evaluate",
    "huggingface-hub",
    "pillow",
)
OPTION = re.compile(r"--?[\w-]+=|[^/=]+=(?=[/~])")  # --option=VALUE, or NAME=FOLDER as of compare
SCHEME = re.compile(r"(?!https?:|file:)\w+:", re.IGNORECASE)  # detector:, local:, ...
MODELS = re.compile(r",\s*(?=[a-z]+:)")  # separator of a list of models


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of these packages, as far as they are installed (DeepSpeed is for Linux only)."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def versions() -> dict[str, str]:
    """Return the versions of the packages a result depends on, and the project's commit if run from a checkout."""
    found = installed(REPORTED_PACKAGES)
    if commit := checkout.commit(Path(__file__).resolve().parents[2]):
        found["commit"] = commit
    return found


def portable(name: str) -> str:
    """Return a name for public records, without secrets and places of this machine.

    - An endpoint's URL becomes "endpoint#model", once for several of one model; other URLs lose user and query.
    - A path below the current folder becomes relative; one outside of it becomes its last part.
    - Likewise inside an option ("--source=/a/b"), a model ("detector:/a/b"), a list of models, or JSON.
    """
    if option := OPTION.match(name):
        return option[0] + portable(name[option.end() :])
    if name[:1] in ("[", "{"):
        with suppress(ValueError, SyntaxError):
            values = json.loads(name) if '"' in name else ast.literal_eval(name)
            return json.dumps(portable_values(values), ensure_ascii=False)
    return ",".join(dict.fromkeys(map(_portable, MODELS.split(name))))


def portable_values(value: Any) -> Any:
    """Return a JSON value with all texts `portable`."""
    if isinstance(value, dict):
        return {key: portable_values(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable_values(item) for item in value]
    return portable(value) if isinstance(value, str) else value


def _portable(place: str) -> str:
    if scheme := SCHEME.match(place):
        return scheme[0] + _portable(place[scheme.end() :])
    place = place.removeprefix("file://")
    if place.lower().startswith(("http://", "https://")):
        url = urlsplit(place)
        plain = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
        return f"endpoint#{_portable(url.fragment)}" if url.fragment else plain
    path, here = Path(place), Path.cwd()
    if path == Path.home():
        return "~"
    if path.is_relative_to(here) and here != Path(here.anchor):
        return str(path.relative_to(here))
    leaves = path.is_absolute() or place.startswith("~") or ".." in path.parts
    return path.name if leaves else place
