"""Journal of finished work: JSON values by key, appended to a file by one writer at a time.

A line is `key<TAB>mark<TAB>value`, with key and value as JSON. The last line of a key counts. Unlike a database, it
needs no locks, so that it may lie on a network file system; other processes may read it at any time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mmedpo.errors import InputError
from mmedpo.runs import bounded_json

KEPT, LOST, DROPPED = b"1", b"0", b"-"
to_json = json.JSONEncoder(ensure_ascii=False).encode
Place = tuple[int, int, bool]  # of a value: offset and length in bytes; whether it is kept


class Store(Protocol):
    """What stores of values by key have in common: ledgers, journals and their parts."""

    def get(self, key: str) -> Any: ...

    def update(self, values: Mapping[str, Any]) -> None: ...


class Journal:
    """Values by key. A value has reached the operating system when `put` returns; the first one creates the file.

    A kill can cut the last line off, which then does not count; what is written next replaces it. Places of values are
    held in memory, values are not; a journal that is only written holds nothing.

    Raises:
        InputError: by any method, if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, Place] | None = None
        self._file: FileIO | None = None
        self._reader: BinaryIO | None = None

    def part(self, name: str) -> Part:
        """Return the view of the keys under `name`, which share this file with others."""
        return Part(self, f"{name}/")

    def __contains__(self, key: str) -> bool:
        return key in self._known()

    def __getitem__(self, key: str) -> Any:
        return self._value(self._known()[key])

    def get(self, key: str) -> Any:
        """Return the value, or None."""
        place = self._known().get(key)
        return None if place is None else self._value(place)

    def __iter__(self) -> Iterator[str]:
        """Yield all keys, in the order in which they came."""
        yield from list(self._known())

    def put(self, key: str, value: Any, keep: bool = True) -> None:
        """Record `value`; with `keep` false it is deleted by `forget`, as a resumed run begins."""
        self.update({key: value}, keep)

    def update(self, values: Mapping[str, Any], keep: bool = True) -> None:
        """Record all `values` in one write."""
        self._append((key, KEPT if keep else LOST, value) for key, value in values.items())

    def drop(self, keys: Iterable[str]) -> None:
        """Delete these keys."""
        if self.path.exists():
            known = self._known()
            self._append((key, DROPPED, None) for key in keys if key in known)

    def forget(self) -> None:
        """Delete values recorded with `keep` false, so that a resumed run tries them again."""
        self.drop([key for key, (_, _, kept) in self._known().items() if not kept])

    def close(self) -> None:
        for file in (self._file, self._reader):
            if file is not None:
                file.close()
        self._places = self._file = self._reader = None

    def _append(self, entries: Iterable[tuple[str, bytes, Any]]) -> None:
        lines = [
            (key, mark, b"\t".join((_encoded(key), mark, _encoded(value))) + b"\n") for key, mark, value in entries
        ]
        if not lines:
            return
        if self._file is None:
            self._file = self._opened()
        start = self._file.tell()
        data = b"".join(line for *_, line in lines)
        if self._file.write(data) != len(data):
            raise OSError(f"{self.path}: a line was not written whole")
        if self._places is not None:
            for key, mark, line in lines:
                self._note(key, mark, start, line)
                start += len(line)

    def _opened(self) -> FileIO:
        """Return the file, open at its end, without a line that a kill cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("ab", buffering=0)  # closed by `close`
        with self.path.open("rb") as written:
            file.truncate(whole(written))
        file.seek(0, os.SEEK_END)
        return file

    def _known(self) -> dict[str, Place]:
        if self._places is None:
            self._places = {}
            with suppress(FileNotFoundError), self.path.open("rb") as file:
                start = 0
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    key, mark = self._read_key(line)
                    self._note(key, mark, start, line)
                    start += len(line)
        return self._places

    def _note(self, key: str, mark: bytes, start: int, line: bytes) -> None:
        assert self._places is not None
        if mark == DROPPED:
            self._places.pop(key, None)
        else:
            value = line.rindex(b"\t") + 1
            self._places[key] = (start + value, len(line) - 1 - value, mark == KEPT)

    def _read_key(self, line: bytes) -> tuple[str, bytes]:
        try:
            key, mark, _ = line.split(b"\t")
            name = json.loads(key)
            if mark not in (KEPT, LOST, DROPPED) or not isinstance(name, str):
                raise ValueError("unknown form of a line")
        except ValueError as error:
            raise self._damaged(error) from None
        return name, mark

    def _value(self, place: Place) -> Any:
        if self._reader is None:
            self._reader = self.path.open("rb")  # closed by `close`
        start, length, _ = place
        self._reader.seek(start)
        try:
            return bounded_json.loads(self._reader.read(length))
        except ValueError as error:
            raise self._damaged(error) from None

    def _damaged(self, why: Exception) -> InputError:
        return InputError(
            f"{self.path} is damaged ({why}). Remove it and run the same command with --resume: its part of the work "
            "is done again."
        )


class Part:
    """Keys of a journal under a prefix, which the view leaves out; methods as `Journal`."""

    def __init__(self, journal: Journal, prefix: str) -> None:
        self.journal, self.prefix = journal, prefix

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.journal

    def __getitem__(self, key: str) -> Any:
        return self.journal[self.prefix + key]

    def get(self, key: str) -> Any:
        return self.journal.get(self.prefix + key)

    def __iter__(self) -> Iterator[str]:
        yield from (key.removeprefix(self.prefix) for key in self.journal if key.startswith(self.prefix))

    def values(self) -> Iterator[Any]:
        for key in self:
            yield self[key]

    def put(self, key: str, value: Any, keep: bool = True) -> None:
        self.update({key: value}, keep)

    def update(self, values: Mapping[str, Any], keep: bool = True) -> None:
        self.journal.update({self.prefix + key: value for key, value in values.items()}, keep)

    def drop(self, keys: Iterable[str]) -> None:
        self.journal.drop([self.prefix + key for key in keys])


def whole(file: BinaryIO) -> int:
    """Return the length in bytes of a file's whole lines."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 2**16)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _encoded(value: Any) -> bytes:
    return to_json(value).encode("utf-8", "surrogatepass")
