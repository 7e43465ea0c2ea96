"""Settings and contents that a run records, and their comparison when it goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmedpo.errors import InputError
from mmedpo.runs.json_files import read_json, read_object, write_json

SETTINGS = "settings.json"  # in a working folder: settings of the run
CONTENTS = "contents.json"  # in a working folder: digests of models and datasets by role
DIGESTS = ".settings.sha256"  # in a finished folder: JSON of digests of settings and contents
CONTENTS_OF = "contents of "  # in DIGESTS: prefix of the role of a content
PLACE_OF = "place of "  # in DIGESTS: prefix of a setting, for the digest of the path that it spells


def compare_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Raise InputError if the finished run had other settings."""
    if not (folder / DIGESTS).exists():
        return
    before, now = read_json(folder / DIGESTS), digests_of(settings)
    kept = {key: digest for key, digest in before.items() if not key.startswith((CONTENTS_OF, PLACE_OF))}
    places = {key.removeprefix(PLACE_OF) for key, digest in before.items() if now.get(key) == digest}
    now = {key: digest for key, digest in now.items() if not key.startswith(PLACE_OF)}
    if differing := [key for key in _differing(kept, now) if key not in places]:
        changes = [f"{key}: now {_leaves(settings).get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{folder} was finished with other settings. Repeat them, or choose another --output:", changes)
        )


def record_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> None:
    """Record the digests of a run's inputs in its working folder, or raise InputError if others are recorded.

    May be called again with further roles, since a model's digest is expensive and other checks come first.
    """
    recorded = compare_contents(folder, settings, contents)
    write_json(folder / CONTENTS, recorded | {role: digest for role, digest in contents.items() if digest})


def compare_contents(folder: Path, settings: dict[str, Any], contents: Mapping[str, str | None]) -> dict[str, Any]:
    """Return the recorded digests, or raise InputError if an input was replaced under the same name."""
    before = read_object(folder / CONTENTS) if (folder / CONTENTS).exists() else {}
    if (folder / DIGESTS).exists():
        recorded = read_object(folder / DIGESTS)
        before |= {key.removeprefix(CONTENTS_OF): recorded[key] for key in recorded if key.startswith(CONTENTS_OF)}
    current, replaced = _leaves(settings), []
    for role in sorted(before.keys() & contents.keys()):  # a missing role shows as a differing setting
        if (new := contents[role]) and (old := before[role]) != new:
            name = f"{role} {current[role]}" if current.get(role) else role
            replaced.append(f"{name}: {old[:8]} -> {new[:8]}")
    if replaced:
        sentence = (
            f"{folder}: since the start of this run, an input was replaced under the same name. Results of the old "
            "and the new input would be mixed. Restore the old one, or start a new --output:"
        )
        raise InputError(_listed(sentence, replaced))
    return before


def digests_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each setting that is on, and of each path; the settings name folders and servers."""
    found = {
        key: value
        for key, value in sorted(_leaves(settings).items())
        if value is not None and (value is not False or key not in settings)
    }
    for key, value in list(found.items()):
        if isinstance(value, str) and value:
            with suppress(OSError, ValueError):
                found[f"{PLACE_OF}{key}"] = os.path.realpath(value, strict=True)
    return {key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest() for key, value in found.items()}


def _leaves(settings: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Return settings with those of groups, under "group.setting"."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _leaves(value, f"{group}{key}.") if isinstance(value, dict) else {f"{group}{key}": value}
    return found


def _differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _listed(sentence: str, changes: list[str]) -> str:
    return "\n".join([sentence, *(f"  - {change}" for change in changes)])


def record_settings(file: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings to `file`, or raise InputError if it holds others; a path may be spelt otherwise."""
    now = json.loads(json.dumps(settings))  # tuples become lists, as in the file
    before, after = (_leaves(each) for each in (read_json(file) if file.exists() else now, now))
    differing = [key for key in _differing(before, after) if not _same_place(before.get(key), after.get(key))]
    if differing:
        changes = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in differing]
        raise InputError(
            _listed(f"{file.parent} was started with other settings. Repeat them, or remove the folder:", changes)
        )
    write_json(file, now)


def _same_place(one: Any, other: Any) -> bool:
    """Return whether two settings spell one path: relative or absolute, or through a link."""
    named = isinstance(one, str) and isinstance(other, str) and one and other
    return bool(named) and os.path.realpath(one) == os.path.realpath(other)
