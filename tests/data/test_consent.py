"""Consent to send restricted data elsewhere: typed for the run, said before the first request, recorded.

"Elsewhere" is a loopback server by an address that is none of this machine's names.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, Received
from hub.publishable import make_adapter, make_dataset
from hub.server import Hub
from huggingface_hub import constants
from invented import comparison
from typer.testing import CliRunner

from mmedpo import cli, report
from mmedpo.data import consent
from mmedpo.data.credentialed import FLAG
from mmedpo.data.origin import credentialed_source
from mmedpo.errors import InputError
from mmedpo.hub.publish import publish
from mmedpo.runs import hosts
from mmedpo.runs.json_files import read_json, write_json
from mmedpo.training.config import MMedPOConfig, RunArguments
from mmedpo.training.outgoing import consented

MakeSource = Callable[..., Path]
ROWS = [
    {"id": f"q{number}", "image": image, "question": f"Is number {number} ill?", "answer": "yes", "split": "test"}
    for number, image in enumerate(("a.png", "b.png"))
]
TEXT = json.dumps({"answer": "no", "kind": "finding", "choice": 1, "score": 0.5, "rationale": "so"})
KEY = FLAG.lstrip("-").replace("-", "_")


@pytest.fixture
def source(make_source: MakeSource) -> Path:
    folder = make_source(ROWS)
    (folder / "CREDENTIALED").touch()
    return folder


class Elsewhere:
    """A chat server that is not this machine by its name, and the order in which things were said and asked."""

    def __init__(self, server: ChatServer, order: list[str]) -> None:
        self.server, self.order = server, order
        self.model = f"{server.url.replace('127.0.0.1', '0.0.0.0')}#m"
        server.answer = self._answer

    def _answer(self, received: Received) -> Answer:
        self.order.append("request")
        return Answer(TEXT)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    order: list[str] = []
    announce = consent.announce
    monkeypatch.setattr(consent, "announce", lambda *what: (order.append("said"), announce(*what)))
    with ChatServer() as server:
        yield Elsewhere(server, order)


def commands(source: Path, model: str, output: Path) -> dict[str, list[str]]:
    curate = [
        "--source",
        str(source),
        "--chat",
        model,
        "--judges",
        model,
        "--judges-below-bar",
        "go",
        "--localizer",
        "none",
        "--output",
        str(output),
    ]
    return {
        "curate": ["curate", *curate],
        "images": ["curate", *curate, "--show-images"],
        "build": ["build", "folder", *curate, "--split", "test", "--license", "x"],
        "evaluate": ["evaluate", "--source", str(source), "--model", model, "--output", str(output)],
    }


@pytest.mark.parametrize(("command", "record", "images"), [
    ("curate", "manifest.json", False), ("images", "manifest.json", True), ("build", "manifest.json", False),
    ("evaluate", "results.json", True),
])  # fmt: skip
def test_consent_is_typed_said_first_and_recorded(
    source: Path, elsewhere: Elsewhere, tmp_path: Path, command: str, record: str, images: bool
) -> None:
    words = commands(source, elsewhere.model, tmp_path / "out")[command]
    ran = CliRunner().invoke(cli.app, [*words, FLAG])
    assert ran.exit_code == 0, ran.exception
    assert elsewhere.order[0] == "said" and elsewhere.order.count("said") == 1 and "request" in elsewhere.order
    how = "with" if images else "without"
    assert f"restricted data, and {FLAG} was given: 2 questions, {how} their images, to 0.0.0.0." in ran.stderr
    made = read_json(tmp_path / "out" / record)
    assert made["third_parties"] == {"to": ["0.0.0.0"], "questions": 2, "images": images}
    assert FLAG not in json.dumps(made.get("settings")) and KEY not in json.dumps(made.get("settings"))
    if record == "manifest.json":
        card = (tmp_path / "out" / "README.md").read_text()
        assert "| restricted data was sent, with consent, to | 0.0.0.0 (2 questions) |" in card


@pytest.mark.parametrize(("command", "step"), [
    ("curate", "mmedpo.data.shards.finish"), ("build", "mmedpo.data.shards.finish"),
    ("evaluate", "mmedpo.evaluation.score.write_json"),
])  # fmt: skip
def test_consent_of_an_interrupted_run_is_not_that_of_the_next(
    source: Path, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, step: str
) -> None:
    words = commands(source, elsewhere.model, tmp_path / "out")[command]

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step, interrupted)
        CliRunner().invoke(cli.app, [*words, FLAG])
    asked = len(elsewhere.server.received)
    assert asked and (tmp_path / "out.partial").exists()
    refused = CliRunner().invoke(cli.app, [*words, "--resume"])
    assert isinstance(refused.exception, InputError) and FLAG in str(refused.exception)
    assert len(elsewhere.server.received) == asked
    assert CliRunner().invoke(cli.app, [*words, "--resume", FLAG]).exit_code == 0


@pytest.mark.parametrize("command", ["curate", "build", "evaluate"])
@pytest.mark.parametrize("door", ["recipe", "environment", "abbreviation"])
def test_consent_comes_from_nowhere_else(
    source: Path, elsewhere: Elsewhere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, door: str
) -> None:
    words = commands(source, elsewhere.model, tmp_path / "out")[command]
    if door == "recipe":
        (tmp_path / "r.yaml").write_text(f"{KEY}: true\n")
        words += ["--config", str(tmp_path / "r.yaml")]
    elif door == "abbreviation":
        words += ["--send-credentialed-data"]
    for name in (KEY, f"MMEDPO_{KEY}", "MMEDPO_EVALUATE_THIRD_PARTIES") if door == "environment" else ():
        monkeypatch.setenv(name.upper(), "true")
    ran = CliRunner().invoke(cli.app, words)
    assert isinstance(ran.exception, InputError), ran.output
    assert not elsewhere.server.received and not (tmp_path / "out").exists()


def test_nothing_is_recorded_where_nothing_leaves(source: Path, tmp_path: Path) -> None:
    with ChatServer() as here:
        here.answer = lambda received: Answer(TEXT)
        words = commands(source, f"{here.url}#m", tmp_path / "out")["evaluate"]
        ran = CliRunner().invoke(cli.app, [*words, FLAG])
    assert ran.exit_code == 0 and "third_parties" not in read_json(tmp_path / "out" / "results.json")
    assert FLAG not in ran.stderr


@pytest.mark.parametrize(("model", "host"), [
    ("https://me:secret@api.example.org:8443/v1/key?token=secret#m", "api.example.org"),
    ("hub:org/model", "the Hugging Face Hub"), ("hub:org/model@provider", "the Hugging Face Hub (provider)"),
    ("http://b\u00fccher.example/v1#m", "xn--bcher-kva.example"),
])  # fmt: skip
def test_host_says_no_secret_of_an_address(model: str, host: str) -> None:
    assert hosts.host(model) == host


def test_announce_prints_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    consent.announce("a\x1b]0;x\x07\u202eb", ["h"], "all")
    said = capsys.readouterr().err
    assert said.startswith("a\ufffd]0;x\ufffd\ufffdb is restricted data") and said.isascii() is False
    assert not set(said) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize(("options", "record"), [
    ({"report_to": ["wandb", "tensorboard"]}, {"to": ["wandb"], "weights": False}),
    ({"report_to": ["none"], "push_to_hub": True}, {"to": ["the Hugging Face Hub"], "weights": True}),
])  # fmt: skip
def test_training_records_trackers_and_the_hub(tmp_path: Path, options: dict[str, Any], record: dict[str, Any]) -> None:
    config, run = MMedPOConfig(str(tmp_path), use_cpu=True, bf16=False, **options), RunArguments("pairs", "out")
    with pytest.raises(InputError):
        consented(run, config, "clinic")
    run.third_parties = True
    assert consented(run, config, "clinic") == {"third_parties": record}
    assert consented(run, MMedPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none"), "clinic") == {}


@pytest.mark.parametrize("quotes", [True, False])
def test_a_page_that_shows_texts_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str], quotes: bool) -> None:
    found = {**comparison(), "source": "clinic", "credentialed": True}
    record = report.write_report(tmp_path / "report.html", found, None, {}, quotes=quotes)
    said = capsys.readouterr().err
    if quotes:
        shown = {"to": ["report.html"], "questions": len(found["examples"]), "images": False}
        assert record == {"third_parties": shown}
        assert f"clinic is restricted data, and {FLAG} was given: texts and images of examples, to report.html" in said
    else:
        assert (record, said) == ({}, "")


def test_a_dataset_below_a_marked_folder_is_restricted(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path / "clinic" / "a" / "pairs", 3)
    assert credentialed_source(folder) is None
    (tmp_path / "clinic" / "CREDENTIALED").touch()
    assert credentialed_source(folder) == "pairs"


@pytest.mark.parametrize("role", ["target", "writer"])
def test_texts_of_a_model_that_was_trained_on_restricted_data_stay_here(
    corpus: Path, tiny_model: Path, elsewhere: Elsewhere, tmp_path: Path, role: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    write_json(model / "config.json", read_json(model / "config.json") | {"credentialed_source": "clinic"})
    models = ["--model", str(model), "--chat", elsewhere.model] if role == "target" else ["--chat", f"local:{model}"]
    words = ["curate", "--source", str(corpus), "--split", "test", "--limit", "1", "--localizer", "none", *models,
             "--judges", elsewhere.model, "--output", str(tmp_path / "out")]  # fmt: skip
    ran = CliRunner().invoke(cli.app, words)
    assert isinstance(ran.exception, InputError) and "which was trained on clinic" in str(ran.exception)
    assert not elsewhere.server.received


@pytest.mark.parametrize("spelled", ["mimic-cxr-dpo", "runs/link"])
def test_a_dataset_without_a_named_source_is_known_by_its_path(tmp_path: Path, spelled: str) -> None:
    folder = make_dataset(tmp_path / ("mimic-cxr-dpo" if spelled == "mimic-cxr-dpo" else "PadChest/d7"), 3)
    if spelled == "runs/link":
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "link").symlink_to(folder)
    assert credentialed_source(tmp_path / spelled) is None  # its manifest names another source, and so do its rows
    (folder / "manifest.json").unlink()
    assert credentialed_source(tmp_path / spelled) == folder.name


@pytest.mark.parametrize(("kind", "record"), [("dataset", "manifest.json"), ("adapter", "training.json")])
def test_publication_says_and_records(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    record: str,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    folder = make_dataset(tmp_path / "it", 3) if kind == "dataset" else make_adapter(tmp_path / "it")
    found = read_json(folder / record)
    sent = {"to": ["0.0.0.0"], "questions": 2, "images": False}
    marks = (
        {"source": {**found["source"], "credentialed": True}, "third_parties": sent}
        if kind == "dataset"
        else {"credentialed_source": "clinic"}
    )
    write_json(folder / record, found | marks)
    options = {"endpoint": hub.url, "token": "write", "confirm": lambda question: True, "fill": {}}
    publish(folder, "user/it", kind, third_parties=True, **options)
    assert f"{FLAG} was given" in capsys.readouterr().err
    store = "dataset" if kind == "dataset" else "model"
    there = json.loads(hub.files("user/it", store)[record])
    places = ["0.0.0.0", hosts.HUB] if kind == "dataset" else [hosts.HUB]
    assert there["third_parties"]["to"] == places
    assert "**Passed on with consent.**" in hub.files("user/it", store)["README.md"].decode()
    again = publish(folder, "user/it", kind, third_parties=True, **options)
    assert not again.plan
