"""Consent to pass restricted data on: said before anything is sent, and recorded of what was sent where.

It is typed on the command line of each run (`recipes.parse`), or given to a function as `third_parties`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from mmedpo.data.credentialed import refuse_endpoints
from mmedpo.runs.hosts import host, is_remote
from mmedpo.runs.options import FLAG

KEY = "third_parties"  # of a record: {"to": [hosts], "questions": how many, "images": whether they go along}


def to_endpoints(
    name: str | None, models: Iterable[str], third_parties: bool, questions: int, images: bool,
    marked_by: str | None = None, first: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Ask for consent before the questions of the restricted source `name` go to these models, as options name them.

    Args:
        name: None where the source is not restricted, so that nobody has to agree.
        third_parties: the consent.
        questions, images: how many questions go there, and whether their images do.
        marked_by: what says that the source is restricted.
        first: the process that says it.

    Returns:
        What to record, empty where all models are on this machine.

    Raises:
        InputError: a model is elsewhere, and there is no consent.
    """
    away = [model for model in models if is_remote(model)]
    if name is None:
        return {}
    if not third_parties:
        refuse_endpoints(name, away, marked_by)
    if not away:
        return {}
    sent = record(map(host, away), questions=questions, images=images)
    if first:
        announce(name, sent[KEY]["to"], f"{questions} questions, {'with' if images else 'without'} their images")
    return sent


def record(places: Iterable[str], **what: Any) -> dict[str, Any]:
    """What is recorded of data that went to these hosts."""
    return {KEY: {"to": sorted(set(places)), **what}}


def announce(name: str, places: Iterable[str], what: str) -> None:
    """Say, before it happens, what of a restricted source goes where."""
    said = f"{name} is credentialed data, and {FLAG} was given: {what}, to {', '.join(places)}."
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in said)
    print(shown, file=sys.stderr, flush=True)
