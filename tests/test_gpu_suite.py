"""benchmarks/gpu_suite.py at toy size on the processor: what is recorded, whatever a part does."""

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention import flex_attention

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import gpu_parts  # noqa: E402
import gpu_suite  # noqa: E402

MEASURED = ("seconds", "pairs_per_s", "tokens_per_s", "gflop", "peak_mb")


@pytest.fixture
def suite(monkeypatch, capsys):
    """Return a function that runs the command and returns its record."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(*options):
        monkeypatch.setattr(gpu_suite, "STARTED", time.monotonic())
        gpu_suite.main(["--device", "cpu", *options])
        gc.unfreeze()
        return json.loads(capsys.readouterr().out)

    return run


def test_attempt_records_whatever_a_part_does():
    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    def absent():
        raise gpu_parts.NotRunError("flash-attn is not installed")

    failed = gpu_suite.attempt(fails, 1, 100)
    assert failed["status"] == "failed" and "Tried to allocate 9 GiB" in failed["reason"] and failed["where"]
    assert gpu_suite.attempt(absent, 1, 100) == {"status": "not run", "reason": "flash-attn is not installed"}
    assert gpu_suite.attempt(fails, 60, 20)["reason"] == "no time left: takes about 60 s, 20 s left"
    began = time.monotonic()
    assert gpu_suite.attempt(lambda: time.sleep(60), 1, 100, limit=0.2)["status"] == "stopped"
    assert gpu_suite.attempt(lambda: time.sleep(60), 0, 0.2)["status"] == "stopped"
    assert time.monotonic() - began < 30
    done = gpu_suite.attempt(lambda: {"loss": float("nan"), "seconds": [0.123456]}, 1, 100)
    assert done["result"] == {"loss": "nan", "seconds": [0.1235]}


def test_main_goes_on_after_a_failure_and_writes_after_every_part(suite, monkeypatch, tmp_path):
    output, seen = tmp_path / "new" / "suite.json", []

    def machine(self):
        raise RuntimeError("no kernel image is available for execution on the device")

    def families(self):
        seen.append(json.loads(output.read_text("utf-8"))["parts"])
        return {}

    monkeypatch.setattr(gpu_parts.Measurements, "machine", machine)
    monkeypatch.setattr(gpu_parts.Measurements, "families", families)
    names = ["machine", "train/sdpa/trees", "families"]
    record = suite("--preset", "toy", "--peak-tflops", "1", "--output", str(output), "--parts", *names)
    parts = record["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "machine": "failed", "model": "done", "train/sdpa/trees": "done", "train/sdpa/trees/checkpointed": "done",
        "families": "done",
    }  # fmt: skip
    assert "no kernel image" in parts["machine"]["reason"]
    assert seen == [{name: part for name, part in parts.items() if name != "families"}]
    assert json.loads(output.read_text("utf-8")) == record
    trees, again = (parts[f"train/sdpa/trees{more}"]["result"] for more in ("", "/checkpointed"))
    assert all(trees[name] > 0 for name in MEASURED)
    assert trees["mfu"] == pytest.approx(trees["gflop"] / 1e3 / trees["seconds"], rel=1e-2)
    assert again["losses"] == pytest.approx(trees["losses"], abs=1e-3)  # the model was as before
    assert again["gflop"] == trees["gflop"] and record["missing"] == {}


def test_nothing_starts_that_does_not_fit_into_the_budget(suite):
    parts = suite("--budget-s", "0")["parts"]  # the preset of 7B
    assert list(parts) == list(gpu_suite.PLAN) and {part["status"] for part in parts.values()} == {"not run"}
    assert parts["model"]["reason"] == "no time left: takes about 10 s, 0 s left"
    assert parts["train/sdpa/mmedpo"]["reason"] == "needs train/sdpa/first"
    assert parts["sharing/test"]["reason"] == parts["train/sdpa/trl"]["reason"] == "needs model"


def test_attention_is_exchanged_in_the_one_model(monkeypatch, tmp_path):
    """Torch's uncompiled FlexAttention has gradients on processors, once the checks for a GPU are out of its way."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    measured = gpu_parts.Measurements("toy", 0, None, tmp_path)
    measured.model()
    before = {name: value.clone() for name, value in measured.shared.state_dict().items()}
    dense = measured.train("sdpa", "trees")
    with pytest.raises(gpu_parts.NotRunError, match="on GPUs only"):
        measured.train("flex_attention", "trees")
    monkeypatch.setattr(gpu_parts, "require", lambda attention: None)
    with torch.compiler.set_stance("force_eager"):
        sparse = measured.train("flex_attention", "trees")
    assert measured.shared.get_decoder().config._attn_implementation == "flex_attention"
    assert sparse["losses"] == pytest.approx(dense["losses"], abs=1e-3) and sparse["gflop"] == dense["gflop"]
    after = measured.shared.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert "forward" not in vars(measured.shared)  # TRL's


def test_peaks_and_speedups():
    names = ("H200", "H100 80GB HBM3", "A100-SXM4-80GB", "H100 PCIe", "H200 NVL", "RTX")
    assert [gpu_suite.peak_of(f"NVIDIA {name}") for name in names] == [989, 989, 312, None, None, None]
    seconds = {"sdpa/trl": 8, "sdpa/compact": 6, "sdpa/trees": 0.5, "sdpa/trl/checkpointed": 9, "flex_attention/trl": 9}
    parts = {f"train/{name}": {"status": "done", "result": {"seconds": one}} for name, one in seconds.items()}
    parts |= {"train/sdpa/mmedpo": {"status": "failed"}, "machine": {"status": "done", "result": {}}}
    found = gpu_suite.speedups(parts)
    assert found["train/sdpa/trees"] == {"times_trl": 16, "times_compact": 12}
    assert found["train/sdpa/trl/checkpointed"] == found["train/flex_attention/trl"] == {"times_trl": 1}
    assert "train/sdpa/mmedpo" not in found and "machine" not in found


@pytest.mark.slow
def test_the_command_fills_every_part(tmp_path):
    typed = [sys.executable, ROOT / "benchmarks" / "gpu_suite.py", "--preset", "toy", "--device", "cpu"]
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=True)
    parts = json.loads(done.stdout)["parts"]
    here = {name for name in parts if "flex" not in name and "flash" not in name}
    assert list(parts) == list(gpu_suite.PLAN)
    assert {name for name, part in parts.items() if part["status"] == "done"} == here
    assert all(parts[name]["reason"] for name in parts.keys() - here)
    exact, rounded = (parts["gradients/sdpa"]["result"]["vqarad16"][dtype] for dtype in ("float32", "bfloat16"))
    assert all(found["loss"] < 1e-6 and found["tensor"] < 1e-5 for found in exact.values())
    assert all(1e-4 < found["gradient"] < 3e-2 for found in rounded.values())
    for case in parts["sharing/small"]["result"]["float32"].values():
        assert case["equal"] == case["answers"] and case["distinct"] > 1 and case["shares"] == "images"
    assert all(found["gradient"] < 1e-4 for found in parts["families"]["result"].values())
