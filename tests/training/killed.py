"""`train.py`, whose first process is killed once the checkpoint of a step is written: KILL_AT, or 2."""

import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback

from mmedpo.training import run
from mmedpo.training.trainer import MMedPOTrainer


class Kill(TrainerCallback):
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == int(os.environ.get("KILL_AT", "2")) and state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGKILL)


class Killed(MMedPOTrainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(Kill())


run.MMedPOTrainer = Killed
run.main(sys.argv[1:])
