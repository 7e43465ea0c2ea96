"""Run command lines of mmedpo in this process, and keep what they print."""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub.server import Hub

from mmedpo import cli

WIDTH = "240"  # columns of the terminal: wide enough that few lines break


def run(line: str, folder: Path, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run one command line in `folder`; return its exit code and what it printed, errors last."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["mmedpo"])
        for name in ("HF_TOKEN", "MMEDPO_API_KEY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.delenv(name, raising=False)
        for name, value in {"COLUMNS": WIDTH, "NO_PROXY": "127.0.0.1", **(environment or {})}.items():
            patch.setenv(name, value)
        for screen in (cli.console, cli.errors):  # which know their width since they were made
            patch.setattr(screen, "width", int(WIDTH))
        warnings = logging.StreamHandler(err)  # which pytest would take from the terminal
        logging.getLogger("mmedpo").addHandler(warnings)
        try:
            cli.main(shlex.split(line))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            logging.getLogger("mmedpo").removeHandler(warnings)
    return code, out.getvalue() + err.getvalue()


@contextlib.contextmanager
def loopback_hub(folder: Path) -> Iterator[tuple[Hub, dict[str, str]]]:
    """Yield a loopback Hub, and the environment in which commands of this process publish to it."""
    from huggingface_hub import constants

    with Hub(folder) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        yield hub, {"HF_TOKEN": "write"}
