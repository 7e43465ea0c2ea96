"""Reference log-probabilities, computed once and kept on disk across epochs, seeds and sweeps.

The reference never changes, so that what it says of an answer is a fact about the pair. A fact is found again by two
names: the file's (`fingerprint`: the model as it answers, its processor, the settings) and the entry's (`row_key`: the
pair's texts and images). Each name digests what it stands for, not where that came from, so that a stale value is not
found: it has another name.

A value is the one of its first computation. The same pair computed again, in a batch padded otherwise or on another
device, differs from it by rounding, which is coarse in bfloat16.
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
    HERE.parent / name for name in ("models/vision_language.py", "data/images.py", "data/image_modes.py")
]  # of what the model is shown
PACKAGES = ("torch", "torchvision", "transformers", "tokenizers", "peft", "bitsandbytes", "pillow")
NO_PART_OF_THE_MODEL = {"_name_or_path", "_commit_hash", "transformers_version", "use_cache"}
LEFT_BY_LAST_CALL = {  # or by the way of loading, in a processor's files
    "tokenizer.json": {"truncation", "padding"},
    "tokenizer_config.json": {"is_local", "local_files_only", "name_or_path"},
}


def fingerprint(
    model: Any, processor: Any, settings: Mapping[str, Any] | None = None, trained: Collection[str] = ()
) -> str:
    """A digest of all that decides the reference's log-probabilities, but for the pairs: 32 hexadecimal digits.

    It covers every byte of every tensor as it is in memory (merged, cast or quantised), the configurations of model and
    adapters, attention implementations, the processor's serialised files with the chat template, the versions of the
    libraries that compute, and this package's training code. Names and folders are no part of it; nor are LoRA's
    settings, so that runs which differ in them share their reference.

    Args:
        model: the reference, maybe with PEFT's adapters; the tensors of ZeRO-3 are gathered, so that all processes must
            call this together.
        settings: JSON-able; what else decides the numbers, such as `max_length` and mixed precision.
        trained: names of adapters that the reference is without.

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
    """A pair's digest (int64, 2), as numbers so that a batch carries it: its texts and the images of both sides.

    Images are pictures or {"bytes", "path"}; of a picture its pixels count, of the latter the undecoded bytes.
    """
    images = [image_digest(image) for image in row["images"]]
    rejected = [image_digest(image) for image in row.get("rejected_images") or []] or images
    return digest_key([row["prompt"], row["chosen"], row["rejected"], images, rejected])


def digest_key(value: Any) -> torch.Tensor:
    """The digest of a JSON-able value as numbers (int64, 2)."""
    said = json.dumps(value, sort_keys=True)
    return torch.frombuffer(bytearray(xxhash.xxh3_128(said.encode()).digest()), dtype=torch.int64)


class ReferenceCache:
    """Summed log-probabilities of both sides of pairs, kept in `folder`, in a ledger named after `fingerprint`.

    All processes of a launch hold all values and take each step together; only the main one touches the disk, so that
    machines need no folder in common. Several runs of one machine may use a folder at once.

    Raises:
        InputError: the ledger is damaged.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._ledger = Ledger(folder / f"{fingerprint}.ledger")
        self._known: dict[tuple[int, int], tuple[float, float]] = {}
        # What stops the main process must stop all: a process left alone would wait for the others for ever.
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
        """Log-probabilities of the chosen and the rejected side of each pair (float32, B x 2), computed where unknown.

        All processes call this together, and `compute` is called in all or in none, since ZeRO-3's model can only be
        run by all: if any of them misses a pair, all compute, and each tells the others what it found.

        Args:
            keys: `row_key`s of the batch (int64, B x 2).
            compute: makes the batch's log-probabilities (float, B x 2).
        """
        found = self.lookup(keys)
        if reduce(found.isnan().any().float(), "max"):
            found = torch.where(found.isnan(), compute().detach().float(), found)
            self.store(keys, found)
        return found

    def lookup(self, keys: torch.Tensor) -> torch.Tensor:
        """What is known of each pair (float32, B x 2, on the device of `keys`), NaN where nothing is."""
        missing = (torch.nan, torch.nan)
        values = [self._known.get((first, second), missing) for first, second in keys.tolist()]
        return torch.tensor(values, dtype=torch.float32, device=keys.device)

    def store(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep `values` (float32, B x 2) but those of known pairs and NaN; all processes call this together."""
        entries = [(*key, *value) for key, value in zip(keys.tolist(), values.tolist(), strict=True)]
        new = {}
        for first, second, chosen, rejected in gather_object(entries):
            if (first, second) not in self._known and not (math.isnan(chosen) or math.isnan(rejected)):
                self._known[first, second] = (chosen, rejected)
                new[f"{first},{second}"] = (first, second, chosen, rejected)
        if new and PartialState().is_main_process:
            self._ledger.update(new)

    def close(self) -> None:
        """Leave one whole file; without it, as after a kill, the last values are in SQLite's log beside the file."""
        self._ledger.close()


def _digest(data: Any) -> str:
    """XXH3 of 128 bits: no secret is kept by it, and it reads ten gigabytes a second."""
    return xxhash.xxh3_128(data).hexdigest()


def _tensors(model: Any, trained: Collection[str]) -> Iterator[tuple[str, str, list[int], str]]:
    """Name, dtype, shape and digest of each tensor of the state, quantisation constants included; names are those of
    the model before it got adapters."""
    new = re.compile(rf"\.(lora_\w+|modules_to_save)\.({'|'.join(map(re.escape, trained))})(\.|$)")
    for name, tensor in model.state_dict(keep_vars=True).items():
        if trained and new.search(name):
            continue
        with _gathered(tensor):
            if tensor.is_meta:
                raise InputError(
                    f"The weights {name} are not in memory, so that the reference cannot be recognised. Load the whole "
                    "model, or train without the cache of reference log-probabilities."
                )
            data = tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
            plain = re.sub(r"^base_model\.model\.|\.base_layer|\.original_module", "", name)
            yield plain, str(tensor.dtype), list(tensor.shape), _digest(data)


@contextmanager
def _gathered(tensor: torch.Tensor) -> Iterator[None]:
    """ZeRO-3 leaves an empty tensor of each parameter in place; inside the block it is whole."""
    if not hasattr(tensor, "ds_id"):
        yield
        return
    from deepspeed import zero

    with zero.GatheredParameters([tensor]):
        yield


def _processor(processor: Any) -> dict[str, Any]:
    """The files that the processor would be loaded from, and its parts' classes, which the files may leave open."""
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
    """A JSON value without the entries of these names, at any depth."""
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A JSON-able value for one that JSON does not know."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def image_digest(image: Any) -> str:
    """A digest of a picture's pixels and mode, or of an undecoded image's bytes."""
    if isinstance(image, Mapping):
        return _digest(Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"])
    shown = f"{image.mode} {image.size} {image.getpalette()} {image.info.get('transparency')}"
    return f"{shown} {_digest(image.tobytes())}"
