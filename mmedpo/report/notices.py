"""Notices for the top of cards, audits and pages: stand-ins, phantoms and toy models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmedpo.runs.formats import STANDIN

NAMING_KEYS = ("source", "target_model", "chat_model", "judges", "localizer", "model", "dataset")


def standins(*records: Mapping[str, Any]) -> list[str]:
    """Return the stand-ins that made or scored rows; for manifests without that record, all stand-ins they name."""
    found = [record["standins"] if "standins" in record else _named(record) for record in records]
    return list(dict.fromkeys(name for names in found for name in names or () if name.startswith(STANDIN)))


def notices(*records: Mapping[str, Any]) -> list[str]:
    """Return sentences on stand-ins, phantoms and toy models named in manifests or training records."""
    named = list(dict.fromkeys(name for record in records for name in _named(record)))
    toys = [Path(name).name for name in named if re.search(r"(^|[/_-])tiny([/_.-]|$)", name)]
    sentences = []
    if rules := standins(*records):
        sentences.append(
            f"Offline stand-ins made or scored rows in place of real models: {', '.join(rules)}. "
            "Their texts, scores and boxes exercise the program and carry no medical knowledge."
        )
    if any(re.search(r"(^|[/_-])phantom", name) for name in named):
        sentences.append("The images are phantoms drawn by a program. No patient and no real finding is shown.")
    if toys:
        sentences.append(f"A tiny toy model was used ({', '.join(toys)}). Its numbers say nothing about a real model.")
    return sentences


def _named(record: Mapping[str, Any]) -> list[str]:
    return [name for key in NAMING_KEYS for name in _strings(record.get(key))]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)
