"""Checkpoints of others: what would run code is refused before it is opened."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmedpo.errors import InputError
from mmedpo.training import checkpoints

SHARD = "global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt"


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


def joined(folder: Path, mark: Path) -> None:
    (folder / "universal" / "zero").mkdir(parents=True)
    (folder / "latest_universal").write_text("universal")
    torch.save(Payload(mark), folder / "universal" / "zero" / "optimizer_state.pt")


def elsewhere(folder: Path, mark: Path) -> None:
    (folder / "latest").write_text("../elsewhere")


def linked(folder: Path, mark: Path) -> None:
    (folder / SHARD).rename(folder / "other.pt")
    (folder / SHARD).symlink_to(folder / "other.pt")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (shard, "is pickled with posix.system, which could run code"), (old_pickle, "no checkpoint of torch"),
        (joined, "optimizer_state.pt: it is pickled with posix.system"),
        (elsewhere, "latest: it leads out of its checkpoint"), (linked, "it is a link"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("plugin", [None, object()], ids=["without DeepSpeed", "with DeepSpeed"])
def test_prepare_refuses_what_could_run_code(
    tmp_path: Path, spoil: Callable[[Path, Path], None], said: str, plugin: object
) -> None:
    folder = tmp_path / "checkpoint-1"
    (folder / "global_step1").mkdir(parents=True)
    torch.save({"optimizer_state_dict": {}}, folder / SHARD)
    (folder / "latest").write_text("global_step1")
    checkpoints._refuse_code(folder)
    spoil(folder, tmp_path / "ran")
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), is_main_process=True)
    with pytest.raises(InputError) as caught:
        checkpoints.prepare(str(folder), SimpleNamespace(accelerator=accelerator))  # type: ignore[arg-type]
    assert said in str(caught.value) and not (tmp_path / "ran").exists()
