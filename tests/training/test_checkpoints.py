"""Checkpoints that cannot be resumed: of another engine, or with code that would run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmedpo.errors import InputError
from mmedpo.runs.json_files import write_json
from mmedpo.training import checkpoints

SHARD = "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt"
SETTINGS: dict[str, Any] = {"run": {}, "config": {}}
WITHOUT = SimpleNamespace(deepspeed_plugin=None, world_size=2)


def zero(stage: int, processes: int, offload: str = "none") -> Any:
    config = {"zero_optimization": {"stage": stage, "offload_optimizer": {"device": offload}}}
    return SimpleNamespace(
        deepspeed_plugin=SimpleNamespace(zero_stage=stage, deepspeed_config=config), world_size=processes
    )


ENGINES = {
    "a training without DeepSpeed": WITHOUT,
    "ZeRO-2 on 2 processes": zero(2, 2),
    "ZeRO-3 on 2 processes": zero(3, 2),
    "ZeRO-3 on 4 processes": zero(3, 4),
    "ZeRO-3 with offload on 2 processes": zero(3, 2, "cpu"),
}


def stamp(config: Any) -> checkpoints.Stamp:
    return checkpoints.Stamp(SETTINGS, {}, config)


def checkpoint(home: Path, config: Any) -> Path:
    """A checkpoint of DeepSpeed with one shard, written by the engine of `config`."""
    folder, state = home / "checkpoint-1", SimpleNamespace(stateful_callbacks={})
    (folder / "global_step1").mkdir(parents=True)
    torch.save({"optimizer_state_dict": {}}, folder / SHARD)
    (folder / "latest").write_text("global_step1")
    stamp(config).on_train_begin(None, state, None)
    write_json(folder / "trainer_state.json", vars(state))
    return folder


class Payload:
    """Touches a file when it is unpickled without restrictions."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def shard(folder: Path, mark: Path) -> None:
    torch.save({"optimizer_state_dict": Payload(mark)}, folder / SHARD)


def old_pickle(folder: Path, mark: Path) -> None:
    (folder / SHARD).write_bytes(pickle.dumps(Payload(mark)))


def elsewhere(folder: Path, mark: Path) -> None:
    (folder / "latest").write_text("../elsewhere")


def linked(folder: Path, mark: Path) -> None:
    (folder / SHARD).rename(folder / "other.pt")
    (folder / SHARD).symlink_to(folder / "other.pt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shard, "contains pickled posix.system, which could run code"), (old_pickle, "not a checkpoint of torch"),
        (elsewhere, "latest points outside its checkpoint"), (linked, "is a link"),
    ],
)  # fmt: skip
def test_check_refuses_what_could_run_code(tmp_path: Path, spoil: Callable[[Path, Path], None], said: str) -> None:
    folder = checkpoint(tmp_path, WITHOUT)
    stamp(WITHOUT).check(folder)
    spoil(folder, tmp_path / "ran")
    with pytest.raises(InputError) as caught:
        stamp(WITHOUT).check(folder)
    assert said in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("written", ENGINES)
@pytest.mark.parametrize("now", ENGINES)
def test_check_takes_a_checkpoint_of_the_same_engine_alone(written: str, now: str, tmp_path: Path) -> None:
    refused = pytest.raises(InputError, match=f"by {written}, which {now} cannot resume. .*--adapter_name_or_path")
    with nullcontext() if written == now else refused:
        stamp(ENGINES[now]).check(checkpoint(tmp_path, ENGINES[written]))
