"""Logging that makes a resumed training log the same as an uninterrupted one."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

UNLOGGED = "unlogged"  # in the state that each checkpoint keeps


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
