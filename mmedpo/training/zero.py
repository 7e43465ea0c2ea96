"""DeepSpeed only where a run asks for ZeRO: accelerate imports it into every process that could."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from mmedpo.errors import InputError

MISSING = (
    "DeepSpeed: ZeRO needs it, and it is not installed; it is a dependency on Linux alone (marker sys_platform == "
    "'linux'). Train there, or without ZeRO (recipes/accelerate/ddp.yaml)."
)


def leave_out(words: Sequence[str]) -> None:
    """Keep DeepSpeed from being imported in this process, unless its command line or launcher asks for ZeRO.

    Raises:
        InputError: they ask for it, and it is not installed.
    """
    if _asked(words):
        require()
    else:
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]  # Python's own way to say: not here


def require() -> None:
    """Let DeepSpeed be imported from now on. Raises InputError where it is not installed."""
    if sys.modules.get("deepspeed", False) is None:
        del sys.modules["deepspeed"]
    if find_spec("deepspeed") is None:
        raise InputError(MISSING)


def _asked(words: Sequence[str]) -> bool:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":  # as accelerate launch says it
        return True
    text, parts = "", [part for word in words for part in word.split("=", 1)]
    for option, value in pairwise(parts):
        if option == "--config":
            with suppress(OSError):  # said where the recipe is read
                text = Path(value).read_text(encoding="utf-8", errors="ignore")
    return "--deepspeed" in parts or bool(re.search(r"^deepspeed\s*:", text, re.M))
