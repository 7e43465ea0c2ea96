"""Command line. A command only opens the objects of its options and calls one function.

Exit codes: 0 done, 2 bad input, 130 interrupted or budget spent, 1 anything else.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from mmedpo.cli import curation, evaluation, experiments, publishing, review, training
from mmedpo.cli.shared import app, command_line, console, print_table
from mmedpo.data import hub
from mmedpo.errors import SHOWN_FAULTS, AlreadyFinished, Fault, InputError, Stopped, Submitted, TasksFailed
from mmedpo.runs.terminal import Screen, guard, plain, silence_libraries
from mmedpo.training import zero

__all__ = ["app", "command_line", "curation", "evaluation", "experiments", "main", "publishing", "review", "training"]

ORDER = (  # of the commands in --help, by the course of the work
    "curate", "build", "preview", "audit", "review", "apply", "exchange", "convert", "train", "merge", "evaluate",
    "questions", "score", "compare", "attention", "rounds", "table1", "publish", "rejoin", "quickstart",
)  # fmt: skip
errors = Screen(stderr=True)
FAULTS = Path("mmedpo-faults.jsonl")
UNUSABLE = (  # errors of a path, wherever it is met
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR,
)  # fmt: skip
SHORT = (
    "preview",
    "review",
    "apply",
    "exchange",
    "merge",
    "questions",
    "score",
    "compare",
    "publish",
)  # commands without --resume


app.registered_commands.sort(key=lambda command: ORDER.index(command.callback.__name__))  # type: ignore[union-attr]


def _keep_faults(faults: Sequence[Fault]) -> None:
    """Write all faults of an input to a file in the current folder; its message shows the first ones only."""
    try:
        FAULTS.write_text("".join(f"{json.dumps(fault.record(), ensure_ascii=False)}\n" for fault in faults), "utf-8")
    except OSError as error:
        errors.print(f"The full list cannot be written to {FAULTS}: {error.strerror}.")
    else:
        errors.print(f"All {len(faults)} faults are in {FAULTS}.")


def _print_error(sentence: str) -> None:
    errors.print(Text.assemble(("Error:", "bold red"), f" {plain(sentence)}"), soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; translate exceptions into messages and exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # the commands show their own
    silence_libraries()
    guard()
    if argv is not None:
        sys.argv[1:] = argv
    try:
        zero.leave_out(sys.argv[1:])
        if endpoint := os.environ.get("HF_ENDPOINT"):
            hub.check_endpoint(endpoint)
        app(prog_name="mmedpo")  # the same name in scripts of dataset_builders/
    except AlreadyFinished as finished:
        console.print(str(finished))
    except Submitted as submitted:
        print_table(submitted.states)
        console.print(str(submitted), soft_wrap=True)
    except Stopped as stopped:
        errors.print(str(stopped), soft_wrap=True)
        raise SystemExit(130) from None
    except TasksFailed as failed:
        _print_error(str(failed))
        raise SystemExit(1) from None
    except InputError as error:
        _print_error(str(error))
        if len(error.faults) > SHOWN_FAULTS:
            _keep_faults(error.faults)
        raise SystemExit(2) from None
    except OSError as error:
        if error.errno not in UNUSABLE or error.filename is None:
            raise
        _print_error(f"{error.filename}: {error.strerror}. Check the path and its permissions.")
        raise SystemExit(2) from None
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:
            raise
        kept = " Finished work is kept; run the same command with --resume to continue."
        errors.print("Interrupted." + kept * (sys.argv[1] not in SHORT))
        raise SystemExit(130) from None
