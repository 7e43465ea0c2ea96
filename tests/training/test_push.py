"""Pushing over real HTTP, to a Hub on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub.accounts import Account
from hub.server import Hub
from hub.store import Blob, Repo
from huggingface_hub import constants
from launches import ROOT, arguments

from mmedpo.errors import InputError
from mmedpo.hub.publish import prepare as prepare_repository
from mmedpo.hub.publish.state import TITLE
from mmedpo.training.config import MMedPOConfig
from mmedpo.training.outgoing import Push, prepare
from tests.conftest import Run

PUSH = ("--push_to_hub", "true")


def train(hub: Hub, token: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *command, *PUSH],
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
    del here[".settings.sha256"]  # which stays here
    assert {"README.md", "adapter_model.safetensors", "curves.png", "training.json", "recipe.yaml"} <= here.keys()
    assert hub.files("user/adapter") == here
    assert not any(str(tmp_path).encode() in content for content in here.values())
    commit, card = hub.repo("user/pairs", "dataset").head.oid, here["README.md"].decode()
    assert f"| dataset | user/pairs, commit {commit} |" in card and "datasets:\n- user/pairs\n" in card
    assert "standin:rules" in card and "The images are phantoms" in card  # as the dataset's manifest on the Hub says
    assert json.loads(here["training.json"])["dataset_manifest"]["source"]["name"] == "phantom"


@pytest.mark.slow
def test_a_mixture_of_hub_and_folder_names_both_and_no_place_of_this_machine(
    hub: Hub, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    publish(hub, str(preferences), "user/pairs")
    mixed = {"dataset_name": ["user/pairs", preferences], "dataset_revision": ["main", "-"], "max_steps": 1}
    done = train(hub, "write", arguments(preferences, tiny_model, tmp_path / "adapter", **mixed))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "row ids are in more than one of user/pairs" in done.stderr
    sent, commit = hub.files("user/adapter"), hub.repo("user/pairs", "dataset").head.oid
    places = (str(preferences.parent).encode(), str(tmp_path).encode())
    assert not any(place in content for content in sent.values() for place in places)
    found = json.loads(sent["training.json"])["datasets"]
    assert [(one["name"], one["revision"], one["is_local"]) for one in found] == [
        ("user/pairs", commit, False), ("pairs", None, True)
    ]  # fmt: skip
    assert len({one["contents"] for one in found}) == 2  # one is the copy in the cache of `datasets`
    card = sent["README.md"].decode()
    assert f"| dataset | user/pairs, commit {commit} |" in card and "| dataset | pairs |" in card
    assert "datasets:\n- user/pairs\n" in card and "- pairs\n" not in card.split("---")[1]


def test_who_the_hub_does_not_know_is_told_before_training(
    hub_here: Hub, run: Run, preferences: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    code, said = run("train", *arguments(preferences, tiny_model, tmp_path / "adapter"), *PUSH)
    assert code == 2 and not list(tmp_path.iterdir())
    told = " ".join(said.split())
    assert "push_to_hub: The Hub was asked who you are: HTTP 401" in told and "hf auth login" in told


def test_what_cannot_be_pushed_is_kept_and_the_way_to_push_it_is_said(
    hub_here: Hub, run: Run, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    hub_here.fail("/commit/", status=403, message="Your storage is full.")
    output = tmp_path / "adapter"
    words = ["train", *arguments(preferences, tiny_model, output, max_steps=1, hub_model_id="user/mine"), *PUSH]
    code, said = run(*words)
    assert code == 2 and (output / "training.json").exists()
    told = " ".join(said.split())
    assert "Your storage is full." in told and f"mmedpo publish --adapter {output} user/mine" in told
    hub_here.faults.clear()
    code, said = run(*words, "--resume")
    assert code == 0 and "is finished; nothing to resume" in " ".join(said.split())
    assert hub_here.files("user/mine")["training.json"] == (output / "training.json").read_bytes()
    recorded = {
        **yaml.safe_load((output / "recipe.yaml").read_text()),
        **json.loads((output / "training.json").read_text())["config"],
    }
    assert not [key for key in recorded if key.startswith(("push_", "hub_"))]  # who repeats it must not write there


TRAINING = {"model": "a/b", "dataset": "c/d", "dataset_manifest": {"source": {}}}
ADDED = {"config.json": Blob(b"{}")}


def published(hub: Hub, name: str, training: dict[str, object]) -> Repo:
    repo = hub.put(name, {}, private=True)
    record = {"training.json": Blob(json.dumps(training).encode())}
    repo.commit("main", lambda files: files.update(record), f"{TITLE}: 1 file")
    return repo


def test_a_training_that_is_refused_leaves_no_repository(
    hub_here: Hub, run: Run, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    words = arguments(preferences, tiny_model, tmp_path / "adapter", hub_model_id="user/stray")
    code, said = run("train", *words, *PUSH)
    assert code == 2 and "exists already" in " ".join(said.split()) and not list(hub_here.store)


def to(hub: Hub) -> Push:
    hub.accounts["write"] = Account("user", orgs={"team": "write", "readers": "read"})
    return Push(
        lambda repo, training, token: prepare_repository(repo, "adapter", training, token=token, endpoint=hub.url),
        send=None,
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub_private_repo": False}, "a training pushes privately only"),
        ({"hub_model_id": "user/a name"}, "'user/a name' cannot be published to: the name is not allowed"),
        ({"hub_model_id": "other/open"}, "other/open is not yours: user may write to user, team\\."),
        ({"hub_model_id": "readers/new"}, "readers/new is not yours"),
        ({"hub_model_id": "user/added"}, "user/added: files .*: config.json\\. Choose"),
        ({"hub_model_id": "user/else"}, "user/else holds weights of a/b trained on its/pairs, and the new .* on c/d"),
        ({"hub_model_id": "user/open"}, "user/open is public, and its card has open fields"),
        ({"hub_token": "read"}, "The token of user is read-only"),
    ],
)
def test_what_cannot_be_pushed_or_would_be_public_unseen_is_refused_before_training(
    hub: Hub, settings: dict[str, object], said: str, tmp_path: Path, online: None
) -> None:
    open_card = b"[More information needed before publishing (license): which?]"
    hub.put("other/open", {})
    hub.put("user/open", {"README.md": open_card, ".mmedpo/card.md": open_card})
    published(hub, "user/added", TRAINING).commit("main", lambda files: files.update(ADDED), "Upload config.json")
    published(hub, "user/else", {**TRAINING, "dataset": "its/pairs"})
    before = {repo.id: repo.head.oid for repo in hub.store}
    config = MMedPOConfig(use_cpu=True, push_to_hub=True, **{"hub_token": "write", **settings})
    with pytest.raises(InputError, match=f"^push_to_hub: .*{said}.* later: mmedpo publish --adapter FOLDER"):
        prepare(tmp_path / "adapter", config, to(hub), TRAINING)
    assert {repo.id: repo.head.oid for repo in hub.store} == before


def test_where_it_may_be_pushed_is_known_before_training_and_nothing_is_made(
    hub: Hub, tmp_path: Path, online: None
) -> None:
    hub.put("user/said", {"README.md": b"Under MIT.", ".mmedpo/card.md": b"Under MIT."})
    published(hub, "user/before", TRAINING)
    before = {repo.id: repo.head.oid for repo in hub.store}
    for name in (None, "team/mine", "user/said", "user/before"):
        config = MMedPOConfig(use_cpu=True, push_to_hub=True, hub_token="write", hub_model_id=name)
        prepare(tmp_path / "adapter", config, to(hub), TRAINING)
    assert {repo.id: repo.head.oid for repo in hub.store} == before


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
