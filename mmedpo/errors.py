"""Errors of the whole package: faults of rows, unusable inputs, and runs that end early."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """One fault of one row: `row` is its id or file and line, `sentence` the problem and its remedy."""

    row: str
    column: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.row} [{self.column}]: {self.sentence}"


class InputError(ValueError):
    """Unusable input. The message names the input, the reason and the remedy; the command line exits with code 2.

    `faults` lists all faults; the message shows the first `SHOWN_FAULTS`.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)
        lines = [message, *(f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS])]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join(lines))


class AlreadyFinished(Exception):
    """`--resume` of a run that is already complete."""


class Stopped(Exception):
    """A run that stopped early on purpose. Finished work is kept, and `--resume` continues it."""
