"""The quickstart as it is typed: a real process makes everything from nothing, and goes on where it was left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

RUNS = ("start", "mmedpo", "dpo", "supervised", "text")


def quickstart(output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mmedpo.cli", "quickstart", "--scale", "0.02", "--output", output.name, *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(words, cwd=output.parent, env=environment, capture_output=True, text=True, check=False)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    made = quickstart(folder)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "Traceback" not in made.stderr
    return folder


def test_resume_with_other_settings_is_refused(copy: Path) -> None:
    (copy / "report.html").unlink()
    other = quickstart(copy, "--seed", "7", "--resume")
    assert other.returncode == 2 and "was started with other settings" in other.stderr
    assert "  - seed: 0 -> 7\n" in other.stderr


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    return shutil.copytree(output, tmp_path / "out")


def test_nothing_half_written_is_left(output: Path) -> None:
    assert sorted(entry.name for entry in output.parent.iterdir()) == ["out"]
    assert [path for path in output.rglob("*") if path.suffix in (".partial", ".tmp", ".ledger")] == []


def test_dataset_has_its_card_audit_and_manifest(output: Path) -> None:
    folder = output / "dataset"
    rows = load_dataset(str(folder), split="train")
    manifest, audit = read(folder / "manifest.json"), read(folder / "audit.json")
    assert manifest["counts"]["hallucinated_response"] > 0 and manifest["counts"]["lesion_noise"] > 0
    assert sum(manifest["counts"].values()) == audit["rows"] == len(rows)
    assert audit["faults"] == [] and len(set(rows["weight"])) > 1
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")


def test_adapter_loads_on_the_model_it_was_trained_from(output: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    model = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(output / "start"), str(output / "adapter")
    )
    trained = [weights for name, weights in model.named_parameters() if "lora_B" in name]
    assert trained and any(weights.abs().max() > 0 for weights in trained)  # LoRA starts with B = 0


def test_every_run_is_evaluated_and_compared(output: Path) -> None:
    sizes = set()
    for name in RUNS:
        results = read(output / "results" / name / "results.json")
        assert (results["name"], results["split"], results["format"]) == (name, "test", "mmedpo.results/1")
        assert 0 <= results["metrics"]["overall_accuracy"] <= 1
        sizes.add(len((output / "results" / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()))
    assert len(sizes) == 1 and sizes.pop() > 0
    comparison = read(output / "results" / "comparison.json")
    assert comparison["baseline"] == "start" and set(comparison["runs"]) == set(RUNS)


def test_what_lesion_pairs_change_is_measured_beside_as_many_steps_without_them(output: Path) -> None:
    steps = {name: read(output / name / "trainer_state.json")["global_step"] for name in ("adapter", "controls/text")}
    assert len(set(steps.values())) == 1
    kinds = {name: set(read(output / name / "training.json")["rows"]) for name in steps}
    assert kinds == {"adapter": {"hallucinated_response", "lesion_noise"}, "controls/text": {"hallucinated_response"}}
    comparison = read(output / "reliance" / "comparison" / "comparison.json")
    assert comparison["baseline"] == "text" and set(comparison["runs"]) == set(RUNS)
    lost = 100 * comparison["metrics"]["accuracy_drop_lesion_noise"]["mmedpo"]["value"]
    assert f"answers lose {lost:.1f} points".replace("-", "−") in (output / "report.html").read_text(encoding="utf-8")


def test_report_is_one_file(output: Path) -> None:
    html = (output / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)|url\(["']?([^"')]*)""", html)
    assert sources and all((one or other).startswith(("data:", "#")) for one, other in sources)
    assert not re.search(r"<(?:link|iframe|object|embed)\b|@import", html)
    assert str(output.parent) not in html


def test_finished_quickstart_is_refused_or_has_nothing_to_resume(output: Path) -> None:
    before = (output / "report.html").stat().st_mtime_ns
    again = quickstart(output)
    assert again.returncode == 2
    assert "out exists already; continue with --resume" in again.stderr
    resumed = quickstart(output, "--resume")
    assert resumed.returncode == 0
    assert "out is finished; nothing to resume" in resumed.stdout
    assert (output / "report.html").stat().st_mtime_ns == before


def test_quickstart_that_lost_its_end_is_completed(output: Path, copy: Path) -> None:
    kept = {path: path.stat().st_mtime_ns for path in copy.glob("*/*.json")}
    (copy / "report.html").unlink()
    shutil.rmtree(copy / "results" / "mmedpo")
    resumed = quickstart(copy, "--resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert (copy / "report.html").exists()
    answers = [folder / "results" / "mmedpo" / "predictions.jsonl" for folder in (output, copy)]
    assert answers[0].read_bytes() == answers[1].read_bytes()
    del kept[copy / "results" / "comparison.json"]
    changed = {path.name for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"audit.json"}  # what else is finished is not done again
