"""Pushing over real HTTP, to a Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hub.server import Hub
from launches import ROOT, arguments


def train(hub: Hub, token: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *command, "--push_to_hub", "true"],
                          capture_output=True, text=True, check=False, env=hub.environment(token))  # fmt: skip


def publish(hub: Hub, *words: str) -> None:
    command = [sys.executable, "-m", "mmedpo.cli", "publish", *words, "--yes"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hub.environment())
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_adapter_trained_on_a_hub_dataset_is_pushed_privately_and_whole(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    publish(hub, str(preferences), "user/pairs")
    done = train(hub, "write", arguments(Path("user/pairs"), tiny_model, tmp_path / "adapter", max_steps=1))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(repo.id, repo.private) for repo in hub.store] == [("user/pairs", True), ("user/adapter", True)]
    output = tmp_path / "adapter"
    here = {str(file.relative_to(output)): file.read_bytes() for file in output.rglob("*") if file.is_file()}
    assert {"README.md", "adapter_model.safetensors", "curves.png", "training.json", "recipe.yaml"} <= here.keys()
    assert hub.files("user/adapter") == here
    assert not any(str(tmp_path).encode() in content for content in here.values())
    commit, card = hub.repo("user/pairs", "dataset").head.oid, here["README.md"].decode()
    assert f"| dataset | user/pairs, commit {commit} |" in card and "datasets:\n- user/pairs\n" in card
    assert "standin:rules" in card and "The images are phantoms" in card  # as the dataset's manifest on the Hub says
    assert json.loads(here["training.json"])["dataset_manifest"]["source"]["name"] == "phantom"


def test_who_the_hub_does_not_know_is_told_before_training(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = train(hub, "wrong", arguments(preferences, tiny_model, tmp_path / "adapter"))
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    told = " ".join(done.stderr.split())
    assert "push_to_hub: The Hub was asked who you are: HTTP 401" in told and "hf auth login" in told


def test_what_cannot_be_pushed_is_kept_and_the_way_to_push_it_is_said(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    hub.fail("/commit/", status=403, message="Your storage is full.")
    output = tmp_path / "adapter"
    done = train(hub, "write", arguments(preferences, tiny_model, output, max_steps=1, hub_model_id="user/mine"))
    assert done.returncode == 2 and (output / "training.json").exists()
    told = " ".join(done.stderr.split())
    assert "Your storage is full." in told and f"mmedpo publish --adapter {output} user/mine" in told
    hub.faults.clear()
    publish(hub, "--adapter", str(output), "user/mine")
    assert hub.files("user/mine")["training.json"] == (output / "training.json").read_bytes()
