"""Disk cache of the reference model's log-probabilities, across epochs, seeds and sweeps.

The reference never changes, so its log-probabilities depend on the pair only. A value is found by the name of its file
(`fingerprint`: model, processor, settings) and of its entry (`row_key`: texts and images of the pair). Both are digests
of contents, not of places, so that a stale value is never found.

A cached value is that of the first computation. Other padding or another device gives a value that differs by rounding,
which is coarse in bfloat16.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, is_peft_model, reduce
from transformers import PreTrainedModel

from mmedpo.errors import InputError
from mmedpo.runs.ledger import Ledger

HERE = Path(__file__).parent
READERS = [
    HERE.parent / name
    for name in ("models/answers.py", "models/vision_language.py", "data/images.py", "data/image_modes.py")
]  # code that prepares the model's input
PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "peft", "bitsandbytes", "pillow")
NO_PART_OF_THE_MODEL = {"_name_or_path", "_commit_hash", "transformers_version", "use_cache"}
LEFT_BY_LAST_CALL = {  # entries of processor files that the last call or the way of loading leaves behind
    "tokenizer.json": {"truncation", "padding"},
    "tokenizer_config.json": {"is_local", "local_files_only", "name_or_path"},
}


def fingerprint(
    model: Any, processor: Any, settings: Mapping[str, Any] | None = None, trained: Collection[str] = ()
) -> str:
    """Return a digest (32 hexadecimal digits) of all that decides the reference's log-probabilities, except the pairs.

    It covers every tensor in memory (merged, cast or quantised), configurations of model and adapters, attention
    implementations, the processor's files with the chat template, library versions, and this package's training code.
    Names, folders and LoRA settings of the trained adapter are left out, so that such runs share their reference.

    Args:
        model: the reference, maybe with PEFT adapters. ZeRO-3 gathers its tensors, so all processes must call together.
        settings: JSON-able settings that change the numbers, such as `max_length` and mixed precision.
        trained: names of adapters that are not part of the reference.

    Raises:
        InputError: tensors are not in memory (offloaded, or on the meta device).
    """
    configs = model.peft_config if is_peft_model(model) else {}
    adapters = {name: config for name, config in configs.items() if name not in trained}
    parts = {
        "tensors": sorted(_tensors(model, trained)),
        "config": _without(json.loads(model.config.to_json_string(use_diff=False)), NO_PART_OF_THE_MODEL),
        "attention": sorted(
            {
                f"{type(module).__name__}: {module.config._attn_implementation}"
                for module in model.modules()
                if isinstance(module, PreTrainedModel)
            }
        ),
        "adapters": {
            name: {key: value for key, value in config.to_dict().items() if key != "base_model_name_or_path"}
            for name, config in adapters.items()
        },
        "active": [name for name in model.active_adapters if name in adapters] if adapters else [],
        "processor": _processor(processor),
        "settings": settings,
        "versions": _versions(),
        "code": {file.name: _digest(file.read_bytes()) for file in (*HERE.glob("*.py"), *READERS)},
    }
    return _digest(json.dumps(parts, sort_keys=True, default=_plain).encode())


def row_key(row: Mapping[str, Any]) -> torch.Tensor:
    """Return a pair's digest as numbers (int64, 2), which a batch can carry: its texts and the images of both sides.

    Images are pictures, whose pixels count, or {"bytes", "path"}, whose undecoded bytes count.
    """
    images = [image_digest(image) for image in row["images"]]
    rejected = [image_digest(image) for image in row.get("rejected_images") or []] or images
    said = json.dumps([row["prompt"], row["chosen"], row["rejected"], images, rejected], sort_keys=True)
    return torch.frombuffer(bytearray(xxhash.xxh3_128(said.encode()).digest()), dtype=torch.int64)


class ReferenceCache:
    """Summed log-probabilities of both sides of pairs, in a ledger in `folder` named after `fingerprint`.

    All processes hold all values and call together; only the main process uses the disk, so that machines need no
    shared folder. Several runs on one machine may share a folder.

    Raises:
        InputError: the ledger is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._ledger = Ledger(folder / f"{fingerprint}.ledger")
        self._known: dict[tuple[int, int], tuple[float, float]] = {}
        # An error of the main process must stop all, or the others would wait for ever.
        loaded: list[Any] = [None]
        if PartialState().is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                loaded = [[tuple(entry) for entry in self._ledger.values()]]
                self._ledger.close()
            except (InputError, OSError, sqlite3.DatabaseError) as error:
                loaded = [
                    InputError(
                        f"The reference log-probabilities in {self._ledger.path} cannot be used "
                        f"({error.__cause__ or error}). Remove the file, and they will be computed again, or name "
                        "another folder."
                    )
                ]
        broadcast_object_list(loaded)
        if isinstance(loaded[0], InputError):
            raise loaded[0]
        self._known.update(((first, second), (chosen, rejected)) for first, second, chosen, rejected in loaded[0])

    def __len__(self) -> int:
        return len(self._known)

    def get(self, keys: torch.Tensor, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return log-probabilities of both sides of each pair (float32, B x 2, chosen first); compute missing ones.

        All processes call this together. If one process misses a pair, all call `compute`, since all must run ZeRO-3's
        model, and exchange the new values.

        Args:
            keys: `row_key`s of the batch (int64, B x 2).
            compute: returns the batch's log-probabilities (float, B x 2).
        """
        found = self.lookup(keys)
        if reduce(found.isnan().any().float(), "max"):
            found = torch.where(found.isnan(), compute().detach().float(), found)
            self.store(keys, found)
        return found

    def lookup(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the known values of each pair (float32, B x 2, on the device of `keys`), NaN where unknown."""
        missing = (torch.nan, torch.nan)
        values = [self._known.get((first, second), missing) for first, second in keys.tolist()]
        return torch.tensor(values, dtype=torch.float32, device=keys.device)

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `values` (float32, B x 2), except known pairs and NaN; all processes call this together."""
        entries = [(*key, *value) for key, value in zip(keys.tolist(), values.tolist(), strict=True)]
        new = {}
        for first, second, chosen, rejected in gather_object(entries):
            if (first, second) not in self._known and not (math.isnan(chosen) or math.isnan(rejected)):
                self._known[first, second] = (chosen, rejected)
                new[f"{first},{second}"] = (first, second, chosen, rejected)
        if new and PartialState().is_main_process:
            self._ledger.update(new)

    def close(self) -> None:
        """Merge SQLite's log into the ledger, so that one whole file is left."""
        self._ledger.close()


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


@contextmanager
def _gathered(tensor: torch.Tensor) -> Iterator[None]:
    """Gather a parameter that ZeRO-3 has split, inside the block."""
    if not hasattr(tensor, "ds_id"):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):
        yield


def _processor(processor: Any) -> dict[str, Any]:
    """Return digests of the processor's files, and the classes of its parts, which files may leave open."""
    parts: dict[str, Any] = {name: type(getattr(processor, name)).__name__ for name in processor.get_attributes()}
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        for file in Path(folder).rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                if file.name in LEFT_BY_LAST_CALL:
                    left = LEFT_BY_LAST_CALL[file.name]
                    kept = {key: value for key, value in json.loads(data).items() if key not in left}
                    data = json.dumps(kept, sort_keys=True).encode()
                parts[str(file.relative_to(folder))] = _digest(data)
    return parts


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _without(value: Any, keys: Collection[str]) -> Any:
    """Return a JSON value without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Return a JSON-able value for a set or any other object."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def image_digest(image: Any) -> str:
    """Return a digest of a picture's pixels and mode, or of an undecoded image's bytes."""
    if isinstance(image, Mapping):
        return _digest(Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"])
    shown = f"{image.mode} {image.size} {image.getpalette()} {image.info.get('transparency')}"
    return f"{shown} {_digest(image.tobytes())}"
