"""Files to publish, on disk or in memory, and the rows of Parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile
    from pyarrow.parquet import ParquetFile


@dataclass(frozen=True)
class File:
    """A file to publish, on disk or in memory; its hashes are computed once."""

    source: Path | bytes

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest() if isinstance(self.source, bytes) else sha256(self.source)

    def equals(self, there: RepoFile) -> bool:
        """Return whether a file on the Hub has the same content, by hash."""
        if self.size != there.size:
            return False
        if there.lfs is not None:
            return self.sha256 == there.lfs.sha256
        return hashlib.sha1(b"blob %d\0" % self.size + self.read()).hexdigest() == there.blob_id

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()

    def parquet(self) -> ParquetFile:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source)

    def rows(self, but: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Yield rows of a Parquet file without the columns in `but`; images undecoded, classes as numbers.

        Raises:
            InputError: as `whole_parquet`.
        """
        with whole_parquet("the publication" if isinstance(self.source, bytes) else str(self.source)):
            table = self.parquet()
            columns = [column for column in table.schema_arrow.names if column not in but]
            for batch in table.iter_batches(batch_size=32, columns=columns):
                yield from batch.to_pylist()


@contextmanager
def whole_parquet(place: str) -> Iterator[None]:
    """Raise InputError for a damaged Parquet file of `place` that is read inside the block."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0].removesuffix(".")
        raise InputError(f"{place}: a Parquet file is damaged ({reason}). Write the dataset again.") from error
