"""Fixtures for all tests: a phantom corpus, a tiny model trained on it, and a preference dataset made from both.

Each is made once a session, from files on disk, with no network; tests must not write into them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from hub.server import Hub
from real_chat_server import serve
from standins import STANDINS

# A shell in the background ignores Ctrl-C, and the processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# These are read when their library is imported, which is after this file.
_datasets_cache = tempfile.TemporaryDirectory(prefix="mmedpo-tests-")
os.environ["HF_DATASETS_CACHE"] = _datasets_cache.name
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # as commands do, whichever test imports datasets first

IMAGES = {"supervised": 12, "preference": 10, "validation": 6, "test": 8}
MakeSource = Callable[..., Path]
Run = Callable[..., tuple[int, str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the expected outputs of tests/golden anew")


@pytest.fixture(scope="session", autouse=True)
def deepspeed_stays() -> Iterator[None]:
    """Commands are run in this process too, in which later tests ask for ZeRO."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmedpo.training.zero.leave_out", lambda words: None)
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source folder of phantoms, with the splits of `IMAGES`."""
    from mmedpo.quickstart import phantom

    folder = tmp_path_factory.mktemp("phantoms") / "corpus"
    phantom.write(folder, IMAGES, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny vision-language model that knows the corpus's words and little else."""
    from mmedpo.quickstart import tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.make(corpus, "supervised", steps=5, output=folder)
    return folder


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random YOLOS that reports 5 boxes an image, of two labels."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessorPil

    folder = tmp_path_factory.mktemp("models") / "yolos"
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, id2label={0: "mass", 1: "fluid"}, label2id={"mass": 0, "fluid": 1},
        initializer_range=0.5,
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preferences(corpus: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated dataset folder: the corpus's preference split with the tiny model as target, both kinds of pairs."""
    from mmedpo.curation.run import curate_folder
    from mmedpo.curation.settings import Settings
    from mmedpo.runs.run_folder import output_folder

    folder = tmp_path_factory.mktemp("datasets") / "pairs"
    settings = Settings(source=corpus, split="preference", model=str(tiny_model), **STANDINS)
    with output_folder(folder, settings.record()) as working:
        curate_folder(settings, working, "mmedpo curate")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, questions and released scores beside the checkout (never part of the project)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not part of the project, and there is none in {folder}")
    return folder


@pytest.fixture(scope="session")
def png() -> bytes:
    """A grey 32 x 32 PNG of chance pixels, so that half of its bytes cannot be decoded."""
    return _png(0)


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A loopback endpoint; no key and no proxy of the environment gets in between."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    with ChatServer() as server:
        yield server


@pytest.fixture(scope="session")
def _real_chat() -> Iterator[str]:
    with serve() as chat:
        yield chat


@pytest.fixture
def real_chat(_real_chat: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A real chat model on a loopback endpoint, as `--chat` and `--judges` name it; skips where it is not installed."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MMEDPO_API_KEY", raising=False)
    return _real_chat


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A loopback Hub; its clients run in processes of their own, for they read where the Hub is when imported."""
    with Hub(tmp_path_factory.mktemp("clients")) as server:
        yield server


@pytest.fixture
def hub_here(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The loopback Hub as libraries of this process find it too, logged in as `user`, with an empty cache."""
    import datasets
    from huggingface_hub import constants

    files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for name, value in {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": files, "HF_HUB_OFFLINE": False,
                        "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(hub.home / "cache")}.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_DATASETS_OFFLINE": False}.items():
        monkeypatch.setattr(datasets.config, name, value)
    for name, value in {"HF_TOKEN": "write", "NO_PROXY": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    return hub


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in this process, in an empty folder; return its exit code and all it printed, errors first."""
    from mmedpo import cli

    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")

    def invoke(*words: object) -> tuple[int, str]:
        code = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        captured = capsys.readouterr()
        return code, captured.err + captured.out

    return invoke


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write the image file of a kind (`pictures.KINDS`)."""

    def write(kind: str) -> Path:
        from tests.pictures import KINDS

        name, make = KINDS[kind]
        (tmp_path / name).write_bytes(make())
        return tmp_path / name

    return write


@pytest.fixture
def make_source(tmp_path: Path) -> MakeSource:
    """Make a source folder: `images` maps names to bytes (by default a.png and b.png); the table is `text` as it
    stands, or one JSON line for each of `rows`."""

    def make(
        rows: Iterable[dict[str, Any]] = (),
        text: str | bytes | None = None,
        table: str = "samples.jsonl",
        images: dict[str, bytes] | None = None,
        name: str = "source",
    ) -> Path:
        folder = tmp_path / name
        for file, data in (images or {"a.png": _png(1), "b.png": _png(2)}).items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        if text is None:
            text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / table).write_bytes(text if isinstance(text, bytes) else text.encode())
        return folder

    return make


def _png(seed: int) -> bytes:
    import io

    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
