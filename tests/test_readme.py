"""README.md's Python is whole: it runs as it stands on a CPU, where `make quickstart` has run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

README = Path(__file__).resolve().parents[1] / "README.md"


def test_python_snippet_trains_and_saves_an_adapter(
    preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    quickstart = tmp_path / "runs" / "quickstart"
    quickstart.mkdir(parents=True)
    (quickstart / "start").symlink_to(tiny_model)
    (quickstart / "dataset").symlink_to(preferences)
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {"__name__": "__main__"}
    exec(compile(snippet, "README.md", "exec"), found)
    weights = load_file(tmp_path / "runs" / "python" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in weights} == {"q_proj", "v_proj"}
    assert all("language_model" in name for name in weights)
    assert any(torch.count_nonzero(tensor) for name, tensor in weights.items() if "lora_B" in name)  # LoRA starts at 0
