"""The processes of one `accelerate launch`: who does which share of the work, and how they wait for each other.

They need no process group: each writes what it finished to ledgers in the working folder, so that nothing times out
while one of them works for hours, and any number of processes can resume what another number began.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from mmedpo.errors import InputError
from mmedpo.runs.ledger import Ledger

COORDINATION = "processes.ledger"
POLL = 0.2  # seconds
LONGEST_START = 600.0  # seconds that the others wait for the first process to prepare the folder


@dataclass(frozen=True)
class Processes:
    """This process's place (`rank`, from 0) among `count`; `launch` tells one launch from another."""

    rank: int = 0
    count: int = 1
    launch: str = "alone"

    @classmethod
    def here(cls) -> Processes:
        """As the launcher set it in the environment; the accelerator of this process becomes the current one.

        Raises:
            InputError: launched on several machines, which do not see each other's ledgers.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if (local := int(os.environ.get("LOCAL_WORLD_SIZE", count))) != count:
            raise InputError(
                f"{count} processes were launched, {local} of them on this machine. Work is shared on one machine "
                "only: launch it with --num_machines 1, or give each machine a part of the questions."
            )
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return cls(int(os.environ["RANK"]), count, str(os.getppid()))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def open(self, folder: Path, what: str = "ready", patience: float | None = None) -> None:
        """The first process says that `what` of `folder` is there; the others wait, `patience` seconds at most."""
        if self.count == 1:
            return
        if self.first:
            self._say(folder, what)
            return
        waited, patience = 0.0, LONGEST_START if patience is None else patience
        while not self._said(folder, what):
            time.sleep(POLL)
            waited += POLL
            if waited > patience:
                raise InputError(f"The first process did not prepare {folder} within {patience:g} s; see its error.")

    def finish(self, folder: Path) -> None:
        """The first process waits until all the others have finished their share."""
        if not self.first:
            self._say(folder, f"finished {self.rank}")
            return
        for rank in range(1, self.count):
            while not self._said(folder, f"finished {rank}"):
                time.sleep(POLL)

    def _say(self, folder: Path, what: str) -> None:
        ledger = Ledger(folder / COORDINATION)
        ledger.put(what, self.launch)
        ledger.close()

    def _said(self, folder: Path, what: str) -> bool:
        ledger = Ledger(folder / COORDINATION)
        try:
            return ledger.get(what) == self.launch
        finally:
            ledger.close()


ALONE = Processes()
