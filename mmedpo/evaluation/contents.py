"""Check that a resumed evaluation has the same model, adapter and questions, by their contents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mmedpo.errors import AlreadyFinished, Fault, InputError
from mmedpo.evaluation.score import Row, read_by_id, write_lines
from mmedpo.models import restricted
from mmedpo.models.adapters import adapter_contents
from mmedpo.models.fingerprint import model_contents
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.json_files import sha256

QUESTIONS = "questions.jsonl"
CALLED = {  # names of its columns in a table or dataset
    "reference": "gold answer", "image_digest": "image", "pair_digest": "the rejected side or another part of the pair",
}  # fmt: skip
REMEDY = (
    "Answers depend on their batch, so single questions cannot be answered again. Restore the rows, or start a new run "
    "with another --output."
)


@dataclass(frozen=True)
class ModelSpec:
    """Names of a model and optionally an adapter: folders or Hub ids, with revisions."""

    model: str
    adapter: str | None = None
    revision: str | None = None
    adapter_revision: str | None = None

    def contents(self) -> dict[str, str | None]:
        """Return the digests of "model" and "adapter"; None without an adapter.

        Raises:
            InputError: model or adapter cannot be read.
        """
        return {
            "model": model_contents(self.model, self.revision),
            "adapter": self.adapter and adapter_contents(self.adapter, self.adapter_revision),
        }

    def restricted_by(self) -> str | None:
        """Return the evidence that answers of this model are restricted data, or None."""
        return restricted.evidence(self.model, self.adapter, self.revision, self.adapter_revision)

    def open(self, contents: Mapping[str, str | None]) -> VisionLanguageModel:
        """Load the model and check it against the digests `contents`.

        Raises:
            InputError: the model cannot be loaded, or model or adapter was replaced meanwhile.
        """
        opened = VisionLanguageModel(self.model, self.adapter, self.revision, adapter_revision=self.adapter_revision)
        if replaced := [role for role, digest in self.contents().items() if digest != contents[role]]:
            names = ", ".join(f"{role} {getattr(self, role)!r}" for role in replaced)
            raise InputError(
                f"{names} changed while it was loaded, perhaps by a running training. Wait for its end or use a copy, "
                "then run the same command again."
            )
        return opened


def keep(rows: Sequence[Row], path: Path) -> str:
    """Write questions.jsonl and return the SHA-256 of the file.

    Raises:
        InputError: `path` holds other questions, of the run that is resumed.
    """
    refuse_changed(rows, path)
    part = path.with_name(path.name + ".tmp")
    write_lines(part, rows)
    part.replace(path)
    return sha256(path)


@contextmanager
def still(output: Path, rows: Callable[[], Sequence[Row]]) -> Iterator[None]:
    """Refuse changed questions where a finished run in `output` would raise AlreadyFinished."""
    try:
        yield
    except AlreadyFinished:
        refuse_changed(rows(), output / QUESTIONS)
        raise


def refuse_changed(rows: Sequence[Row], path: Path) -> None:
    """Raise InputError, which lists all differences, where questions.jsonl exists and differs from `rows`.

    Columns that only one side has come from another version and are not compared.
    """
    if not path.exists():
        return
    before, now = read_by_id(path)[0], {row["id"]: row for row in rows}
    changed = {id_: _changed(row, before[id_]) for id_, row in now.items() if id_ in before}
    faults = [
        Fault(id_, ", ".join(names), "changed since the start of the run") for id_, names in changed.items() if names
    ]
    counted = {"changed": len(faults)}
    for what, ids in (("new", now.keys() - before), ("missing", before.keys() - now)):
        faults += [Fault(id_, "(row)", f"is {what}") for id_ in sorted(ids)]
        counted[what] = len(ids)
    if not faults and list(before) == list(now):
        return
    said = ", ".join(f"{count} {what}" for what, count in counted.items() if count) or "another order"
    raise InputError(
        f"{path.parent}: the questions differ from those at the start: {said}, of {len(before)}. {REMEDY}", faults
    )


def _changed(row: Row, before: Row) -> list[str]:
    # JSON text, since NaN is not equal to itself.
    return [
        CALLED.get(name, name) for name in row if name in before and json.dumps(row[name]) != json.dumps(before[name])
    ]
