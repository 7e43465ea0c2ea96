"""What a training logs, and when, so that a resumed one logs what an uninterrupted one would have."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

UNLOGGED = "unlogged"  # in the state that each checkpoint keeps


class Unlogged(dict[str, list[float]]):
    """Metrics of the batches since the last log, by name. Not a defaultdict, which the Trainer's state cannot copy."""

    def __missing__(self, name: str) -> list[float]:
        self[name] = []
        return self[name]


class Logs(TrainerCallback):
    """Keeps `unlogged` in every checkpoint, and logs and evaluates no later than a checkpoint of the same step.

    transformers would log and evaluate at the end of an epoch, when the checkpoint of its last step may be written
    already, and where a training is told to stop in its middle. The last step is always logged.
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
