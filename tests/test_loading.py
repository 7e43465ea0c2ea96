"""Loading a dataset: what `datasets` is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from mmedpo.data import loading


def test_load_splits_reads_no_file_ahead(preferences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow's buffers would hold 1.7 GB of a file of 1.5 GB, against 0.4 GB."""
    asked: list[dict[str, Any]] = []
    inner = datasets.load_dataset

    def spy(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return inner(*args, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", spy)
    assert loading.load_splits(str(preferences))["train"].num_rows
    assert [kwargs["fragment_scan_options"].pre_buffer for kwargs in asked] == [False]
