"""A training that is told to stop: it saves a checkpoint and ends, as a scheduler's SIGTERM or a Ctrl-C asks."""

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
ECHO = 2.0  # seconds in which a second SIGINT is a launcher's, which passes the terminal's Ctrl-C on
AGAIN = f"Ctrl-C again, {ECHO:.0f} seconds from now or later, ends at once."


class StopOnSignal(TrainerCallback):
    """At the end of the step in which any process got a SIGTERM or a SIGINT, all save a checkpoint together and stop.
    A second Ctrl-C, `ECHO` seconds later or more, ends at once, without one.

    transformers' own `enable_jit_checkpoint` lets each process decide by its own clock, so that two of them may save at
    different steps and wait for each other for ever.
    """

    def __init__(self) -> None:
        self._told: float | None = None  # when
        self._before: dict[int, Any] = {}
        self._speaks = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._speaks = state.is_world_process_zero
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
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
            args.save_only_model = False  # what cannot be gone on from would be no use
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def refuse_unfinished(trainer: Trainer) -> None:
    """Raise Stopped where a training ended before its last step."""
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if done < planned:
        raise Stopped(f"Stopped after step {done} of {planned}; a checkpoint is kept. Go on with --resume.")
