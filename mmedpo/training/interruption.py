"""A training that is told to stop: it saves a checkpoint and ends, as a scheduler's SIGTERM asks."""

from __future__ import annotations

import signal
import threading
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback

from mmedpo.errors import Stopped


class StopOnSignal(TrainerCallback):
    """At the end of the step in which any process got a SIGTERM, all save a checkpoint together and stop.

    transformers' own `enable_jit_checkpoint` lets each process decide by its own clock, so that two of them may save at
    different steps and wait for each other for ever.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: Any = None

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if threading.current_thread() is threading.main_thread():  # the only one that may handle signals
            self._before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, *_: Any) -> None:
        self._told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        told = torch.tensor(float(self._told), device=args.device)
        if reduce(told, "max") > 0:
            args.save_only_model = False  # what cannot be gone on from would be no use
            control.should_save = control.should_training_stop = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def refuse_unfinished(trainer: Trainer) -> None:
    """Raise Stopped where a training ended before its last step."""
    done, planned = trainer.state.global_step, trainer.state.max_steps
    if done < planned:
        raise Stopped(f"Stopped after step {done} of {planned}; a checkpoint is kept. Go on with --resume.")
