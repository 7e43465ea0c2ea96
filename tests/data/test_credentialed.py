"""Restricted data that cannot leave: every way out is tried, with real HTTP on this machine, and once more with the
flag that opens it, which shows that the test would have seen it. All data is invented."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import credentialed_tree
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_server import Answer, ChatServer, Received
from credentialed_tree import FINDINGS
from hub.publishable import EXAMPLES, make_adapter, make_dataset
from hub.server import ROOT, Hub
from huggingface_hub import HfApi, constants
from standins import JUDGES, WORDS
from typer.testing import CliRunner

from mmedpo import cli, report
from mmedpo.curation.run import curate_folder
from mmedpo.curation.settings import Settings
from mmedpo.data.credentialed import FLAG, first, is_credentialed
from mmedpo.data.loading import load, load_splits
from mmedpo.data.origin import credentialed_source
from mmedpo.data.sources import read_source, refuse_faults
from mmedpo.errors import InputError, Stopped
from mmedpo.evaluation.compare import compare
from mmedpo.hub.publish import publish
from mmedpo.quickstart import tiny
from mmedpo.runs.hosts import is_loopback
from mmedpo.runs.json_files import read_json, write_json

MakeSource = Callable[..., Path]
SECRET = "Secret'cell"
OTHER = "A long text about somebody."  # what a model elsewhere writes
FILLED = {"license": "other", "privacy": "nobody is named"}
YES = {"confirm": lambda question: True}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the invented tree and the dataset built from it."""
    return credentialed_tree.build(tmp_path_factory.mktemp("house"))


@pytest.fixture
def send(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`publish` to the loopback Hub from this process."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return lambda folder, kind, **options: publish(
        folder, "user/it", kind, **{"endpoint": hub.url, "token": "write", **YES, **options}
    )


def received(hub: Hub) -> dict[str, bytes]:
    """Every file that ever arrived."""
    files = {f"{repo.id} {name}": blob.data for repo in hub.store for commit in repo.commits.values()
             for name, blob in commit.files.items() if name != ".gitattributes"}  # fmt: skip
    return files | {f"{repo.id} {sha}": data for repo in hub.store for sha, data in repo.large.items()}


# How a source is known.


@pytest.mark.parametrize("name", [
    "MIMIC-CXR", "mimic_cxr_jpg_2.0", "Mimic CXR", "MIMIC-Ext-VQA", "PadChest", "pad-chest GR", "BIMCV_PADCHEST",
    "CheXpert-v1.0-small", "chexpert plus", "ＭＩＭＩＣ－ＣＸＲ", "M.I.M.I.C",
])  # fmt: skip
def test_a_source_is_known_by_name_however_it_is_spelt(name: str) -> None:
    assert is_credentialed({"name": name})


@pytest.mark.parametrize("name", ["vqa-rad", "slake", "path-vqa", "iu-xray", "nih-bbox", "phantom", "chest", "", None])
def test_other_sources_are_free(name: str | None) -> None:
    assert not is_credentialed({"name": name, "license": "cc0-1.0", "credentialed": False})


def test_a_licence_or_a_mark_will_do() -> None:
    assert is_credentialed({"name": "x", "license": "PhysioNet Credentialed Health Data License 1.5.0"})
    assert is_credentialed({"name": "x", "credentialed": True})


def test_the_mark_is_found_in_every_record() -> None:
    source = {"name": "x", "credentialed": True}
    for record in ({"source": source}, {"dataset_manifest": {"source": source}}):
        assert first([{"source": {"name": "free"}}, record]) == "x"
    assert first([{"name": "run", "source": "clinic", "credentialed": True}]) == "clinic"  # results.json
    assert first([{"name": "run", "source": "MIMIC-CXR"}]) == "MIMIC-CXR"
    assert first([{"source": "clinic", "name": "run"}, {"dataset_manifest": None}, {}]) is None


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "Is it ill?", "answer": "yes", **changes}


@pytest.mark.parametrize("mark", [
    {"rows": [row(credentialed=True)]},
    {"rows": [row(), row(id="2", credentialed="yes")]},
    {"text": "image,question,answer,credentialed\na.png,Is it ill?,yes,True\n", "table": "t.csv"},
    {"rows": [row(source="PadChest")]},
    {"rows": [row(license="physionet-credentialed-1.5.0")]},
    {"rows": [row()], "name": "chexpert-small"},
])  # fmt: skip
def test_a_table_or_a_folder_marks_its_source(make_source: MakeSource, mark: dict[str, Any]) -> None:
    assert read_source(make_source(**mark)).credentialed


@pytest.mark.parametrize(("bad", "evidence"), [
    (row(credentialed="by agreement"), "the row samples.jsonl:2"),
    (row(credentialed=[True]), "the row samples.jsonl:2"),
    (row(credentialed=True, task=SECRET), "the row samples.jsonl:2"),
    (row(source="PadChest", task=SECRET), "the name or licence 'PadChest'"),
    (row(license="physionet-credentialed-1.5.0", question="", task=SECRET), "the name or licence 'physionet"),
    (row(image="mimic/c.png", task=SECRET), "the name 'mimic'"),
    (row(image="mimic/c.png", answer=[SECRET]), "the name 'mimic'"),
    (row(image="mimic/broken.png", task="open"), "the name 'mimic'"),
    ({"image": "mimic/c.png", "labels": {SECRET: 1}}, "the name 'mimic'"),
])  # fmt: skip
def test_a_faulty_row_marks_its_source_too(make_source: MakeSource, bad: dict[str, Any], evidence: str) -> None:
    folder = make_source([row(id="1"), bad])
    (folder / "mimic").mkdir()
    shutil.copy(folder / "a.png", folder / "mimic" / "c.png")
    (folder / "mimic" / "broken.png").write_bytes(b"no picture")
    source = read_source(folder)
    assert str(source.marked_by).startswith(evidence) and [one.id for one in source.samples] == ["1"]
    assert [one.license for one in source.samples] == ["unknown (credentialed)"]
    assert source.faults and "ecret" not in " ".join(map(str, source.faults)) and "agreement" not in str(source.faults)


def test_a_row_with_too_many_cells_marks_its_source_too(make_source: MakeSource) -> None:
    table = "image,question,answer,Credentialed\na.png,Is it ill?,yes,no\na.png,Is it ill?,yes,true,more\n"
    source = read_source(make_source(text=table, table="t.csv"))
    assert source.marked_by == "the row t.csv:3" and len(source.samples) == len(source.faults) == 1


@pytest.mark.parametrize(("name", "table", "known"), [
    ("physionet.org/files/mimic-cxr-jpg/2.0.0", "samples.jsonl", "mimic-cxr-jpg"),
    ("data", "mimic_cxr_vqa.jsonl", "mimic_cxr_vqa"),
])  # fmt: skip
def test_a_folder_of_its_path_or_its_tables_name_marks_a_source(
    make_source: MakeSource, tmp_path: Path, name: str, table: str, known: str
) -> None:
    folder = make_source([row()], name=name, table=table)
    (tmp_path / "link").symlink_to(folder)
    for source in (folder, folder / table, tmp_path / "link"):
        assert read_source(source).marked_by == f"the name {known!r}"
    away = "http://models.invalid:9/v1#m"
    settings = Settings(source=folder, chat=away, judges=JUDGES, localizer="none")
    with pytest.raises(InputError, match=f"It is restricted by the name '{known}'"):
        curate_folder(settings, tmp_path)
    asked = ["evaluate", "--model", away, "--source", str(folder), "--output", str(tmp_path / "o")]
    said = CliRunner().invoke(cli.app, asked).exception
    assert isinstance(said, InputError) and "is not on this machine" in str(said) and known in str(said)


def test_each_sample_of_a_marked_source_says_so(make_source: MakeSource) -> None:
    table = [row(license="cc-by-4.0"), row(id="2"), row(id="3", license="physionet-credentialed-1.5.0")]
    licenses = [sample.license for sample in read_source(make_source(table), marked=True).samples]
    assert licenses == ["cc-by-4.0 (credentialed)", "unknown (credentialed)", "physionet-credentialed-1.5.0"]
    assert [sample.license for sample in read_source(make_source(table[:2])).samples] == ["cc-by-4.0", "unknown"]


def test_a_file_or_the_caller_marks_a_source(make_source: MakeSource) -> None:
    folder = make_source([row(credentialed=False)])
    assert not read_source(folder).credentialed
    assert read_source(folder, marked=True).credentialed
    (folder / "CREDENTIALED").touch()
    assert read_source(folder).credentialed


def test_the_mark_travels_from_the_builder_to_the_kept_source(house: Path, tmp_path: Path) -> None:
    assert read_json(house / "pairs" / "manifest.json")["source"]["credentialed"] is True
    kept = Path(shutil.copytree(house / "kept", tmp_path / "free", symlinks=True))
    table = kept / "samples.jsonl"
    table.write_text(table.read_text().replace('"mimic-cxr"', '"free"'))
    assert read_source(kept, "train").credentialed
    (kept / "CREDENTIALED").unlink()
    assert not read_source(kept, "train").credentialed


# Endpoints.


@pytest.mark.parametrize("url", [
    "http://localhost:8000/v1", "https://LOCALHOST/v1", "http://127.0.0.1/v1", "http://127.8.9.10:1/v1", "http://[::1]/v1",
    "http://me:secret@127.0.0.1/v1",
])  # fmt: skip
def test_loopback(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize("url", [
    "https://api.example.org/v1", "http://10.0.0.1/v1", "http://0.0.0.0/v1", "http://localhost.example.org/v1",
    "http://127.0.0.1.nip.io/v1", "http://localhost@example.org/v1", "http://example.org/#localhost",
    "http://example.org/v1?localhost", "http://127.0.0.1:80@example.org/", "http://",
    f"http://{socket.gethostname()}/v1", "http://[fe80::1]/v1", "localhost:8000", "http://localhost\t.example.org/",
])  # fmt: skip
def test_everything_else_is_remote(url: str) -> None:
    assert not is_loopback(url)


WATCHED = """
import json, sys
from mmedpo import cli
tried = []
sys.addaudithook(lambda event, arguments: tried.append(f"{event} {arguments[-1]}")
                 if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto") else None)
for command in json.loads(sys.argv[1]):
    tried.clear()
    try:
        code = cli.main(command)
    except SystemExit as exit:
        code = exit.code
    print("CODE", code, json.dumps(tried), flush=True)
"""


def watched(commands: list[list[str]], folder: Path) -> list[tuple[int, list[str], str]]:
    """Run command lines in another process; exit code, tries to connect or to look up a name, what it said of each."""
    code = [sys.executable, "-c", WATCHED, json.dumps(commands)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "COLUMNS": "4000", "HF_TOKEN": "hf_none"}
    done = subprocess.run(code, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
                          env=environment, check=False)  # fmt: skip
    parts = re.split(r"^CODE (\d+) (.*)$", done.stdout, flags=re.M)
    assert len(parts) == 3 * len(commands) + 1, done.stdout[-3000:]
    return [(int(parts[i + 1]), json.loads(parts[i + 2]), parts[i]) for i in range(0, len(parts) - 1, 3)]


def test_nothing_is_sent_to_a_model_elsewhere(house: Path, tmp_path: Path) -> None:
    away = "http://models.invalid:9/v1"
    kept, tree = str(house / "kept"), str(house / "tree")
    curate = ["curate", *WORDS, "--source", kept, "--split", "train", "--localizer", "none", "--output", "out"]
    commands = [
        [*curate, "--chat", f"{away}#penman"],
        [*curate, "--chat", f"{away}#penman", "--show-images", "true"],
        [*curate, "--judges", "standin:strict", f"{away}#judge"],
        [*curate, "--judges", "standin:strict,hub:org/judge"],
        [*curate, "--chat", "hub:org/penman@provider"],
        ["build", "mimic_cxr", *WORDS, "--source", tree, "--chat", f"{away}#penman", "--output", "out"],
        ["evaluate", "--source", kept, "--model", f"{away}#target", "--output", "out"],
        ["evaluate", "--source", kept, "--model", "hub:org/target", "--output", "out"],
        ["evaluate", "--dataset", str(house / "pairs"), "--model", f"{away}#target", "--output", "out"],
    ]  # fmt: skip
    opened = [*("sent" if word == "out" else word for word in commands[0]), FLAG, "true"]
    *refused, sent = watched([*commands, opened], tmp_path)
    for command, (code, tried, said) in zip(commands, refused, strict=True):
        assert (code, tried) == (2, []), (command, said)
        named = next(word.split(",")[-1] for word in command if "models.invalid" in word or "hub:" in word)
        assert f"mimic-cxr is restricted data, and {named} is not on this machine" in said and FLAG in said
    assert not list(tmp_path.glob("out*"))
    assert any("models.invalid" in event or "getaddrinfo" in event for event in sent[1]), sent


def test_a_proxy_carries_nothing_that_is_for_this_machine(
    house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChatServer() as here, ChatServer() as proxy:
        here.answer = credentialed_tree.answer
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        curated(house, tmp_path / "a", here)
        assert here.received and not proxy.received


def test_a_redirect_is_not_followed(house: Path, tmp_path: Path) -> None:
    with ChatServer() as here, ChatServer() as away:
        here.answer = lambda received: Answer("", 307, {"Location": f"{away.url}/chat/completions"})
        with pytest.raises(InputError, match="HTTP 307"):
            curated(house, tmp_path / "a", here)
        assert here.received and not away.received


def test_what_an_endpoint_quotes_is_not_said(house: Path, tmp_path: Path) -> None:
    def quoting(received: Received) -> Answer:
        return Answer(f"I cannot answer this: {received.text}", 401 if received.body["model"] == "judge" else 422)

    with ChatServer() as here:
        here.answer = lambda received: (
            credentialed_tree.answer(received) if received.body["model"] == "judge" else quoting(received)
        )
        with pytest.raises(InputError, match="HTTP 422") as raised:
            curated(house, tmp_path / "a", here)
        assert not any(text in str(raised.value) for text in FINDINGS)
        here.answer = lambda received: (
            quoting(received) if received.body["model"] == "judge" else credentialed_tree.answer(received)
        )
        with pytest.raises(InputError, match="HTTP 401") as raised:
            curated(house, tmp_path / "b", here)
        assert not any(text in str(raised.value) for text in FINDINGS)


def curated(house: Path, folder: Path, server: ChatServer, **settings: Any) -> dict[str, Any] | None:
    folder.mkdir()
    chosen = {"chat": f"{server.url}#penman", "judges": [f"{server.url}#judge"], "localizer": "none", **settings}
    return curate_folder(Settings(source=house / "kept", split="train", **chosen), folder, judges_below_bar="go")


def test_a_cache_tells_another_endpoint_nothing(house: Path, make_source: MakeSource, tmp_path: Path) -> None:
    """Copied beside another source, whose models are elsewhere (played by one here)."""
    shutil.copy(house / "calls.sqlite", tmp_path / "calls.sqlite")
    with sqlite3.connect(tmp_path / "calls.sqlite") as database:
        keys = [key for (key,) in database.execute("SELECT key FROM entries")]
        assert any(credentialed_tree.WRONG in value for (value,) in database.execute("SELECT value FROM entries"))
    assert keys and all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    source = make_source([row(question="Describe it.", answer="A free text about nobody.", task="report")], name="free")
    with ChatServer() as away:
        written, score = {"answer": OTHER, "kind": "finding"}, {"score": 0.5, "rationale": "It is another."}
        away.answer = lambda received: Answer(json.dumps(written if received.body["model"] == "penman" else score))
        settings = Settings(source=source, chat=f"{away.url}#penman", judges=[f"{away.url}#judge"], localizer="none")
        (tmp_path / "working").mkdir()
        curate_folder(settings, tmp_path / "working", cache=tmp_path / "calls.sqlite", judges_below_bar="go")
        bodies = {str(n): json.dumps(received.body).encode() for n, received in enumerate(away.received)}
    assert len(bodies) >= 2 and any(OTHER.encode() in body for body in bodies.values())
    assert not credentialed_tree.found(house / "tree", bodies)


# Publishing.


def test_a_dataset_goes_out_whole_only_with_the_flag(hub: Hub, send: Callable[..., Any], house: Path) -> None:
    asked: list[str] = []
    send(house / "pairs", "dataset", confirm=lambda question: not asked.append(question))
    assert received(hub) and not credentialed_tree.found(house / "tree", received(hub))
    assert not any("gets its texts and images" in question for question in asked)
    for confirm, error in ((lambda question: "gets its" not in question, Stopped), (None, InputError)):
        with pytest.raises(error):
            send(house / "pairs", "dataset", third_parties=True, confirm=confirm, fill=FILLED)
    assert not credentialed_tree.found(house / "tree", received(hub))
    done = send(house / "pairs", "dataset", third_parties=True, confirm=lambda question: not asked.append(question))
    question = "mimic-cxr is restricted data. Everybody who may read user/it, now or later, gets its texts and images"
    assert asked[-1].startswith(question)
    assert f"mimic-cxr is restricted data: user/it gets its texts and images, whole, as {FLAG} allows." in done.notices
    found = credentialed_tree.found(house / "tree", received(hub))
    assert any(FINDINGS[0] in trace for trace in found) and not any(credentialed_tree.PATIENT in one for one in found)


def test_a_history_with_texts_is_not_covered_up(hub: Hub, send: Callable[..., Any], house: Path) -> None:
    send(house / "pairs", "dataset", third_parties=True)
    with pytest.raises(InputError, match="its version v1 holds texts and images, which stay in its history"):
        send(house / "pairs", "dataset")
    assert "audit.json" in hub.files("user/it", "dataset")


def test_what_breaks_the_rules_is_published_in_no_form(hub: Hub, send: Callable[..., Any], tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row.update(source="PadChest")

    made = make_dataset(tmp_path / "pairs", 6, change=change)
    first, *_ = sorted(made.glob("data/*.parquet"))
    table = pq.read_table(first)
    for spoil, said in (
        (nan_weight, "schema.*weight.: is not a number"), (same_id, "schema.*occurs 2 times"),
        (no_bytes, r"pairs: names image files outside of the dataset .*, which are not read. Write [^.]*.$"),
    ):  # fmt: skip
        pq.write_table(pa.Table.from_pylist(spoil(table.to_pylist()), schema=table.schema), first)
        with pytest.raises(InputError, match=f"(?s){said}") as raised:
            send(made, "dataset")
        assert "What is seen" not in str(raised.value)
    assert not list(hub.store)


def nan_weight(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "weight": float("nan")} for row in rows]


def same_id(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows, rows[0]]


def no_bytes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "images": [{**image, "bytes": None} for image in row["images"]]} for row in rows]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A finished training folder on restricted data."""
    folder = make_adapter(tmp_path / "adapter")
    record = read_json(folder / "training.json")
    write_json(
        folder / "training.json", {**record, "dataset_manifest": {"source": {"name": "x", "credentialed": True}}}
    )
    return folder


def test_an_adapter_goes_out_only_with_the_flag(hub: Hub, send: Callable[..., Any], adapter: Path) -> None:
    with pytest.raises(InputError, match=f"is not published: x is restricted data.*{FLAG}"):
        send(adapter, "adapter")
    assert not list(hub.store) and not [call for call in hub.calls() if call.startswith(("POST", "PUT"))]
    done = send(adapter, "adapter", third_parties=True)
    assert "adapter_model.safetensors" in hub.files("user/it")
    assert "user/it gets a model that was trained on its texts and images" in done.notices[0]


def test_examples_of_a_whole_comparison_stay_here(hub: Hub, send: Callable[..., Any], tmp_path: Path) -> None:
    """As `mmedpo compare --output` writes it, copied beside an adapter."""
    adapter = make_adapter(tmp_path / "free")
    comparison = read_json(EXAMPLES / "adapter" / "comparison.json")
    run = next(iter(comparison["evaluations"]))
    comparison["evaluations"][run] = {**comparison["evaluations"][run], "prompt": {"example": SECRET, "digest": "0"}}
    write_json(adapter / "comparison.json", {**comparison, "examples": [{"question": SECRET}]})
    send(adapter, "adapter")
    sent = json.loads(hub.files("user/it")["comparison.json"])
    assert sent["metrics"] == comparison["metrics"] and not any(
        SECRET.encode() in data for data in received(hub).values()
    )


def test_rows_say_where_they_are_from_though_the_manifest_says_otherwise(
    house: Path, hub_here: Hub, run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    pairs = Path(shutil.copytree(house / "pairs", tmp_path / "pairs"))
    manifest = read_json(pairs / "manifest.json")
    write_json(
        pairs / "manifest.json",
        {**manifest, "source": {**manifest["source"], "name": "x", "license": "mit", "credentialed": False}},
    )
    code, said = run("publish", pairs, "user/it", "--yes")
    assert code == 0 and "no text and no image" in said
    assert received(hub_here) and not credentialed_tree.found(house / "tree", received(hub_here))


# Training.


@pytest.fixture
def marked(preferences: Path, tmp_path: Path) -> Path:
    """The phantoms' pairs, marked as credentialed."""
    folder = Path(shutil.copytree(preferences, tmp_path / "marked"))
    manifest = read_json(folder / "manifest.json")
    manifest["source"]["credentialed"] = True
    write_json(folder / "manifest.json", manifest)
    return folder


def training(dataset: Path, model: object, output: Path, *more: str) -> list[str]:
    return [
        "train", "--config", str(ROOT / "recipes" / "quickstart.yaml"), "--dataset_name", str(dataset),
        "--model_name_or_path", str(model), "--output", str(output), "--max_steps", "1", "--push_to_hub", "true", *more,
    ]  # fmt: skip


def test_a_training_that_would_be_pushed_is_refused_before_it_begins(house: Path, tmp_path: Path) -> None:
    ran = CliRunner().invoke(cli.app, training(house / "pairs", "org/none", tmp_path / "adapter"))
    assert isinstance(ran.exception, InputError)
    assert "mimic-cxr is restricted data" in str(ran.exception) and FLAG in str(ran.exception)
    assert not (tmp_path / "adapter").exists()


def test_a_whole_model_carries_the_mark_in_its_configuration(
    hub: Hub, send: Callable[..., Any], marked: Path, preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    whole = ("--push_to_hub", "false", "--use_peft", "false", "--learning_rate", "1e-6", "--save_strategy", "no")
    ran = CliRunner().invoke(cli.app, training(marked, tiny_model, tmp_path / "whole", *whole))
    assert ran.exit_code == 0, ran.output + str(ran.exception)
    assert read_json(tmp_path / "whole" / "config.json")["credentialed_source"] == "phantom"
    record = read_json(tmp_path / "whole" / "training.json")
    assert record["credentialed_source"] == "phantom" and "phantom" in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(InputError, match="phantom is restricted data"):
        send(tmp_path / "whole", "adapter")
    # What goes on from it on public pairs is no more public; and it is not the pairs that are called credentialed.
    ran = CliRunner().invoke(cli.app, training(preferences, tmp_path / "whole", tmp_path / "next"))
    assert "is not published: phantom is restricted data" in str(ran.exception) and not received(hub)


@pytest.mark.slow
def test_a_training_is_pushed_with_the_flag_and_its_records_hold_no_text(
    hub: Hub, marked: Path, tiny_model: Path, tmp_path: Path
) -> None:
    command = training(marked, tiny_model, tmp_path / "adapter", FLAG, "true")
    pushed = subprocess.run([sys.executable, "-m", "mmedpo.cli", *command], env=hub.environment(), capture_output=True,
                            text=True, check=False)  # fmt: skip
    assert pushed.returncode == 0, pushed.stderr[-2000:]
    files = hub.files("user/adapter")
    assert json.loads(files["training.json"])["dataset_manifest"]["source"]["credentialed"] is True
    assert "send_credentialed" not in files["recipe.yaml"].decode()  # who runs it again decides anew
    assert "Trained on restricted data (phantom)" in files["README.md"].decode()
    rows = [json.dumps(row) for row in texts(marked)]
    said = b"".join(
        data for name, data in files.items() if name.endswith((".json", ".yaml", ".md")) and "token" not in name
    )
    assert rows and not any(row.encode() in said for row in rows)


def texts(dataset: Path) -> set[str]:
    import pyarrow.parquet as parquet

    columns = [parquet.read_table(file, columns=["prompt", "chosen"]).to_pylist() for file in dataset.glob("data/*")]
    return {row["prompt"][0]["content"] for table in columns for row in table}


def trained_on(dataset: object, model: object, before: object = None, streaming: bool = False) -> str | None:
    from mmedpo.training.record import credentialed_source

    run: Any = SimpleNamespace(
        dataset_name=str(dataset), adapter_name_or_path=before and str(before), streaming=streaming
    )
    return credentialed_source(run, str(model), None, {run.dataset_name: None})


def plain(folder: Path, source: str = "free", license: str = "mit", where: str = "data") -> Path:
    """Rows without a manifest."""
    (folder / where).mkdir(parents=True)
    table = pa.table({"source": ["free", source], "license": ["mit", license]})
    pq.write_table(table, folder / where / "train.parquet")
    return folder


def test_what_is_trained_is_marked_by_manifest_rows_and_what_it_goes_on_from(
    marked: Path, adapter: Path, tiny_model: Path, make_source: MakeSource, tmp_path: Path
) -> None:
    free, m = plain(tmp_path / "free"), tiny_model
    assert trained_on(free, m) is trained_on(free, m, streaming=True) is None
    assert trained_on(marked, m) == "phantom"
    assert trained_on(plain(tmp_path / "rows", "PadChest"), m) == "PadChest"
    assert trained_on(free, m, before=adapter) == "x"
    checkpoint = adapter.rename(tmp_path / "adapter.partial") / "checkpoint-7"
    checkpoint.mkdir()
    assert trained_on(free, m, before=checkpoint) == trained_on(free, m, before=f"{checkpoint}/") == "x"
    source = make_source([row(split="train"), row(id="2", image="b.png", split="train")], name="clinic")
    (source / "CREDENTIALED").touch()
    tiny.make(source, "train", steps=1, output=tmp_path / "toy")  # whose vocabulary is the clinic's
    assert trained_on(free, tmp_path / "toy") == "clinic"


@pytest.mark.parametrize("where", ["data", "parts", "."])
@pytest.mark.parametrize("said", [{"source": "PadChest"}, {"license": "unknown (credentialed)"}])
def test_rows_are_asked_wherever_their_files_lie(tmp_path: Path, where: str, said: dict[str, str]) -> None:
    folder = plain(tmp_path / "rows", where=where, **said)
    assert credentialed_source(folder) == said.get("source", "free")
    assert credentialed_source(plain(tmp_path / "free", where=where)) is None


def test_a_dataset_of_a_clinic_without_its_manifest_is_known_by_its_rows(
    make_source: MakeSource, tmp_path: Path, tiny_model: Path, hub: Hub, send: Callable[..., Any]
) -> None:
    """Nothing in a name tells of it, and the manifest is wrong or lost."""
    source = make_source([row(license="cc-by-4.0"), row(id="2", image="b.png", question="Ill?")], name="clinic")
    (source / "CREDENTIALED").touch()
    ran = CliRunner().invoke(cli.app, ["curate", *WORDS, "--source", str(source), "--output",
                                       str(tmp_path / "pairs"), "--localizer", "none"])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    manifest = read_json(tmp_path / "pairs" / "manifest.json")
    about = {**manifest["source"], "license": "mit", "credentialed": False}
    write_json(tmp_path / "pairs" / "manifest.json", {**manifest, "source": about})
    assert "no text and no image" in send(tmp_path / "pairs", "dataset").notices[0]
    assert received(hub) and not any(b"Is it ill" in data for data in received(hub).values())
    (tmp_path / "pairs" / "manifest.json").unlink()
    licenses = set(load(str(tmp_path / "pairs"))["license"])
    assert licenses == {"cc-by-4.0 (credentialed)", "unknown (credentialed)"}
    assert credentialed_source(tmp_path / "pairs") == "clinic"
    away = ["--model", "http://models.invalid:9/v1#target", "--output", str(tmp_path / "out")]
    ran = CliRunner().invoke(cli.app, ["evaluate", "--dataset", str(tmp_path / "pairs"), *away])
    assert "clinic is restricted data, and" in str(ran.exception)
    ran = CliRunner().invoke(cli.app, training(tmp_path / "pairs", tiny_model, tmp_path / "adapter"))
    assert "is not published: clinic is restricted data" in str(ran.exception)
    loose = load_splits(str(tmp_path / "pairs"))["train"].filter(lambda row: row["license"].startswith("cc"))
    (tmp_path / "derived").mkdir()
    loose.to_parquet(str(tmp_path / "derived" / "mine.parquet"))
    assert credentialed_source(tmp_path / "derived") == "clinic"


def test_an_adapter_on_the_hub_says_what_it_was_trained_on(
    hub_here: Hub, send: Callable[..., Any], adapter: Path, tiny_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    send(adapter, "adapter", third_parties=True)
    free = plain(tmp_path / "free")

    def found() -> list[str | None]:
        return [trained_on(free, tiny_model, before) for before in ("user/it", "user/none")]

    assert found() == ["x", None]
    # Where nobody can be asked, an adapter that lies in the cache is one of which nobody knows.
    with monkeypatch.context() as away:
        away.setattr(constants, "HF_HUB_OFFLINE", True)
        away.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
        assert found() == ["user/it", "user/none"]
    hub_here.fail("(GET|HEAD) .*/user/it/.*training.json", status=403, times=99)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "fresh"))
    assert found() == ["user/it", None]


def test_of_a_streamed_dataset_nobody_knows_unless_its_manifest_says(
    hub_here: Hub, send: Callable[..., Any], preferences: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Rows of a folder are asked, however many come first; those of the Hub are not."""
    rows = {"source": [*["free"] * 1500, "PadChest"], "license": ["mit"] * 1501}
    (tmp_path / "long" / "data").mkdir(parents=True)
    pq.write_table(pa.table(rows), tmp_path / "long" / "data" / "train.parquet")
    assert trained_on(tmp_path / "long", tiny_model, streaming=True) == "PadChest"
    send(preferences, "dataset")
    assert credentialed_source("user/it", streaming=True) is None
    HfApi().delete_file("manifest.json", "user/it", repo_type="dataset")
    assert credentialed_source("user/it", streaming=True) == "user/it" and credentialed_source("user/it") is None
    words = training("user/it", "org/none", tmp_path / "adapter", "--streaming", "true", "--save_strategy", "steps")
    ran = CliRunner().invoke(cli.app, words)
    assert isinstance(ran.exception, InputError)
    assert "without a manifest.json that names its source" in str(ran.exception)


def test_trackers_elsewhere_are_refused(marked: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = [word for word in training(marked, "org/none", tmp_path / "adapter") if word != "--push_to_hub"][:-1]
    for tracker in ("wandb", "clearml", "mlflow"):
        ran = CliRunner().invoke(cli.app, [*words, "--report_to", tracker])
        assert f"report_to {tracker}: phantom is restricted data" in str(ran.exception), ran.exception
    for opened in (["--report_to", "wandb", FLAG, "true"], ["--report_to", "tensorboard"], ["--report_to", "none"]):
        ran = CliRunner().invoke(cli.app, [*words, *opened])
        assert "org/none" in str(ran.exception)  # the next thing that is wrong


def test_the_published_form_is_no_training_data(tmp_path: Path) -> None:
    from datasets import Dataset

    from mmedpo import MMedPOConfig, MMedPOTrainer

    stripped = Dataset.from_dict({"weight": [1.0], "row_digest": ["0"]})
    with pytest.raises(InputError, match="`mmedpo rejoin` rebuilds the pairs on a machine that has the data"):
        MMedPOTrainer(None, MMedPOConfig(str(tmp_path / "out"), use_cpu=True), train_dataset=stripped)


# Pages, messages and logs.


def page(house: Path, output: Path, **options: Any) -> dict[str, bytes]:
    example = {
        "id": "q", "task": "report", "question": "Describe it.", "reference": FINDINGS[0],
        "predictions": {"start": FINDINGS[1], "mmedpo": FINDINGS[2]}, "correct": {"start": False, "mmedpo": True},
    }  # fmt: skip
    comparison = {
        "format": "mmedpo.comparison/2", "command": "mmedpo compare", "versions": {}, "seed": 0, "resamples": 10,
        "unit": "image", "baseline": "start", "runs": ["start", "mmedpo"], "n": {}, "metrics": {},
        "examples": [example],
        "source": "mimic-cxr", "credentialed": True,
    }  # fmt: skip
    report.write_report(output, comparison, str(house / "pairs"), {}, **options)
    return {"page": output.read_bytes()}


def test_a_page_shows_text_and_images_only_with_the_flag(house: Path, tmp_path: Path) -> None:
    quiet = page(house, tmp_path / "a.html")
    assert not credentialed_tree.found(house / "tree", quiet)
    assert b"data:image/png" not in quiet["page"] and b"data:image/jpeg" not in quiet["page"]
    assert b"this page shows no text and no image" in quiet["page"]
    shown = page(house, tmp_path / "b.html", quotes=True)
    assert len(credentialed_tree.found(house / "tree", shown)) >= 3
    assert b"data:image/png" in shown["page"] or b"data:image/jpeg" in shown["page"]


def test_the_mark_travels_to_results_and_comparisons(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--model", tiny_model, "--source", corpus, "--split", "test", "--limit", "4"]
    ran = CliRunner().invoke(cli.app, [*map(str, command), "--output", str(tmp_path / "one"), "--credentialed"])
    assert ran.exit_code == 0, ran.output
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    write_json(tmp_path / "two" / "results.json", {**read_json(tmp_path / "one" / "results.json"), "name": "two"})
    assert read_json(tmp_path / "one" / "results.json")["credentialed"] is True
    comparison = compare([tmp_path / "one", tmp_path / "two"], resamples=10)
    assert comparison["credentialed"] is True and comparison["source"] == "phantom"
    questions = tmp_path / "two" / "questions.jsonl"
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    questions.write_text("".join(json.dumps({**line, "reference": SECRET}) + "\n" for line in asked))
    results = read_json(tmp_path / "two" / "results.json")
    results["questions_sha256"] = hashlib.sha256(questions.read_bytes()).hexdigest()
    write_json(tmp_path / "two" / "results.json", results)
    with pytest.raises(InputError) as raised:
        compare([tmp_path / "one", tmp_path / "two"], resamples=10)
    assert "not shown: restricted data" in str(raised.value) and "ecret" not in str(raised.value)


FAULTY = [
    row(task=SECRET), row(image=SECRET), row(boxes=[{"label": SECRET, "x": SECRET}]), row(confidence=SECRET),
    row(boxes=[{"label": SECRET, "x": 1, "y": 1, "width": -1, "height": 2}]), row(masks=SECRET), row(heatmap=SECRET),
    row(boxes=SECRET), {"image": "a.png", "labels": {SECRET: 1}}, {"image": "a.png", "labels": ["x"], "width": SECRET},
]  # fmt: skip


def test_faults_quote_no_cell(make_source: MakeSource) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in FAULTY) + f'{{"question": "{SECRET}", \n'
    folder = make_source(text=lines)
    plain, marked = read_source(folder), read_source(folder, marked=True)
    assert len(plain.faults) == len(marked.faults) == len(FAULTY) + 1
    assert sum("ecret" in str(fault) for fault in plain.faults) == len(FAULTY)
    assert not any("ecret" in str(fault) for fault in marked.faults)
    with pytest.raises(InputError, match="is unknown; use closed, open, choice or report") as raised:
        refuse_faults(marked, skip_faulty=False)
    assert "ecret" not in str(raised.value)


def test_the_file_of_all_faults_quotes_no_cell(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mmedpo"])
    source = make_source([*FAULTY, *FAULTY, *FAULTY])
    with pytest.raises(SystemExit):
        cli.main(["curate", *WORDS, "--source", str(source), "--credentialed", "true", "--output", "out"])
    said = capsys.readouterr()
    assert "ecret" not in said.out + said.err + (tmp_path / "mmedpo-faults.jsonl").read_text()
    with pytest.raises(SystemExit):
        cli.main(["curate", *WORDS, "--source", str(source), "--output", "out"])
    assert "ecret" in (tmp_path / "mmedpo-faults.jsonl").read_text()


def test_splits_of_a_table_are_not_listed(make_source: MakeSource) -> None:
    folder = make_source([row(split=SECRET)])
    with pytest.raises(InputError, match="it has 1 others"):
        read_source(folder, "train", marked=True)
