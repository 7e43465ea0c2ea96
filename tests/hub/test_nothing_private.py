"""A whole run on a machine whose folders, endpoint and keys are private, published: nothing of them is on the Hub."""

from __future__ import annotations

import getpass
import io
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
from chat_server import Answer, ChatServer
from hub.server import ROOT, Hub

Run = Callable[..., tuple[int, str]]
PERSON = "Müller, Alice"
KEYS = {"MMEDPO_API_KEY": "sk-endpoint-key"}
LOGIN, QUERY = "alice:a-password", "api_key=sk-in-the-query"


@pytest.fixture
def home(corpus: Path, tiny_model: Path, detector: Path, tmp_path: Path) -> Path:
    """A person's folder with a source and models; commands are run beside it, in `work`."""
    home = tmp_path / "users" / PERSON
    for folder, name in ((corpus, "corpus"), (tiny_model, "tiny vlm"), (detector, "finder")):
        shutil.copytree(folder, home / name)
    (home.with_name("Müller Alice")).symlink_to(home)  # a comma would part the names of judges
    (tmp_path / "work").mkdir()
    return home


def texts(files: dict[str, bytes]) -> dict[str, str]:
    """All that can be read in files: each text, and each row without its images; names are looked at too."""
    found = {}
    for name, data in files.items():
        if name.endswith(".parquet"):
            rows = parquet.read_table(io.BytesIO(data)).to_pylist()
            images = [image for row in rows for image in [*row.pop("images"), *(row.pop("rejected_images") or [])]]
            found[name] = json.dumps([rows, [image["path"] for image in images]], ensure_ascii=False)
        elif not name.endswith((".png", ".safetensors")):
            found[name] = data.decode()
    return found


def test_nothing_of_the_machine_is_in_what_was_made_on_it(
    hub_here: Hub, home: Path, run: Run, chat_server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_here
    hub.accounts["hf_secret_token"] = hub.accounts["write"]
    for name, value in {**KEYS, "HF_TOKEN": "hf_secret_token"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "work")
    chat_server.answer = lambda received: Answer('{"score": 0.5, "rationale": "may matter"}')
    port = chat_server.url.rpartition(":")[2].partition("/")[0]
    judge = f"http://{LOGIN}@localhost:{port}/v1?{QUERY}#org/judge"

    def done(*words: object) -> None:
        code, said = run(*words)
        assert code == 0, said[-3000:]

    done("curate", "--source", f"../users/{PERSON}/corpus", "--split", "preference", "--limit", 8, "--rounds", 1,
        "--chat", "standin:rules", "--judges-below-bar", "go",
        "--model", home / "tiny vlm", "--judges", judge, f"local:{home.with_name('Müller Alice')}/tiny vlm", "--panel",
        "independent", "--localizer", f"detector:../users/{PERSON}/finder", "--output", home / "pairs")  # fmt: skip
    done("train", "--config", ROOT / "recipes" / "quickstart.yaml", "--dataset_name", home / "pairs", "--max_steps", 1,
        "--model_name_or_path", f"../users/{PERSON}/tiny vlm", "--output", home / "adapter",
        "--push_to_hub", "true", "--hub_model_id", "user/adapter")  # fmt: skip
    done("publish", home / "pairs", "user/pairs", "--yes")

    files = {f"{kind}/{name}": data for kind, repo in (("dataset", "user/pairs"), ("model", "user/adapter"))
             for name, data in hub.files(repo, kind).items()}  # fmt: skip
    published = texts(files)
    rows = "".join(text for name, text in published.items() if name.endswith(".parquet"))
    assert '"judge": "org/judge"' in rows and '"judge": "tiny vlm"' in rows and '"rejected_by": "tiny vlm"' in rows
    assert all(
        name in published["dataset/manifest.json"] for name in ("endpoint#org/judge", ":finder", "local:tiny vlm")
    )
    private = [
        "Müller", "Alice", "M\\u00fc", "M\\xfc", "M%C3", "users/", str(tmp_path), str(Path.home()), str(ROOT), LOGIN,
        "a-password", "api_key", "sk-", "hf_secret", "localhost", f":{port}", socket.gethostname(),
        f"/{getpass.getuser()}/",
    ]  # fmt: skip
    found = {name: [word for word in private if word in name + text] for name, text in published.items()}
    assert not {name: words for name, words in found.items() if words}
