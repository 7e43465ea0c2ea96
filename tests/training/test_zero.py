"""DeepSpeed is imported by runs that ask for ZeRO, and by no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launches import ROOT, arguments

from mmedpo.errors import InputError
from mmedpo.training import zero
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.zero import leave_out  # as it is: while tests run, the command line is kept from calling it


@pytest.mark.parametrize(
    ("words", "launched", "asked"),
    [
        ([], None, False), (["train", "--config", "{plain}"], None, False), (["train"], "false", False),
        (["train"], "true", True), (["train", "--deepspeed", "ds.json"], None, True),
        (["train", "--config=x", "--deepspeed=ds.json"], None, True), (["train", "--config", "{zero}"], None, True),
        (["train", "--config={zero}"], None, True),
    ],
)  # fmt: skip
def test_deepspeed_is_left_out_unless_asked_for(
    words: list[str], launched: str | None, asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zero.yaml").write_text("beta: 0.1\ndeepspeed: ds.json\n")
    (tmp_path / "plain.yaml").write_text("beta: 0.1  # no deepspeed: here\n")
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", launched)
    leave_out([word.format(plain=tmp_path / "plain.yaml", zero=tmp_path / "zero.yaml") for word in words])
    assert ("deepspeed" in sys.modules) is not asked
    zero.require()  # as a resumed run does, to read what ZeRO wrote
    assert "deepspeed" not in sys.modules


def test_zero_where_deepspeed_cannot_be_installed_names_the_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    for ask in (lambda: leave_out(["--deepspeed", "x.json"]), lambda: MMedPOConfig("out", deepspeed="x.json")):
        with pytest.raises(InputError, match="marker sys_platform == 'linux'"):
            ask()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"), ("[1]", "must be a JSON object"),
        ('{"zero_optimization": 2}', "one with the stage"),
        ('{"zero_optimization": {"stage": 9}}', "one with the stage"),
        ('{"zero_optimization": {"stage": "two"}}', "one with the stage"),
    ],
)  # fmt: skip
def test_settings_of_deepspeed_that_cannot_be_read_are_refused_with_their_file(
    text: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(InputError, match=rf"ds\.json .*{message}"):
        MMedPOConfig("out", deepspeed=str(tmp_path / "ds.json"))


def test_a_training_without_zero_never_imports_deepspeed(preferences: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["train", *arguments(preferences, tiny_model, tmp_path / "out", max_steps=1)]
    code = f"""
import json, sys
from mmedpo.cli import main
try:
    main({words!r})
finally:  # typer ends by SystemExit
    print("found", json.dumps([name for name in sys.modules if name.startswith("deepspeed.")]), file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "found []" in done.stderr
    assert "deepspeed" in json.loads((tmp_path / "out" / "training.json").read_text())["versions"]
