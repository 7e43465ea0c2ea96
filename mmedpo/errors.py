"""Errors of the whole package: faults of rows, unusable inputs, and runs that end early."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SHOWN_FAULTS = 20
SHOWN_VALUE = 200  # characters of a cell
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """One fault of one row.

    Attributes:
        row: its id, or file and line.
        sentence: the problem and its remedy. It quotes no cell, so that faults of restricted data can be shown.
        value: the cell that was given, as text; None to show none.
    """

    row: str
    column: str
    sentence: str
    value: str | None = None

    def __str__(self) -> str:
        return f"{self.row} [{self.column}]: {self.text}"

    @property
    def text(self) -> str:
        """The sentence with the start of the cell."""
        return self.sentence if self.value is None else f"{self.sentence}, got {self.value[:SHOWN_VALUE]}"

    def record(self) -> dict[str, str]:
        """Return the fault as JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class InputError(ValueError):
    """Unusable input. The message names the input, the reason and the remedy; the command line exits with code 2.

    `faults` lists all faults; the text shows `message` and the first `SHOWN_FAULTS`.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        self.message, self.faults = message, list(faults)
        lines = [message, *(f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS])]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join(lines))


class AlreadyFinished(Exception):
    """`--resume` of a run that is already complete."""


class Stopped(Exception):
    """A run that stopped early on purpose. Finished work is kept, and `--resume` continues it."""


class TasksFailed(Exception):
    """Tasks that raised, or were killed. The message is a table: task, place in the code, error, log."""


class Submitted(Exception):
    """Tasks wait or run in a queue; the same command shows their state, and goes on when all are finished.

    `states` is a table of phases, the first row its heading.
    """

    def __init__(self, states: Sequence[Sequence[str]]) -> None:
        self.states = states
        super().__init__("The work is in Slurm's queue. Run the same command again to see its state, or to finish it.")
