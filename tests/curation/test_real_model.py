"""Curation with a real chat model as writer and judge: the structure of what comes out, never its quality."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from datasets import load_dataset

from mmedpo.models.chat import ChatRequest
from mmedpo.models.chat.endpoint import EndpointChat
from mmedpo.runs.ledger import Ledger
from tests.conftest import MakeSource

BOX = {"label": "nodule", "x": 6, "y": 5, "w": 9, "h": 8}
QUESTIONS = [
    {"id": "yes", "question": "Is there a nodule in the left lung?", "answer": "Yes"},
    {"id": "no", "question": "Is the heart enlarged?", "answer": "no"},
    {"id": "side", "question": "Is the effusion on the right or on the left?", "answer": "right", "boxes": [BOX]},
    {"id": "place", "question": "Where is the nodule?", "answer": "left lower lobe", "boxes": [BOX]},
    {"id": "kind", "question": "What is seen in the pleural space?", "answer": "Fluid"},
    {"id": "nodule", "report": "There is a small nodule in the left lower lobe. The heart is normal in size."},
]
SCHEMA = {
    "type": "object",
    "properties": {"place": {"type": "string", "maxLength": 20}, "score": {"type": "number", "enum": [0, 0.5, 1]}},
    "required": ["place", "score"],
    "additionalProperties": False,
}
# `mmedpo curate` with a judge check of every eighth pair, to save a minute.
COMMAND = """
import sys
from mmedpo import cli
from mmedpo.curation import judge_check
few = judge_check.pairs()[::8]
judge_check.pairs = lambda: few
cli.main(sys.argv[1:])
"""


def answered(cache: Path) -> dict[str, Any]:
    """Answered calls by key."""
    with closing(Ledger(cache)) as ledger:
        return {key: ledger[key] for key in ledger}


def test_schema_obeyed(real_chat: str) -> None:
    url, _, name = real_chat.partition("#")
    client = EndpointChat(name, base_url=url, max_tokens=100)
    request = ChatRequest("any", {}, "Name a place in the chest, and a score.", schema=SCHEMA)
    (reply,) = client.complete([request])
    said = json.loads(reply.text or "")
    assert set(said) == {"place", "score"} and len(said["place"]) <= 20 and said["score"] in (0, 0.5, 1)


def test_curate_with_a_real_model(real_chat: str, make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source([{**row, "image": "ab"[i % 2] + ".png"} for i, row in enumerate(QUESTIONS)])
    output, cache = tmp_path / "pairs", tmp_path / "calls.sqlite"
    command = [
        *(sys.executable, "-c", COMMAND, "curate", "--source", str(source), "--output", str(output), "--resume"),
        *("--chat", real_chat, "--judges", real_chat, "--max-reply-tokens", "200"),
        *("--judges-below-bar", "go"),
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as killed:
        while killed.poll() is None and len(answered(cache)) < 7:  # 5 of the judge check
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and not output.exists(), (tmp_path / "log").read_text()
    before = answered(cache)
    resumed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "Judge check on 5 pairs of known severity, panel: Spearman " in resumed.stderr
    after = answered(cache)
    written = {key: call for key, call in before.items() if '"answer"' in call["text"]}
    assert written and written == {key: after[key] for key in written}  # unreadable judgements are asked anew
    forms = {tuple(json.loads(call["text"])) for call in after.values()}
    assert forms == {("answer", "kind"), ("rationale", "wrong", "score")}  # in the order of the schemas

    rows = load_dataset("parquet", data_files=str(output / "data" / "*.parquet"), split="train").to_list()
    rejects = [json.loads(line) for line in (output / "rejects.jsonl").read_text().splitlines()]
    manifest = json.loads((output / "manifest.json").read_text())
    name = real_chat.partition("#")[2]
    assert [manifest["chat_model"], *manifest["judges"]] == [name, name]
    assert manifest["calls"][name]["calls"] == len(after)
    assert manifest["judge_check"]["judges"].keys() == {name}
    assert sum(manifest["counts"].values()) == len(rows) and sum(manifest["rejects"].values()) == len(rejects)
    assert all(reject["reason"] for reject in rejects)
    made = [row["id"].split("/")[-2:] for row in rows]
    lost = [[reject["id"], reject["dispreference"]] for reject in rejects]
    kinds = ("hallucinated_response", "lesion_noise")
    assert sorted(made + lost) == sorted([row["id"], kind] for row in QUESTIONS for kind in kinds)
    for row in rows:
        assert row["rejected"] != row["chosen"] or row["rejected_images"] != row["images"]
        assert row["clinical_relevance"] is not None and 0.75 <= row["weight"] <= 1.25
