"""Verdicts of reviewers: JSON lines that are only appended to, beside the dataset."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from mmedpo.data.text import number_of
from mmedpo.errors import InputError

ACCEPT, REJECT, UNSURE = DECISIONS = ("accept", "reject", "unsure")
BETTER = ("chosen", "rejected", "neither")  # answers of a blind review
EDITED = ("chosen", "rejected", "boxes")  # fields that a reviewer may change
BOX, MORE = ("label", "x", "y", "width", "height"), ("confidence", "image")
NEEDED = ("id", "row", "digest", "reviewer", "time", "decision")  # fields of each verdict
LONGEST = 20_000  # characters of an edited text or a reason
FARTHEST = 10**6  # pixels, of a box
NAME = 80  # characters of a reviewer's name


@dataclass(frozen=True)
class Verdict:
    """What a reviewer said of a row, at one time; a later one of the same reviewer takes its place.

    Attributes:
        id: of the verdict. Sent twice, it is written once.
        row: id of the row.
        digest: of the row as it was shown (`pairs.digest`).
        time: of the verdict, ISO 8601 in UTC.
        seconds: from showing the pair to the verdict; None if unknown.
        reason: words of the reviewer.
        relevance: clinical relevance by the reviewer, in [0, 1]; None if not given.
        better: side that a blind reviewer found better, one of `BETTER`; None for a review that was not blind.
        before, after: fields of `EDITED` that the reviewer changed. Swapped sides are two changed texts.
    """

    id: str
    row: str
    digest: str
    reviewer: str
    time: str
    decision: str
    seconds: float | None = None
    reason: str = ""
    relevance: float | None = None
    better: str | None = None
    before: Mapping[str, Any] = field(default_factory=dict)
    after: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise InputError(f"A verdict on {self.row!r} cannot be used: {fault}.")


class Verdicts:
    """File of verdicts, which several servers and commands may append to at the same time.

    A line that is no JSON, such as one that a kill cut short, is left where it is, and counted in `broken`.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.broken = file, 0
        self._lock = FileLock(f"{file}.lock")
        self._all: dict[str, Verdict] = {}  # by id
        self._read_to, self._lines = 0, 0  # bytes and lines that are whole
        self._seen = 0  # bytes, with a last line that is being written

    def all(self) -> list[Verdict]:
        """Return the verdicts in the order in which they were given, those of other writers included.

        Raises:
            InputError: a line is no verdict.
        """
        size = self.file.stat().st_size if self.file.exists() else 0
        if size < self._read_to:  # another file, or shortened
            self._forget()
        if size > self._read_to:
            with self.file.open("rb") as lines:
                lines.seek(self._read_to)
                for line in lines:
                    if line.endswith(b"\n"):
                        self.broken += not self._add(line)
                        self._read_to, self._lines = self._read_to + len(line), self._lines + 1
                    else:
                        self._add(line)  # the last, being written or cut short, unless it is whole
                self._seen = lines.tell()
        return [*self._all.values()]

    def check(self) -> None:
        """Raise OSError where verdicts could not be written, InputError as `all`."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self.file.exists():
                self.file.open("ab").close()
        self.all()

    def last(self) -> dict[tuple[str, str], Verdict]:
        """Return the last verdict of each (row, reviewer)."""
        return {(one.row, one.reviewer): one for one in self.all()}

    def copy(self, target: Path) -> None:
        """Write what was read until now to another file, without what others have appended since."""
        with self.file.open("rb") as file:
            target.write_bytes(file.read(self._seen))

    def append(self, verdicts: Iterable[Verdict]) -> int:
        """Write verdicts that are not there yet, whole and to the disk; return how many they were."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            known = {one.id for one in self.all()}
            new = {one.id: one for one in verdicts if one.id not in known}
            if new:
                with self.file.open("ab") as file:
                    if self.file.stat().st_size > self._read_to:
                        file.write(b"\n")  # ends a line that was cut short
                    file.write("".join(json.dumps(asdict(one)) + "\n" for one in new.values()).encode())
                    file.flush()
                    os.fsync(file.fileno())
        self.all()
        return len(new)

    def _forget(self) -> None:
        self._all, self._read_to, self._seen, self._lines, self.broken = {}, 0, 0, 0, 0

    def _add(self, line: bytes) -> bool:
        """Add the verdict of a line; return False if it is no JSON."""
        if not line.strip():
            return True
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return False
        try:
            verdict = read(found)
        except InputError as error:
            raise InputError(f"{self.file}, line {self._lines + 1}: {error} Remove the line.") from None
        self._all[verdict.id] = verdict
        return True


def beside(dataset: Path) -> Path:
    """Return the default file of a dataset folder's verdicts."""
    folder = dataset.resolve()
    return folder.with_name(f"{folder.name}.verdicts.jsonl")


def read(record: Any) -> Verdict:
    """Return the verdict of a JSON record.

    Raises:
        InputError: it is none, or holds values that no reviewer can give.
    """
    if not isinstance(record, dict):
        raise InputError(f"A verdict is an object of {', '.join(one.name for one in fields(Verdict))}.")
    known = {one.name for one in fields(Verdict)}
    if wrong := sorted({*record} - known):
        raise InputError(f"A verdict has the unknown field {wrong[0]!r}; known are {', '.join(sorted(known))}.")
    if missing := [one.name for one in fields(Verdict) if one.name not in record and one.name in NEEDED]:
        raise InputError(f"A verdict lacks {', '.join(missing)}.")
    return Verdict(**record)


def _fault(verdict: Verdict) -> str | None:
    """Return why a verdict cannot be used, or None."""
    if not isinstance(verdict.before, Mapping) or not isinstance(verdict.after, Mapping):
        return "before and after are objects of changed fields"
    texts = [getattr(verdict, name) for name in ("id", "row", "digest", "reviewer", "time", "reason")]
    if not all(isinstance(text, str) for text in texts):
        return "id, row, digest, reviewer, time and reason are texts"
    if max(map(len, texts)) > LONGEST:
        return f"a reason has at most {LONGEST:,} characters, and so has an id"
    if not all(map(_is_writable, [*texts, *verdict.before.values(), *verdict.after.values()])):
        return "a text has half of a character (a lone surrogate); type it again"
    if not verdict.reviewer.strip() or len(verdict.reviewer) > NAME or not verdict.reviewer.isprintable():
        return f"a reviewer has a name of 1 to {NAME} printable characters"
    if verdict.decision not in DECISIONS:
        return f"the decision is one of {', '.join(DECISIONS)}"
    if verdict.better is not None and verdict.better not in BETTER:
        return f"the better side is one of {', '.join(BETTER)}"
    if verdict.relevance is not None and not (_is_number(verdict.relevance) and 0 <= verdict.relevance <= 1):
        return "clinical relevance lies in [0, 1]"
    if verdict.seconds is not None and not (_is_number(verdict.seconds) and verdict.seconds >= 0):
        return "seconds are a number from 0"
    if verdict.before.keys() != verdict.after.keys() or not {*verdict.after} <= {*EDITED}:
        return f"before and after hold the same fields, of {', '.join(EDITED)}"
    for changed in (verdict.before, verdict.after):
        if fault := next(filter(None, (_field_fault(name, value) for name, value in changed.items())), None):
            return fault
    return None


def _field_fault(name: str, value: Any) -> str | None:
    if name != "boxes":
        if not isinstance(value, str) or not value.strip() or len(value) > LONGEST:
            return f"the {name} text has 1 to {LONGEST:,} characters; reject the pair instead of emptying it"
        return None
    if not isinstance(value, Sequence) or isinstance(value, str):
        return "boxes are a list"
    for box in value:
        if not isinstance(box, Mapping) or not {*BOX} <= {*box} <= {*BOX, *MORE} or not isinstance(box["label"], str):
            return f"a box has {', '.join(BOX)} and may have {', '.join(MORE)}"
        if type(box.get("image", 0)) is not int or box.get("image", 0) < 0:
            return "the image of a box is its number, from 0"
        if not all(_is_number(box[side]) for side in BOX[1:]) or box["width"] <= 0 or box["height"] <= 0:
            return "a box has four numbers in pixels, width and height above 0"
        if max(abs(box[side]) for side in BOX[1:]) > FARTHEST:
            return f"a box lies within {FARTHEST:,} pixels"
        if not (_is_number(box.get("confidence", 1)) and 0 <= box.get("confidence", 1) <= 1):
            return "the confidence of a box lies in [0, 1]"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_writable(value: Any) -> bool:
    """Return False for a text, or boxes with a label, that has no UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def counted(verdicts: Iterable[Verdict]) -> str:
    """Return the count of verdicts and reviewers in words."""
    given = [*verdicts]
    return f"{number_of(len(given), 'verdicts')} of {number_of(len({one.reviewer for one in given}), 'reviewers')}"
