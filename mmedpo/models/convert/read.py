"""Files and tensors of a checkpoint in a folder or on the Hub, read one file at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.data import hub
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class Place:
    """Folder, Hub repository, or a subfolder of either. Unreadable files raise InputError."""

    name: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}/{self.subfolder}" if self.subfolder else self.name

    def file(self, name: str) -> Path | None:
        """Return the path of a file, downloaded if needed; None if there is none."""
        from transformers.utils.hub import cached_file

        where = {"subfolder": self.subfolder, "revision": self.revision}
        with readable(self):
            found = cached_file(self.name, name, _raise_exceptions_for_missing_entries=False, **where)
        return Path(found) if found else None

    def load(self, kind: Any, **options: Any) -> Any:
        """Return `kind.from_pretrained` of this place."""
        with readable(self):
            return kind.from_pretrained(self.name, subfolder=self.subfolder, revision=self.revision, **options)

    def weights(self) -> list[Path]:
        """Return the files of the model's weights; safetensors come before torch's own format."""
        from transformers.utils.hub import get_checkpoint_shard_files

        name, found = next(((name, path) for name in WEIGHTS if (path := self.file(name))), ("", None))
        if found is None:
            raise InputError(
                f"{self} has none of {', '.join(WEIGHTS)}. Give a complete checkpoint: merge an adapter or projector "
                "into its base model first."
            )
        if not name.endswith(".index.json"):
            return [found]
        where = {"subfolder": self.subfolder, "revision": self.revision}
        with readable(found):
            files = [Path(file) for file in get_checkpoint_shard_files(self.name, str(found), **where)[0]]
        if absent := [file.name for file in files if not file.exists()]:
            raise InputError(f"{self} lacks {', '.join(absent)}, which its {name} lists; download it again.")
        return files


@contextmanager
def readable(what: object) -> Iterator[None]:
    """Translate library errors about a broken or missing `what` to InputError."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise InputError(f"{what} cannot be read: {hub.why_unread(error, str(what))}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or `torch.save` file by name, read lazily from disk.

    Raises:
        InputError: the file is torn, or holds more than named tensors (pickled code is never run).
    """
    import pickle
    import zipfile

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        lazily = zipfile.is_zipfile(path)  # files of torch before 1.6 are no zip and cannot be mapped
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise InputError(f"{path.name} cannot be read as weights: {str(error).splitlines()[0]}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"{path.name} contains more than named tensors; give the model's weights only.")
    return tensors
