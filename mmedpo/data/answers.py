"""Gold answers of a source as a dataset, for supervised training: `source:FOLDER` in place of a dataset's name.

The test split is left out, so that no option trains on it. A row has the columns of the preference schema except
`dispreference`: its rejected side is the chosen one, which only a loss of the chosen side takes.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import changes, credentialed
from mmedpo.data.samples import Sample
from mmedpo.data.sources import Source, read_source
from mmedpo.data.tables import find_table
from mmedpo.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

PREFIX = "source:"
TEST = "test"


def named(dataset: str) -> bool:
    """Return True where a dataset's name means the gold answers of a source."""
    return dataset.startswith(PREFIX)


def is_test(split: str) -> bool:
    """Return True for a source's test split, whose name may be "Test" or "testing" too."""
    return split.strip().casefold().startswith(TEST)


def read(dataset: str) -> Source:
    """Return the source without its test split, split as every command splits it.

    Raises:
        InputError: as `read_source`, or rows are faulty.
    """
    table = find_table(Path(dataset.removeprefix(PREFIX)))
    return _read(table.resolve(), table.stat().st_mtime_ns)


@lru_cache(2)
def _read(table: Path, written: int) -> Source:
    source = read_source(table)
    if source.faults:
        with credentialed.hiding_cells(source.credentialed):
            raise InputError(f"Faulty rows in {source.name}. Correct them, or drop them:", source.faults)
    source.samples = [sample for sample in source.samples if not is_test(sample.split)]
    return source


def splits(dataset: str) -> dict[str, Dataset]:
    """Return the questions of each split but the test split, with undecoded images. Raises as `read`."""
    from datasets import Dataset

    parts: dict[str, list[dict[str, Any]]] = {}
    for sample in read(dataset).samples:
        parts.setdefault(sample.split, []).append(_row(sample))
    return {
        part: Dataset.from_list(rows, features=schema.features_of(rows[0])).remove_columns("dispreference")
        for part, rows in parts.items()
    }


def contents(dataset: str, parts: Collection[str]) -> str:
    """Return the SHA-256 (hexadecimal) of the questions, answers and images of these splits."""
    return changes.digest_of(changes.of_samples(one for one in read(dataset).samples if one.split in parts))


def _row(sample: Sample) -> dict[str, Any]:
    answer = [{"role": "assistant", "content": sample.answer}]
    return {
        "id": f"{sample.source}/{sample.id}",
        "images": [{"bytes": None, "path": str(image.file)} for image in sample.images],
        "rejected_images": None,
        "prompt": [{"role": "user", "content": sample.prompt}], "chosen": answer, "rejected": answer,
        "weight": 1.0, "clinical_relevance": None, "dispreference": None, "task": sample.task,
        "source": sample.source, "license": sample.license,
        "provenance": {
            **dict.fromkeys(schema.FEATURES["provenance"]),
            "sample_id": sample.id, "image_id": sample.image_id, "patient_id": sample.patient_id,
        },
    }  # fmt: skip
