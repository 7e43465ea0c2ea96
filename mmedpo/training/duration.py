"""Duration of a training over all its starts, also in the last line of its log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mmedpo.runs.run_folder import DURATION, read_object, write_json

OF_ONE_START = ("train_loss", "train_samples_per_second", "train_steps_per_second")  # wrong in a resumed training


class Duration(TrainerCallback):
    """Callback that stores the seconds of all starts in the working folder, at each log and checkpoint.

    In a resumed training it corrects the Trainer's last log line: the runtime becomes that of all starts, and values of
    the last start alone are removed, such as a loss of 0.0 where no step was left.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / DURATION
        self._before: float = read_object(self._file)["seconds"] if self._file.exists() else 0.0
        self._began = time.monotonic()
        self._resumed = False

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._resumed = time.monotonic(), state.global_step > 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        for entry in (logs or {}, state.log_history[-1]) if self._resumed else ():
            if "train_runtime" in entry:
                entry["train_runtime"] = round(self.seconds, 4)
                for name in OF_ONE_START:
                    entry.pop(name, None)
        self._keep(state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._keep(state)

    def _keep(self, state: Any) -> None:
        if state.is_world_process_zero:
            write_json(self._file, {"seconds": self.seconds})
