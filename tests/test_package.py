"""The wheel: what it holds, and that it works where it is installed, from another folder and without the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TOP = ("dataset_builders", "eval", "model_cards", "recipes")
LEAN = ("__pycache__", "*.egg-info")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def run(words: list[str], folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env={**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build(kind: str, sources: Path, output: Path) -> Path:
    """A wheel or an sdist of `sources`, by the build backend that pyproject.toml names."""
    output.mkdir()
    name = run([sys.executable, "-c", BUILD, f"build_{kind}", str(output)], sources).stdout.split("\n")[-2]
    return output / name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from an sdist, as an index and a packager do."""
    folder = tmp_path_factory.mktemp("package")
    sources = folder / "sources"
    for name in (*TOP, "mmedpo"):
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns(*LEAN))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    archive = build("sdist", sources, folder / "sdist")
    shutil.unpack_archive(archive, folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an empty environment with the wheel in it, which borrows its dependencies from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run([sys.executable, "-m", "venv", "--without-pip", str(folder)], folder)
    installed = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # Lines of a .pth file add a folder, whose own .pth files (such as an editable mmedpo's) are not read.
    (installed / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    return str(folder / "bin" / "python")


def test_wheel_of_an_sdist_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {"mmedpo": "mmedpo", **{name: f"mmedpo/_share/{name}" for name in TOP}}
    files = {
        f"{place}/{path.relative_to(ROOT / name).as_posix()}"
        for name, place in wanted.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files


def test_installed_package_is_itself_and_loads_its_metrics_from_any_folder(python: str, tmp_path: Path) -> None:
    code = """
import json, mmedpo, evaluate, socket
socket.socket.connect = None  # evaluate.load may ask nobody
metric = evaluate.load(mmedpo.metric("med_vqa"))
found = metric.compute(predictions=["yes"], references=["Yes"], answer_types=["CLOSED"])
print(json.dumps([mmedpo.__file__, mmedpo.metric("med_vqa"), found["closed_accuracy"]]))
"""
    module, folder, accuracy = json.loads(run([python, "-c", code], tmp_path).stdout)
    home = Path(python).parents[1]
    assert Path(module).is_relative_to(home) and Path(folder).is_relative_to(home) and accuracy == 1.0


def test_installed_package_builds_a_dataset_with_its_card(python: str, tmp_path: Path) -> None:
    listed = run([python, "-m", "mmedpo", "build", "--help"], tmp_path).stdout
    assert all(path.stem in listed for path in (ROOT / "dataset_builders").glob("*.py"))
    (tmp_path / "source").mkdir()
    for number in range(4):
        picture = Image.new("RGB", (32, 32), (40 * number, 90, 90))
        picture.putpixel((0, 0), (0, 0, 0))
        picture.save(tmp_path / "source" / f"{number}.png")
    rows = [
        {"image": f"{number}.png", "question": "Where is the mass?", "answer": "left upper lobe",
         "boxes": [{"x": 4, "y": 4, "width": 9, "height": 9}]}
        for number in range(4)
    ]  # fmt: skip
    (tmp_path / "source" / "samples.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    words = ["build", "folder", "--source", "source", "--license", "cc0-1.0", "--chat", "none", "--judges", "none"]
    done = run([python, "-m", "mmedpo", *words, "--localizer", "boxes", "--output", "pairs"], tmp_path)
    counts = json.loads((tmp_path / "pairs" / "manifest.json").read_text())["counts"]
    assert set(counts) == {"lesion_noise"} and counts["lesion_noise"] > 0, done.stdout
    assert (tmp_path / "pairs" / "README.md").read_text().startswith("---\n")


@pytest.mark.slow
def test_installed_package_runs_the_quickstart(python: str, tmp_path: Path) -> None:
    run([python, "-m", "mmedpo", "quickstart", "--scale", "0.02", "--output", "out"], tmp_path)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"dataset", "adapter", "results", "report.html"}
    for made in ("dataset", "adapter"):
        assert (tmp_path / "out" / made / "README.md").read_text().startswith("---\n")
