"""Ledger of finished work: JSON values by key on disk, safe against a kill, so that no work is done or paid twice."""

from __future__ import annotations

import errno
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmedpo.errors import InputError
from mmedpo.runs import bounded_json, writable
from mmedpo.runs.journal import Store, to_json

COLUMNS = ["key", "value", "kept"]
IO_ERROR = "disk I/O error"  # SQLite's words, also where a full disk has no room for its index
LITTLE = 2**20  # free bytes of a disk that counts as full
PAGES = 8192  # 32 MB of commits before they are moved into the file, which waits for the disk
PATIENCE = 60.0  # seconds to wait for another process's write


class Ledger:
    """SQLite file of JSON values by key, without a copy in memory.

    A value has reached the operating system when `put` returns. Several processes of one machine may share a ledger.
    The first value creates the file.

    Args:
        frozen: nobody writes to the file meanwhile, so that it may be read on a network file system, without locks.

    Raises:
        InputError: by any method, if `path` is no ledger, has another layout, or is damaged.
    """

    def __init__(self, path: Path, frozen: bool = False) -> None:
        self.path, self._frozen = path, frozen
        self._database: sqlite3.Connection | None = None

    def __contains__(self, key: str) -> bool:
        return self._found(key) is not None

    def __getitem__(self, key: str) -> Any:
        row = self._found(key)
        if row is None:
            raise KeyError(key)
        return self._value(row[0])

    def get(self, key: str) -> Any:
        """Return the value, or None."""
        row = self._found(key)
        return None if row is None else self._value(row[0])

    def select(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of those keys that it has, in one query; at most some thousand keys."""
        query = f"SELECT key, value FROM entries WHERE key IN ({','.join('?' * len(keys))})"
        return {key: self._value(value) for key, value in self._read(query, *keys)}

    def values(self) -> Iterator[Any]:
        """Yield all values in the order of their keys."""
        for (value,) in self._read("SELECT value FROM entries ORDER BY key"):
            yield self._value(value)

    def __iter__(self) -> Iterator[str]:
        """Yield all keys in order."""
        for (key,) in self._read("SELECT key FROM entries ORDER BY key"):
            yield key

    def drop(self, keys: Iterable[str]) -> None:
        """Delete these keys in one transaction."""
        if self._database is not None or self.path.exists():
            database = self._opened()
            with self._faults(), database:
                database.executemany("DELETE FROM entries WHERE key = ?", ((key,) for key in keys))

    def put(self, key: str, value: Any, keep: bool = True) -> None:
        """Record `value`; with `keep` false it is deleted when the run is resumed (`forget`)."""
        self.update({key: value}, keep)

    def update(self, values: Mapping[str, Any], keep: bool = True) -> None:
        """Record all `values` in one transaction."""
        rows = [(key, to_json(value), keep) for key, value in values.items()]
        if not rows:
            return
        database = self._opened()
        with self._faults(), database:
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def forget(self) -> None:
        """Delete values recorded with `keep` false, so that a resumed run tries them again."""
        if self.path.exists():
            database = self._opened()
            with self._faults(), database:
                database.execute("DELETE FROM entries WHERE NOT kept")

    def copy(self, to: Path) -> None:
        """Write a copy, which may be read as `frozen` while this file changes."""
        working = writable.beside(to)
        with self._faults(), closing(sqlite3.connect(working)) as copy:
            self._opened().backup(copy)
        working.replace(to)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _found(self, key: str) -> Any:
        return next(self._read("SELECT value FROM entries WHERE key = ?", key), None)

    def _read(self, query: str, *values: Any) -> Iterator[Any]:
        if self._database is not None or self.path.exists():
            database = self._opened()
            with self._faults():
                yield from database.execute(query, values)

    def open(self) -> None:
        """Check that the file can be used, before any work is done or paid for."""
        writable.exists(writable.beside(self.path), "--cache")  # raises for a name that is too long
        if self.path.exists():
            self._opened()
            return
        try:
            with TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise self._unusable(str(error.strerror)) from error

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            with self._faults():
                self._database = self._connected()
        return self._database

    def _value(self, text: Any) -> Any:
        try:
            return bounded_json.loads(text)
        except (ValueError, TypeError) as error:
            raise self._unusable(f"an entry is not JSON: {error}") from None

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if "full" in str(error) or (str(error) == IO_ERROR and shutil.disk_usage(self.path.parent).free < LITTLE):
                raise OSError(errno.ENOSPC, str(error), str(self.path)) from error
            raise self._unusable(str(error)) from error

    def _unusable(self, why: str) -> InputError:
        return InputError(
            f"{self.path} cannot be used as a ledger or cache ({why}). Give another file in an existing folder, "
            "or remove it if its content is not needed."
        )

    def _connected(self) -> sqlite3.Connection:
        # In notebooks, chat clients run in another thread.
        address = f"{self.path.absolute().as_uri()}?{'immutable=1' if self._frozen else ''}"
        database = sqlite3.connect(address, timeout=PATIENCE, check_same_thread=False, uri=True)
        try:
            if not self._frozen:
                database.execute("PRAGMA journal_mode = WAL")  # one append per commit
                database.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the last commits
                database.execute(f"PRAGMA wal_autocheckpoint = {PAGES}")
                with database:
                    database.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT, kept INT)")
            # A file copied while it was written may lack pages, and be misread without an error.
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("database disk image is malformed")
            found = [name for _, name, *_ in database.execute("PRAGMA table_info(entries)")]
            if found != COLUMNS:
                raise sqlite3.DatabaseError(f"another version wrote it: its columns are {', '.join(found)}")
        except BaseException:
            database.close()
            raise
        return database


class Overlay:
    """New values over those of a ledger, which is only read."""

    def __init__(self, new: Store, ledger: Ledger) -> None:
        self.path, self._new, self._ledger = ledger.path, new, ledger

    def open(self) -> None:
        self._ledger.open()

    def select(self, keys: Sequence[str]) -> dict[str, Any]:
        new = {key: value for key in keys if (value := self._new.get(key)) is not None}
        return self._ledger.select(keys) | new

    def update(self, values: Mapping[str, Any]) -> None:
        self._new.update(values)
