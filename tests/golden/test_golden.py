"""Outputs of every stage are what they were. After a change that is meant: `pytest tests/golden --regenerate`.

The rendered outputs lie in `expected/`; `render.py` says what is left out of them, and how exact numbers are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden import chain, helps, refusals, render


@pytest.mark.parametrize("make", [chain.make, refusals.make, helps.make], ids=["chain", "refusals", "help"])
def test_outputs_are_the_expected_ones(
    make: Callable[[Path], dict[str, str]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = make(tmp_path)
    if request.config.getoption("regenerate"):
        render.write(found)
    differences = [render.difference(name, text) for name, text in found.items()]
    assert not any(differences), "\n\n".join(filter(None, differences))
