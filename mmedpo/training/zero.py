"""DeepSpeed, imported only where a run uses ZeRO; accelerate imports it wherever it is installed."""

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
from mmedpo.runs import bounded_json

MISSING = (
    "DeepSpeed is not installed, which ZeRO needs; it is installed on Linux only (marker sys_platform == 'linux'). "
    "Train there, or without ZeRO (recipes/accelerate/ddp.yaml)."
)


def leave_out(words: Sequence[str]) -> None:
    """Block the import of DeepSpeed in this process, unless command line or launcher ask for ZeRO.

    Raises:
        InputError: they ask for it, and it is not installed.
    """
    if _asked(words):
        require()
    else:
        sys.modules.setdefault("deepspeed", None)  # type: ignore[arg-type]  # None makes imports fail


def require() -> None:
    """Allow the import of DeepSpeed from now on. Raises InputError where it is not installed."""
    if sys.modules.get("deepspeed", False) is None:
        del sys.modules["deepspeed"]
    if find_spec("deepspeed") is None:
        raise InputError(MISSING)


def compile_nothing() -> None:
    """Keep DeepSpeed, if this process was asked for ZeRO, from a kernel for processors that only inference calls.

    DeepSpeed would compile it at the start of a training with `use_cpu`, which takes a minute and needs g++.
    """
    if _launched():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__ = {}  # read for that kernel alone


def check_file(settings: str) -> None:
    """Raise InputError where the file `settings` is no JSON object, of which libraries make a traceback."""
    file = Path(settings)
    if not file.is_file():  # libraries also take JSON and base64
        return
    try:
        held = bounded_json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"The DeepSpeed settings {settings} cannot be read as JSON: {error}. Correct the file."
        ) from None
    stage = held.get("zero_optimization", {}) if isinstance(held, dict) else None
    if not isinstance(stage, dict) or stage.get("stage", 0) not in range(4):
        raise InputError(
            f"The DeepSpeed settings {settings} must be a JSON object, its zero_optimization one with the stage 0, 1, "
            "2 or 3. Correct the file."
        )


def _asked(words: Sequence[str]) -> bool:
    if _launched():
        return True
    text, parts = "", [part for word in words for part in word.split("=", 1)]
    for option, value in pairwise(parts):
        if option == "--config":
            with suppress(OSError):  # reported where the recipe is read
                text = Path(value).read_text(encoding="utf-8", errors="ignore")
    return "--deepspeed" in parts or bool(re.search(r"^deepspeed\s*:", text, re.M))


def _launched() -> bool:
    """Return whether `accelerate launch`, or arguments of a training in this process, asked for ZeRO."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
