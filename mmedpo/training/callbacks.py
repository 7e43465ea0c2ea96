"""Callbacks of a training: checks at its start, duration, logs that a resumed training has too, and interruption."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from mmedpo.errors import Stopped

OF_ONE_START = ("train_loss", "train_samples_per_second", "train_steps_per_second")  # wrong in a resumed training
SECONDS, UNLOGGED, SHIFT = "seconds", "unlogged", "reward_shift"  # in the state that each checkpoint keeps
SIGNALS = (signal.SIGTERM, signal.SIGINT)
ECHO = 2.0  # seconds; launchers forward Ctrl-C, so a second SIGINT within these is the same one
AGAIN = f"Another Ctrl-C, after {ECHO:.0f} seconds or later, ends at once."


class BeforeTraining(TrainerCallback):
    """Callback that verifies optimisations and opens the reference cache, once the model is on its device."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.verify_optimisations()
        self.trainer.open_reference_cache()


class Duration(TrainerCallback):
    """Callback that counts the seconds of all starts, and stores them in every checkpoint.

    In a resumed training it corrects the Trainer's last log line: the runtime becomes that of all starts, and values of
    the last start alone are removed, such as a loss of 0.0 where no step was left.
    """

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._resumed = time.monotonic(), state.global_step > 0
        self._before = state.stateful_callbacks.get(SECONDS, 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        state.stateful_callbacks[SECONDS] = self.seconds

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        for entry in (logs or {}, state.log_history[-1]) if self._resumed else ():
            if "train_runtime" in entry:
                entry["train_runtime"] = round(self.seconds, 4)
                for name in OF_ONE_START:
                    entry.pop(name, None)


class Unlogged(dict[str, list[float]]):
    """Metrics of the batches since the last log, by name; not a defaultdict, which the Trainer's state cannot copy."""

    def __missing__(self, name: str) -> list[float]:
        self[name] = []
        return self[name]


class Logs(TrainerCallback):
    """Callback that stores `unlogged` in every checkpoint, and logs and evaluates before the checkpoint of a step.

    transformers logs and evaluates at the end of an epoch, when the checkpoint of its last step may already be written.
    It also does so where a training stops in the middle of an epoch. The last step is always logged.
    """

    def __init__(self, unlogged: Unlogged) -> None:
        self._unlogged = unlogged

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._unlogged.update(state.stateful_callbacks.get(UNLOGGED, {}))
        state.stateful_callbacks[UNLOGGED] = self._unlogged

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step >= state.max_steps
        ends = last or state.epoch == int(state.epoch)
        control.should_log |= last and args.logging_strategy != IntervalStrategy.NO
        control.should_log |= ends and args.logging_strategy == IntervalStrategy.EPOCH
        late_enough = args.eval_delay <= state.epoch
        control.should_evaluate |= ends and args.eval_strategy == IntervalStrategy.EPOCH and late_enough

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_log = control.should_evaluate = False


class RewardShift(TrainerCallback):
    """Reward shift of "bco_pair": mean reward of the sides of all earlier steps, each with its pair's weight.

    It is 0 in the first step, and stays the same within a step, so that batch size, accumulation and processes do not
    change it. Every checkpoint stores its sums.
    """

    def __init__(self) -> None:
        self._sums, self._step = [0.0, 0.0], [0.0, 0.0]  # of rewards and weights: of earlier steps, of this one

    @property
    def value(self) -> float:
        rewards, weights = self._sums
        return rewards / weights if weights else 0.0

    def add(self, chosen: torch.Tensor, rejected: torch.Tensor, weight: torch.Tensor) -> None:
        """Add a batch of all processes (rewards and weights: float, B); pairs without a finite reward are left out."""
        reward = (chosen.double() + rejected.double()) / 2
        known = reward.isfinite()
        self._step[0] += (weight * reward)[known].sum().item()
        self._step[1] += weight[known].sum().item()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.bco_shift:
            self._sums = state.stateful_callbacks.setdefault(SHIFT, self._sums)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sums[:] = [sum(pair) for pair in zip(self._sums, self._step, strict=True)]
        self._step = [0.0, 0.0]


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
        raise Stopped(f"Stopped after step {done} of {planned}; a checkpoint is kept. Continue with --resume.")
