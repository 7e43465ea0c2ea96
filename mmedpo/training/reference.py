"""Disk cache of the reference model's log-probabilities, across epochs, seeds, datasets and sweeps.

The reference never changes, so the log-probability of a side depends on the model's input only. A value is found by the
name of its file (`reference_fingerprint`: model, image processing, settings) and of its entry (`side_key`: token ids
and images), however sides are paired, ordered and packed. Both names are digests of contents, not of places, so that a
stale value is never found.

A cached value is that of the first computation. Other padding or another device gives a value that differs by rounding,
which is coarse in bfloat16.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model, reduce
from transformers import PreTrainedModel

from mmedpo.errors import InputError
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.provenance import installed

HERE = Path(__file__).parent
CODE = (*HERE.glob("*.py"), *(HERE.parent / "models" / name for name in ("answers.py", "sharing.py")))
PACKAGES = ("torch", "torchvision", "transformers", "peft", "bitsandbytes", "pillow")
LOADING = {"_name_or_path", "base_model_name_or_path", "_commit_hash", "transformers_version", "use_cache"}


def reference_fingerprint(
    model: Any, processor: Any, settings: Mapping[str, Any] | None = None, trained: Collection[str] = ()
) -> str:
    """Return a digest (32 hexadecimal digits) of all that decides the reference's log-probabilities, except its input.

    It covers every tensor in memory (merged, cast or quantised), configurations of model and adapters, attention
    implementations, image processing, library versions, and this package's training code. Names, folders and LoRA
    settings of the trained adapter are left out, so that such runs share their reference.

    Args:
        model: the reference, maybe with PEFT adapters. ZeRO-3 gathers its tensors, so all processes must call together.
        processor: of the model; its tokenizer and chat template show in `side_key`.
        settings: JSON-able settings that change the numbers, such as mixed precision.
        trained: names of adapters that are not part of the reference.

    Raises:
        InputError: tensors are not in memory (offloaded, or on the meta device).
    """
    pixels = processor.image_processor
    configs = model.peft_config if is_peft_model(model) else {}
    adapters = {name: config for name, config in configs.items() if name not in trained}
    parts = {
        "tensors": sorted(_tensors(model, trained)),
        "config": json.loads(model.config.to_json_string(use_diff=False), object_hook=_lasting),
        "attention": sorted(
            {
                f"{type(module).__name__}: {module.config._attn_implementation}"
                for module in model.modules()
                if isinstance(module, PreTrainedModel)
            }
        ),
        "adapters": {name: _lasting(config.to_dict()) for name, config in adapters.items()},
        "active": [name for name in model.active_adapters if name in adapters] if adapters else [],
        "processor": [type(processor).__name__, type(pixels).__name__, pixels.to_dict()],
        "settings": settings,
        "versions": installed(PACKAGES),
        "code": {file.name: _digest(file.read_bytes()) for file in CODE},
    }
    return _digest(json.dumps(parts, sort_keys=True, default=_plain).encode())


def side_key(prompt: Sequence[int], answer: Sequence[int], images: Sequence[str]) -> str:
    """Return the digest of one side of a pair: its token ids, and the `digest`s of its images."""
    return _digest(json.dumps([prompt, answer, images]).encode())


class ReferenceCache:
    """Log-probabilities of sides by `side_key`, in a ledger in `folder` named after `reference_fingerprint`.

    All processes hold all values and call together; only the main process uses the disk, so that machines need no
    shared folder. Several runs on one machine may share a folder.

    Raises:
        InputError: the ledger is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._ledger = Ledger(folder / f"{fingerprint}.ledger")
        loaded: list[Any] = [{}, None]  # values, or an error, which must stop all processes
        if PartialState().is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                loaded[0] = dict(self._ledger.values())
                self._ledger.close()
            except (InputError, OSError, ValueError, sqlite3.DatabaseError) as error:
                loaded[1] = InputError(
                    f"The reference log-probabilities in {self._ledger.path} cannot be used "
                    f"({error.__cause__ or error}). Remove the file, and they will be computed again, or name another "
                    "folder."
                )
        self._known, fault = broadcast_object_list(loaded)
        if fault:
            raise fault

    def __len__(self) -> int:
        return len(self._known)

    def get(self, keys: Sequence[str], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the log-probability of each of S sides (float32, S), computed where a key is new.

        All processes call this together. If one process misses a side, all call `compute`, since all must run ZeRO-3's
        model, and exchange the new values. NaN is not stored.

        Args:
            keys: `side_key`s of the batch.
            compute: returns the batch's log-probabilities (float, S).
        """
        device = PartialState().device
        new = any(key not in self._known for key in keys)
        if reduce(torch.tensor(float(new), device=device), "max") > 0:
            self._store(dict(zip(keys, compute().tolist(), strict=True)))
        return torch.tensor([self._known.get(key, torch.nan) for key in keys], device=device)

    def _store(self, values: Mapping[str, float]) -> None:
        """Store the new ones among the values of all processes, except NaN."""
        entries = dict(reversed(gather_object([*values.items()])))  # of two values, the first
        new = {key: one for key, one in entries.items() if key not in self._known and not math.isnan(one)}
        self._known |= new
        if PartialState().is_main_process:
            self._ledger.update({key: (key, one) for key, one in new.items()})


def _digest(data: Any) -> str:
    """Return the 128-bit XXH3 of bytes, which is fast (10 GB/s) and not meant for secrets."""
    return xxhash.xxh3_128(data).hexdigest()


def _tensors(model: Any, trained: Collection[str]) -> Iterator[tuple[str, str, list[int], str]]:
    """Yield name, dtype, shape and digest of each tensor of the state, by the names without adapters."""
    new = re.compile(rf"\.(lora_\w+|modules_to_save)\.({'|'.join(map(re.escape, trained))})(\.|$)")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained and new.search(name):
            continue
        with _gathered(tensor):
            if tensor.is_meta:
                raise InputError(
                    f"The weights {name} are not in memory, so the reference has no digest for reference_cache. Load "
                    "the whole model, or train without the cache of reference log-probabilities."
                )
            data = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
            plain = re.sub(r"^base_model\.model\.|\.base_layer|\.original_module", "", name)
            yield plain, str(tensor.dtype), list(tensor.shape), _digest(data)


def _gathered(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a parameter that ZeRO-3 has split is whole."""
    if not hasattr(tensor, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters([tensor])


def _lasting(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what depends on where and how it was loaded."""
    return {key: value for key, value in config.items() if key not in LOADING}


def _plain(value: Any) -> Any:
    """Return a JSON-able value for a set or any other object."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
