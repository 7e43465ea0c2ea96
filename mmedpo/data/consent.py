"""Consent to send restricted data to third parties: checked and announced before sending, then recorded.

It is typed on the command line of each run (`recipes.parse`), or passed to a function as `third_parties`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from mmedpo.data.credentialed import refuse_endpoints
from mmedpo.runs.hosts import endpoints, host, is_remote
from mmedpo.runs.options import FLAG

KEY = "third_parties"  # in records: {"to": [hosts], "questions": count, "images": True if images were sent}


def to_endpoints(
    name: str | None, models: Iterable[str], third_parties: bool, questions: int, images: bool,
    marked_by: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Require consent before questions of a restricted source are sent to models on other machines.

    Args:
        name: of the restricted source; None for other sources, which need no consent.
        models: as options name them.
        third_parties: the consent.
        questions: count of questions to send.
        images: True if their images are sent too.
        marked_by: evidence that the source is restricted.

    Returns:
        The record (`KEY`), empty if all models are on this machine.

    Raises:
        InputError: a model is on another machine, and consent is missing.
    """
    remote = [one for model in models for one in endpoints(model) if is_remote(one)]
    if name is None:
        return {}
    if not third_parties:
        refuse_endpoints(name, remote, marked_by)
    if not remote:
        return {}
    sent = record(map(host, remote), questions=questions, images=images)
    announce(name, sent[KEY]["to"], f"{questions} questions, {'with' if images else 'without'} their images")
    return sent


def record(places: Iterable[str], **what: Any) -> dict[str, Any]:
    """Return the record of data sent to these hosts."""
    return {KEY: {"to": sorted(set(places)), **what}}


def announce(name: str, places: Iterable[str], what: str) -> None:
    """Print to stderr, before sending, which data of a restricted source go where."""
    text = f"{name} is restricted data, and {FLAG} was given: {what}, to {', '.join(places)}."
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    print(shown, file=sys.stderr, flush=True)
