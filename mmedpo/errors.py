"""What can be wrong with an input, said once and in the same words everywhere."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """One thing wrong with one row: `row` is its id (or file and line), `sentence` says what and what to do."""

    row: str
    column: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.row} [{self.column}]: {self.sentence}"


class InputError(ValueError):
    """An input that cannot work; the message says what was given, why it cannot work and what to do.

    The command line turns it into exit code 2. `faults` carries every faulty row, of which the message shows
    the first `SHOWN_FAULTS`.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)
        lines = [message, *(f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS])]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join(lines))


class AlreadyFinished(Exception):
    """`--resume` was asked of a run that is complete: nothing to do."""


class Stopped(Exception):
    """A run that ended before its end on purpose; what is finished is kept, and --resume goes on."""
