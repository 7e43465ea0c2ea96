"""Interruption of a training by SIGTERM (schedulers) or Ctrl-C: save a checkpoint, then stop."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback

from mmedpo.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 2.0  # seconds; launchers forward Ctrl-C, so a second SIGINT within these is the same one
AGAIN = f"Ctrl-C again, {ECHO:.0f} seconds from now or later, ends at once."


class StopOnSignal(TrainerCallback):
    """Save a checkpoint in all processes, and stop, at the end of the step in which any process got a signal.

    A second Ctrl-C after `ECHO` seconds ends at once, without a checkpoint. transformers' `enable_jit_checkpoint` is
    not used: each process decides by its own clock, so that processes may save at different steps and deadlock.
    """

    def __init__(self) -> None:
        self._told: float | None = None  # time of the first signal
        self._before: dict[int, Any] = {}
        self._speaks = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._speaks = state.is_world_process_zero
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}

    def _hear(self, number: int, _: Any) -> None:
        now = time.monotonic()
        if self._told is None:
            self._told = now
            if number == signal.SIGINT and self._speaks:
                print(f"\nA checkpoint is saved at the end of this step; {AGAIN}", flush=True)
        elif number == signal.SIGINT and now - self._told >= ECHO:
            self.on_train_end()
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        told = torch.tensor(float(self._told is not None), device=args.device)
        if reduce(told, "max") > 0:
            args.save_only_model = False  # a checkpoint without optimizer state cannot be resumed
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def refuse_unfinished(trainer: Trainer) -> None:
    """Raise Stopped where a training ended before its last step."""
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if done < planned:
        raise Stopped(f"Stopped after step {done} of {planned}; a checkpoint is kept. Go on with --resume.")
