"""The README's round trip over HTTP: a source becomes pairs on the Hub, an adapter on the Hub, and results in its card.

The Hub is a loopback one, the model a tiny stand-in; every client and command is the real one.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from hub.server import ROOT, Hub
from huggingface_hub import ModelCard

from mmedpo.data.images import digest, open_rgb

STANDINS = "--chat standin:rules --judges standin:strict standin:lenient standin:lexical"
TRAIN = "--config recipes/quickstart.yaml --max_steps 2 --logging_steps 1 --save_strategy no"
ROWS = """
from datasets import load_dataset
from mmedpo.data.images import digest
def rows(streaming):
    dataset = load_dataset("user/vqa-rad-mmedpo", split="train", streaming=streaming)
    columns = ("id", "chosen", "rejected", "weight")
    return [[*(row[column] for column in columns), [digest(image) for image in row["images"]]] for row in dataset]
say([rows(False), rows(True)])
"""


@pytest.fixture
def tiny(tmp_path: Path, shared_data: Path) -> Path:
    from mmedpo.quickstart import tiny

    tiny.make(shared_data / "vqa-rad", "train", steps=3, output=tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.slow
def test_from_a_source_to_results_on_the_hub(hub: Hub, tiny: Path, shared_data: Path, tmp_path: Path) -> None:
    hub.put("user/tiny", {file.name: file.read_bytes() for file in tiny.iterdir() if file.is_file()})
    output, source = tmp_path / "out", shared_data / "vqa-rad"
    stages = {"BUILD": f"{STANDINS} --limit 24 --shard_size 200KB", "TRAIN": TRAIN, "EVALUATE": "--limit 20"}
    environment = hub.environment(
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", OMP_NUM_THREADS="1", **stages
    )
    done = subprocess.run(
        ["bash", "recipes/round_trip.sh", "user", source, "user/tiny", output],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    made = [row for file in sorted((output / "pairs" / "data").glob("*.parquet")) for row in _rows(file.read_bytes())]
    plain, streamed = hub.ask(ROWS)
    assert plain == streamed and len(plain) == len(made) == 24
    for row, (id_, chosen, rejected, weight, digests) in zip(made, plain, strict=True):
        assert [id_, chosen, rejected, weight] == [row[name] for name in ("id", "chosen", "rejected", "weight")]
        assert digests == [digest(open_rgb(image["bytes"])) for image in row["images"]]

    files = hub.files("user/vqa-rad-mmedpo-adapter")
    card = ModelCard(files["README.md"].decode())
    assert files["adapter_model.safetensors"] == (output / "adapter" / "adapter_model.safetensors").read_bytes()
    assert (card.data.base_model, card.data.datasets) == ("user/tiny", ["user/vqa-rad-mmedpo"])
    evaluated = json.loads(
        (output / "after" / "results.json").read_text()
    )  # the Hub's adapter knows its base's weights
    assert evaluated["adapter_checked_by"] == "fingerprint" and len(evaluated["model_fingerprint"]) == 64
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found.keys() >= {"overall_accuracy", "closed_accuracy", "open_f1"}
    commit = hub.repo("user/vqa-rad-mmedpo", "dataset").head.oid
    assert f"commit {commit}" in card.content  # of the data it was trained on
    for name, repo in {"tiny": "user/tiny", "pairs": "user/vqa-rad-mmedpo"}.items():
        assert str(tmp_path / name) not in card.content and repo in card.content
    shutil.rmtree(output)


def _rows(shard: bytes) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = parquet.read_table(io.BytesIO(shard)).to_pylist()
    return rows
