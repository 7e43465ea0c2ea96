"""Coordination of the processes of one `accelerate launch` through ledgers in the working folder.

No process group is needed. Nothing times out while one process works for hours, and a run can be resumed by another
number of processes.
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
LONGEST_START = 600.0  # most seconds to wait for the first process to prepare the folder


@dataclass(frozen=True)
class Processes:
    """Rank of this process (from 0) among `count`; `launch` identifies the launch."""

    rank: int = 0
    count: int = 1
    launch: str = "alone"

    @classmethod
    def here(cls) -> Processes:
        """Return this process's place by the launcher's environment variables, and select its GPU.

        Raises:
            InputError: launched on several machines, which cannot share ledgers.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if (local := int(os.environ.get("LOCAL_WORLD_SIZE", count))) != count:
            raise InputError(
                f"{count} processes were launched, {local} of them on this machine. Work is shared on one machine "
                "only. Launch it with --num_machines 1, or give each machine a part of the questions."
            )
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        return cls(int(os.environ["RANK"]), count, str(os.getppid()))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def open(self, folder: Path, what: str = "ready", patience: float | None = None) -> None:
        """Announce, as the first process, that `what` in `folder` is ready; otherwise wait at most `patience` seconds.

        Raises:
            InputError: the first process took longer.
        """
        if self.count == 1:
            return
        if self.first:
            self._announce(folder, what)
            return
        waited, patience = 0.0, LONGEST_START if patience is None else patience
        while not self._is_announced(folder, what):
            time.sleep(POLL)
            waited += POLL
            if waited > patience:
                raise InputError(f"The first process did not prepare {folder} within {patience:g} s; see its error.")

    def finish(self, folder: Path) -> None:
        """Wait, as the first process, until all others have finished; otherwise announce the end of this one."""
        if not self.first:
            self._announce(folder, f"finished {self.rank}")
            return
        for rank in range(1, self.count):
            while not self._is_announced(folder, f"finished {rank}"):
                time.sleep(POLL)

    def _announce(self, folder: Path, what: str) -> None:
        ledger = Ledger(folder / COORDINATION)
        ledger.put(what, self.launch)
        ledger.close()

    def _is_announced(self, folder: Path, what: str) -> bool:
        ledger = Ledger(folder / COORDINATION)
        try:
            return ledger.get(what) == self.launch
        finally:
            ledger.close()


ALONE = Processes()
