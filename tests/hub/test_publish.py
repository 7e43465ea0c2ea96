"""Publishing over real HTTP: what arrives, what is sent again, what people wrote into cards, and several publishers."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hub.publishable import EXAMPLES, make_adapter, make_dataset, picture
from hub.server import ROOT, Hub
from hub.store import Blob
from huggingface_hub import DatasetCard, ModelCard, SpaceCard, constants
from PIL import Image

from mmedpo import schema
from mmedpo.data import loading
from mmedpo.errors import InputError, Stopped
from mmedpo.hub.publish import Publication, publish
from mmedpo.hub.publish.picture import draw

Publish = Callable[..., Publication]
YES = {"confirm": lambda question: True}


@pytest.fixture
def send(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """`publish` to the loopback Hub from this process, as its user, who says yes to everything."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.large_from = 100_000

    def go(folder: Path, repo: str = "user/pairs", kind: str = "dataset", **options: Any) -> Publication:
        return publish(folder, repo, kind, **{"endpoint": hub.url, "token": "write", **YES, **options})

    return go


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder that tests copy before they change it."""
    return make_dataset(tmp_path_factory.mktemp("made") / "pairs")


@pytest.fixture
def pairs(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "pairs"))


def rows(files: dict[str, bytes]) -> list[dict[str, Any]]:
    tables = [parquet.read_table(io.BytesIO(files[name])) for name in sorted(files) if name.endswith(".parquet")]
    return [row for table in tables for row in table.to_pylist()]


def text(hub: Hub, repo: str = "user/pairs", kind: str = "dataset") -> str:
    return hub.files(repo, kind)["README.md"].decode()


def edit(hub: Hub, change: Callable[[str], str], repo: str = "user/pairs", kind: str = "dataset") -> None:
    """A person edits the card on the Hub's page."""
    edited = Blob(change(text(hub, repo, kind)).encode())
    hub.repo(repo, kind).commit("main", lambda files: files.update({"README.md": edited}), "Update README.md")


def test_a_dataset_arrives_whole_private_and_tagged(hub: Hub, send: Publish, pairs: Path) -> None:
    (pairs / "calls.sqlite").write_bytes(b"asked and answered")
    (pairs / "data" / "notes.txt").write_text("mine")
    done = send(pairs, "pairs")
    repo = hub.repo("user/pairs", "dataset")
    assert repo.private and done.visibility == "private" and done.url == f"{hub.url}/datasets/user/pairs"
    files = hub.files("user/pairs", "dataset")
    shards = {f"data/{file.name}" for file in pairs.glob("data/*.parquet")}
    assert len(shards) > 2
    assert files.keys() == shards | {"README.md", ".mmedpo/card.md", "manifest.json", "audit.json", "audit.png"}
    assert all(files[name] == (pairs / name).read_bytes() for name in [*shards, "manifest.json", "audit.json"])
    assert hub.files("user/pairs", "dataset", done.tag or "") == files and done.tag == "v1"
    with Image.open(io.BytesIO(files["audit.png"])) as drawn:
        assert drawn.size == (960, 480)


def test_the_published_header_is_read_by_the_hubs_classes(hub: Hub, send: Publish, pairs: Path) -> None:
    send(pairs)
    data = DatasetCard(text(hub)).data
    assert data.configs == [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}]
    (split,) = data.dataset_info["splits"]
    shards = list(pairs.glob("data/*.parquet"))
    assert (split["name"], split["num_examples"]) == ("train", 24)
    assert data.dataset_info["download_size"] == sum(shard.stat().st_size for shard in shards)
    assert data.dataset_info["dataset_size"] == split["num_bytes"] > 24 * len(picture(0)["bytes"])
    assert data.size_categories == ["n<1K"] and "visual-question-answering" in data.task_categories
    assert "](audit.png)" in text(hub) and 'load_dataset("user/pairs", split="train")' in text(hub)


def test_unmodified_clients_load_what_was_published_row_by_row_and_pixel_by_pixel(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    send(pairs)
    hub.run(
        "import sys, numpy, datasets\n"
        "plain = datasets.load_dataset('user/pairs', split='train', revision='v1')\n"
        "streamed = datasets.load_dataset('user/pairs', split='train', streaming=True)\n"
        "for name, rows in (('plain', plain), ('streamed', streamed)):\n"
        "    images = [image for row in rows for image in row['images'] + (row['rejected_images'] or [])]\n"
        "    pixels = [numpy.asarray(image) for image in images]\n"
        "    numpy.savez(f'{sys.argv[1]}/{name}.npz', *pixels, ids=[row['id'] for row in rows],\n"
        "                rejected=[row['rejected'][0]['content'] for row in rows])\n",
        tmp_path,
    )  # fmt: skip
    here = loading.load(str(pairs))
    pixels = [np.asarray(image) for row in here for image in [*row["images"], *(row["rejected_images"] or [])]]
    for name in ("plain", "streamed"):
        with np.load(tmp_path / f"{name}.npz") as there:
            assert there["ids"].tolist() == here["id"]
            assert there["rejected"].tolist() == [turns[0]["content"] for turns in here["rejected"]]
            assert all(np.array_equal(there[f"arr_{i}"], image) for i, image in enumerate(pixels))


def test_the_same_content_is_no_commit_and_no_tag(hub: Hub, send: Publish, pairs: Path) -> None:
    send(pairs)
    commits = len(hub.repo("user/pairs", "dataset").commits)
    hub.calls()
    again = send(pairs)
    assert not again.plan and again.tag is None and len(again.plan.same) == len(hub.files("user/pairs", "dataset"))
    assert len(hub.repo("user/pairs", "dataset").commits) == commits
    assert not [call for call in hub.calls() if not call.startswith(("GET", "HEAD", "POST /api/validate-yaml"))]
    assert list(hub.repo("user/pairs", "dataset").tags) == ["v1"]


@pytest.mark.parametrize("count", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_of_many_rows_with_one_changed_one_shard_is_sent(hub: Hub, send: Publish, tmp_path: Path, count: int) -> None:
    def other(row: dict[str, Any]) -> None:
        if row["id"] == f"made/{count // 2}":
            row["images"], row["weight"] = [picture(20_000, side=17)], 1.25

    hub.large_from = 1  # so that the shards are told from all else by what they are uploaded to
    size = f"{count // 50}KB"  # of some 450 bytes a row, so that there are some twenty shards
    first, second = (make_dataset(tmp_path / str(n), count, size, one) for n, one in enumerate((lambda _: None, other)))
    send(first)
    shards = sorted(file.stat().st_size for file in first.glob("data/*.parquet"))
    assert len(shards) > 12 and set(shards) <= {received.body for received in hub.requests}
    hub.requests.clear()
    done = send(second)
    (changed,) = [name for name in done.plan.changed if name.endswith(".parquet")]
    sent = [received.body for received in hub.requests if received.method == "PUT"]
    others = [(second / changed).stat().st_size, *(done.sizes[name] for name in done.plan.changed if name != changed)]
    assert sorted(sent) == sorted(others) and done.tag == "v2"
    again = sum(received.body for received in hub.requests)
    print(f"{sum(shards):,} bytes in {len(shards)} shards; the second time {again:,} bytes were received in all")


def test_what_is_stale_goes_and_what_a_tag_names_stays(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    send(pairs)
    hub.repo("user/pairs", "dataset").commit("main", lambda files: files.update({"NOTES.md": Blob(b"mine")}), "Note")
    fewer = make_dataset(tmp_path / "fewer", 6)
    done = send(fewer)
    stale = [f"data/{file.name}" for file in sorted(pairs.glob("data/*"))]
    assert sorted(done.plan.deleted) == stale and len(stale) > 1
    files = hub.files("user/pairs", "dataset")
    assert {name for name in files if name.startswith("data/")} == {
        f"data/{file.name}" for file in fewer.glob("data/*")
    }
    assert files["NOTES.md"] == b"mine" and len(rows(files)) == 6
    assert len(rows(hub.files("user/pairs", "dataset", "v1"))) == 24


def test_a_card_edited_on_the_hub_keeps_the_persons_text(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    send(pairs)
    question = re.compile(r"\[More information needed: who are the patients[^\]]*\]")
    edit(hub, lambda card: question.sub("Adults of one hospital.", card).replace("tags:\n", "tags:\n- radiology\n"))
    assert send(pairs).tag is None  # only the card is another
    done = send(make_dataset(tmp_path / "more", 30))
    card = text(hub)
    assert "Adults of one hospital." in card and "30 preference pairs" in card and not done.conflicts
    assert DatasetCard(card).data.dataset_info["splits"][0]["num_examples"] == 30
    assert {"radiology", "mmedpo"} <= set(DatasetCard(card).data.tags)
    edit(hub, lambda card: card.replace("30 preference pairs", "Thirty preference pairs"))
    (conflict,) = send(make_dataset(tmp_path / "most", 36)).conflicts
    assert "Thirty" in conflict.kept and "36" in conflict.left_out and "Thirty preference pairs" in text(hub)


def test_a_card_edited_in_the_folder_keeps_the_persons_text(hub: Hub, send: Publish, pairs: Path) -> None:
    card = (pairs / "README.md").read_text()
    card = re.sub(r"\[[^\]]*\(license\)[^\]]*\]", "Under CC0.", card)
    (pairs / "README.md").write_text(card.replace("---\n", "---\nlicense: cc0-1.0\n", 1) + "\n## Thanks\n\nTo all.\n")
    send(pairs)
    assert "Under CC0." in text(hub) and "## Thanks" in text(hub) and DatasetCard(text(hub)).data.license == "cc0-1.0"
    (pairs / "README.md").unlink()
    assert not send(pairs).plan  # the Hub's card has it all


def test_an_answer_that_was_published_is_changed_on_the_hub_which_is_said(hub: Hub, send: Publish, pairs: Path) -> None:
    send(pairs, fill={"privacy": "Nobody has looked."})
    (conflict,) = send(pairs, fill={"privacy": "Two people have looked."}).conflicts
    assert str(conflict).startswith("README.md of user/pairs (text): the edit is kept: '**Identifying marks:** Nobody")
    assert "Two people have looked." in str(conflict) and str(conflict).endswith("change it there.")
    assert "Nobody has looked." in text(hub)


def test_a_repository_that_was_begun_on_the_hubs_page_keeps_its_text_and_gets_ours(
    hub: Hub, send: Publish, pairs: Path
) -> None:
    hub.put("user/pairs", {"README.md": b"---\nlicense: mit\n---\n# Mine\n"}, kind="dataset", private=True)
    with pytest.raises(InputError, match=r"(?s)privacy: are the images.*, or give --yes"):
        send(pairs, confirm=None)
    send(pairs)
    card = text(hub)
    assert card.index("# Mine") < card.index("24 preference pairs") and DatasetCard(card).data.license == "mit"
    assert not send(pairs).plan


def test_files_that_no_publication_wrote_are_asked_about(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    theirs = {"data/train-00000-of-00001.parquet": b"theirs", "manifest.json": b"{}", "notes.md": b"theirs"}
    hub.put("user/pairs", theirs, kind="dataset", private=True)
    answers = {"license": "CC0 1.0", "privacy": "They are."}
    listed = r"overwritten or deleted: manifest\.json, data/train-00000-of-00001\.parquet\. Go on\?"
    with pytest.raises(InputError, match=f"(?s)^user/pairs: files .*{listed}.*Give --yes"):
        send(pairs, confirm=None, fill=answers)
    with pytest.raises(Stopped):
        send(pairs, confirm=lambda question: "outside publications" not in question)
    assert theirs.items() <= hub.files("user/pairs", "dataset").items()
    assert send(pairs, fill=answers).plan.deleted == ["data/train-00000-of-00001.parquet"]
    assert send(make_dataset(tmp_path / "fewer", 6), confirm=None, fill=answers).tag == "v2"  # now it is ours


def test_files_changed_or_added_on_the_hub_since_a_publication_are_asked_about(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    answers, repo = {"license": "CC0 1.0", "privacy": "They are."}, "user/pairs"
    send(pairs, fill=answers)
    theirs = {"data/validation-00000-of-00001.parquet": Blob(b"theirs"), "audit.json": Blob(b"{}")}
    hub.repo(repo, "dataset").commit("main", lambda files: files.update(theirs), "Upload files")
    edit(hub, lambda card: card + "\nMine.\n")  # which is merged
    for folder in (pairs, make_dataset(tmp_path / "fewer", 6)):
        with pytest.raises(InputError, match=r": audit\.json, data/validation-00000-of-00001\.parquet\. Go on\?"):
            send(folder, confirm=None)
    assert hub.files(repo, "dataset").items() >= {name: blob.data for name, blob in theirs.items()}.items()
    assert send(pairs).plan.deleted == ["data/validation-00000-of-00001.parquet"]
    hub.calls()
    assert send(tmp_path / "fewer", confirm=None).tag == "v3"  # all is as a publication left it
    assert not [call for call in hub.calls() if "/tree/v" in call]


def test_a_file_that_is_added_while_a_person_is_asked_is_not_lost(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    send(pairs)
    theirs = {"data/validation-00000-of-00001.parquet": Blob(b"theirs")}

    def add(question: str) -> bool:
        hub.repo("user/pairs", "dataset").commit("main", lambda files: files.update(theirs), "Upload a file")
        return True

    with pytest.raises(InputError, match="was changed by somebody else in the meantime"):
        send(make_dataset(tmp_path / "fewer", 6), confirm=add)
    assert "data/validation-00000-of-00001.parquet" in hub.files("user/pairs", "dataset")


def from_source(folder: Path, **source: str) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"].update(source)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "README.md").unlink()
    return folder


@pytest.mark.parametrize("source", [{"name": "nih-bbox"}, {"license": "of the NIH"}])
def test_pairs_of_another_source_replace_others_when_asked_and_inherit_no_answers(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path, source: dict[str, str]
) -> None:
    answers = {"license": "CC0 1.0", "privacy": "Two people looked."}
    send(pairs, fill=answers)
    other = from_source(make_dataset(tmp_path / "other", 6), **source)
    said = r"holds pairs from invented-example \(CC BY 4\.0\), and the new .*Replace it and its card"
    with pytest.raises(InputError, match=f"(?s){said}.*license: may.*privacy: are") as refused:
        send(other, confirm=None)
    assert "outside publications" not in str(refused.value) and "Two people looked." in text(hub)
    with pytest.raises(InputError, match="Replace it"):
        send(other, confirm=None, fill={"license": "other terms", "privacy": "Nobody looked."})
    edited = {"manifest.json": Blob(b"{}")}  # what the publication held is asked, not what lies there now
    hub.repo("user/pairs", "dataset").commit("main", lambda files: files.update(edited), "Edit")
    with pytest.raises(InputError, match="Replace it"):
        send(other, confirm=None, fill=answers)
    done = send(other)
    assert "Two people looked." not in text(hub) and "license" not in DatasetCard(text(hub)).data.to_dict()
    assert [field for field in done.open_fields if "may derived pairs" in field]
    assert not send(other, confirm=None).plan
    edit(hub, lambda card: card + "\nMine.\n")
    assert not send(other, confirm=None).plan and "Mine." in text(hub)


def test_weights_of_another_model_or_dataset_replace_others_when_asked(hub: Hub, send: Publish, tmp_path: Path) -> None:
    first, again, other = (make_adapter(tmp_path / name) for name in ("first", "again", "other"))
    send(first, "user/mine", "adapter", fill={"license": "MIT"})
    for folder, change in ((again, {"seconds": 1.0}), (other, {"dataset": "example-org/else"})):
        training = json.loads((folder / "training.json").read_text()) | change
        (folder / "training.json").write_text(json.dumps(training))
    assert send(again, "user/mine", "adapter", confirm=None).tag == "v2"
    said = (
        r"holds weights of .*-vlm trained on example-org/invented-pairs, and the new .* on example-org/else\. Replace"
    )
    with pytest.raises(InputError, match=said):
        send(other, "user/mine", "adapter", confirm=None)
    done = send(other, "user/mine", "adapter")
    assert [field for field in done.open_fields if "the licence follows" in field]


def test_fields_that_only_a_person_can_fill_are_asked_for_first(hub: Hub, send: Publish, pairs: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)license: may derived.*privacy: are the images.*--fill KEY") as refused:
        send(pairs, confirm=None)
    assert "public" not in str(refused.value) and not list(hub.store)
    assert str(refused.value).endswith('by --fill KEY="...", or give --yes to go on.')
    with pytest.raises(InputError, match=r'by --fill KEY="\.\.\.", and give --yes to go on\.$'):
        send(pairs, confirm=None, public=True)
    asked: list[str] = []
    with pytest.raises(Stopped, match="Nothing was sent"):
        send(pairs, public=True, confirm=lambda question: bool(asked.append(question)) or len(asked) < 2)
    assert len(asked) == 2 and "everybody can read" in asked[0] and not list(hub.store)
    done = send(pairs, confirm=None, fill={"license": "CC0 1.0", "privacy": "Two people looked: they are."})
    assert "Two people looked: they are." in text(hub) and DatasetCard(text(hub)).data.license == "cc0-1.0"
    assert all("who are the patients" in field or "clinician" in field for field in done.open_fields)
    assert not send(pairs, confirm=None).plan


def test_a_repository_keeps_its_visibility_and_a_public_one_is_asked_about(
    hub: Hub, send: Publish, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "adapter")
    hub.put("user/open", {}, private=False)
    with pytest.raises(InputError, match=r"user/open is public: everybody can read"):
        send(folder, "user/open", "adapter", fill={"license": "MIT"}, confirm=None)
    hub.put("user/closed", {}, private=True)
    for repo, public, visibility in (
        ("open", False, "public"), ("closed", True, "private"), ("new", True, "public"), ("other", False, "private"),
    ):  # fmt: skip
        assert send(folder, f"user/{repo}", "adapter", public=public).visibility == visibility
        assert hub.repo(f"user/{repo}").private == (visibility == "private")


def test_a_dry_run_says_all_and_sends_nothing(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    done = send(pairs, dry_run=True, confirm=None)
    assert not list(hub.store) and done.tag == "v1" and len(done.plan.new) == len(list(pairs.glob("data/*"))) + 5
    send(pairs)
    hub.calls()
    again = send(make_dataset(tmp_path / "seeded", seed=1), dry_run=True)
    assert again.plan.changed == ["manifest.json", "README.md", ".mmedpo/card.md"] and again.tag == "v2"
    assert not [call for call in hub.calls() if not call.startswith(("GET", "HEAD"))]


def test_a_publication_killed_before_its_tag_is_tagged_by_the_next(hub: Hub, send: Publish, pairs: Path) -> None:
    hub.fail("POST .*/tag/", status=403, times=9)
    with pytest.raises(InputError, match="was published, but not tagged"):
        send(pairs)
    hub.faults.clear()
    commit = hub.repo("user/pairs", "dataset").branches["main"]
    edit(hub, lambda card: card + "\nMine.\n")
    assert send(pairs).tag == "v1" and hub.repo("user/pairs", "dataset").tags == {"v1": commit}


def test_tags_may_be_named_and_none_is_moved(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    assert send(pairs, tag="paper").tag == "paper"
    assert send(pairs, tag="again").tag == "again"  # another name for the same
    with pytest.raises(InputError, match="the tag paper exists"):
        send(make_dataset(tmp_path / "other", 9), tag="paper")
    send(make_dataset(tmp_path / "other", 9))
    for options in ({}, {"dry_run": True}):  # there is nothing to send, but the tag is another version's
        with pytest.raises(InputError, match="the tag paper exists"):
            send(tmp_path / "other", tag="paper", **options)
    assert send(tmp_path / "other", tag="v1").tag == "v1"
    assert hub.repo("user/pairs", "dataset").tags["paper"] == hub.repo("user/pairs", "dataset").tags["again"]


def test_two_publishers_at_once_lose_no_commit(hub: Hub, send: Publish, pairs: Path, tmp_path: Path) -> None:
    send(pairs)
    folders = [make_dataset(tmp_path / f"of-{count}", count) for count in (30, 36)]
    hub.fail("POST .*/commit/", delay=0.3, times=2)  # both have read the same head by then
    done: list[Publication] = []
    threads = [threading.Thread(target=lambda folder=folder: done.append(send(folder))) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    repo = hub.repo("user/pairs", "dataset")
    assert sorted(repo.tags) == ["v1", "v2", "v3"] and len({commit.oid for commit in repo.tags.values()}) == 3
    assert {one.commit for one in done} == {repo.tags["v2"].oid, repo.tags["v3"].oid}
    assert repo.head.oid == max(repo.tags["v2"], repo.tags["v3"], key=lambda commit: len([*commit.history])).oid
    counts = {tag: len(rows(hub.files("user/pairs", "dataset", tag))) for tag in repo.tags}
    assert sorted(counts.values()) == [24, 30, 36] and counts["v1"] == 24


def test_a_person_who_edits_while_it_uploads_is_not_overwritten(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    send(pairs)
    fault = hub.fail("POST .*/commit/", delay=0.5)
    sending = threading.Thread(target=send, args=(make_dataset(tmp_path / "seeded", seed=1),))
    sending.start()
    while fault.times:
        sending.join(0.05)
    edit(hub, lambda card: card + "\nWritten in between.\n")
    sending.join()
    assert "Written in between." in text(hub) and "| seed | 1 |" in text(hub)


def test_an_adapter_is_published_with_what_belongs_to_it(hub: Hub, send: Publish, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "vqa-rad.yaml").write_text("- value: 1\n")
    for name in ("training_args.bin", "optimizer.pt", "predictions.jsonl", "calls.sqlite", "log.txt"):
        (folder / name).write_bytes(b"not this")
    assert send(folder, "user/mine", "adapter").tag == "v1" and hub.repo("user/mine").private
    files = hub.files("user/mine")
    assert files.keys() == {
        "README.md", ".mmedpo/card.md", "curves.png", "training.json", "trainer_state.json", "recipe.yaml",
        "adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "processor_config.json",
        ".eval_results/vqa-rad.yaml", "comparison.json",
    }  # fmt: skip
    data = ModelCard(files["README.md"].decode()).data
    assert (data.base_model, data.datasets) == ("example-org/invented-med-vlm", ["example-org/invented-pairs"])
    revision = json.loads(files["training.json"])["dataset_revision"]
    assert f"| dataset | example-org/invented-pairs, commit {revision} |" in files["README.md"].decode()
    theirs = {name: Blob(b"theirs") for name in ("models/extra.safetensors", "adapter_model-of-before.safetensors")}
    hub.repo("user/mine").commit("main", lambda files: files.update(theirs), "Add files")
    assert send(folder, "user/mine", "adapter").plan.deleted == ["adapter_model-of-before.safetensors"]
    assert not send(folder, "user/mine", "adapter").plan


@pytest.mark.parametrize("name", ["chat_template.jinja", "README.md", "training.json", ".mmedpo/card.md"])
def test_a_link_to_a_file_elsewhere_is_not_published(hub: Hub, send: Publish, tmp_path: Path, name: str) -> None:
    folder, private = make_adapter(tmp_path / "adapter"), tmp_path / "private"
    private.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"a private key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(private)
    with pytest.raises(InputError, match="is a link to a file elsewhere"):
        send(folder, "user/mine", "adapter")
    assert not list(hub.store)


def test_a_model_inherits_no_results_and_no_configuration_of_the_adapter_before_it(
    hub: Hub, send: Publish, tmp_path: Path
) -> None:
    old, new = make_adapter(tmp_path / "old"), make_adapter(tmp_path / "new")
    (old / ".eval_results").mkdir()
    (old / ".eval_results" / "vqa-rad.yaml").write_text("- value: 1\n")
    (new / "adapter_model.safetensors").rename(new / "model.safetensors")
    for name in ("adapter_config.json", "comparison.json", "curves.png"):
        (new / name).unlink()
    send(old, "user/mine", "adapter")
    gone = {"adapter_model.safetensors", "adapter_config.json", "comparison.json", "curves.png",
            ".eval_results/vqa-rad.yaml"}  # fmt: skip
    assert set(send(new, "user/mine", "adapter").plan.deleted) == gone
    assert not gone & hub.files("user/mine").keys() and gone <= hub.files("user/mine", revision="v1").keys()


def test_an_adapters_card_still_says_what_its_dataset_was(hub: Hub, send: Publish, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    for name in ("README.md", ".mmedpo/card.md"):  # as where the dataset of phantoms lay beside it
        card = (folder / name).read_text()
        (folder / name).write_text(card.replace("## Intended use", "> Phantoms.\n\n## Intended use"))
    send(folder, "user/mine", "adapter")
    assert "> Phantoms." in text(hub, "user/mine", "model")


def test_a_metric_becomes_a_space(hub: Hub, send: Publish) -> None:
    done = send(ROOT / "eval" / "med_vqa", "med_vqa", "metric", confirm=None)
    files = hub.files("user/med_vqa", "space")
    assert (
        files.keys() >= {path.name for path in (ROOT / "eval" / "med_vqa").iterdir() if path.is_file()}
        and done.visibility == "private"
    )
    assert SpaceCard(files["README.md"].decode()).data.sdk == "gradio"
    with pytest.raises(InputError, match=r"no other\.py: evaluate\.load.*Scripts here: med_vqa"):
        send(ROOT / "eval" / "med_vqa", "other", "metric")


@pytest.fixture
def secrets(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What must not leave: a home folder and a current one, a token, and an endpoint's key."""
    hub.accounts["hf_secret"] = hub.accounts["write"]
    monkeypatch.setenv("HOME", str(tmp_path / "Müller, Alice"))
    monkeypatch.setenv("MMEDPO_API_KEY", "sk-judges")
    monkeypatch.setenv("MMEDPO_API_KEY__JUDGES_ORG", "sk-of-a-host\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return {
        "home": f"{Path.home()}/here", "escaped": json.dumps(f"{Path.home()}/here"), "quoted": f"file://{quote(str(Path.home()))}/",
        "current": f"{Path.cwd()}/here", "token": "hf_secret", "key": "https://judges/v1?api_key=sk-judges",
        "host's key": "sk-of-a-host",
    }  # fmt: skip


@pytest.mark.parametrize("word", ["home", "escaped", "quoted", "current", "token", "key", "host's key"])
def test_a_text_that_names_the_machine_or_holds_a_secret_is_stopped(
    hub: Hub, send: Publish, pairs: Path, word: str, secrets: dict[str, str]
) -> None:
    (pairs / "README.md").write_text((pairs / "README.md").read_text() + f"\nSee {secrets[word]}\n")
    with pytest.raises(InputError, match=r"README\.md contains"):
        send(pairs, token="hf_secret")
    assert not list(hub.store)


def test_a_row_that_names_the_machine_or_holds_a_secret_is_stopped(
    hub: Hub, send: Publish, secrets: dict[str, str], tmp_path: Path
) -> None:
    def judged(row: dict[str, Any]) -> None:
        if row["id"] == "made/7":
            judgement = {"round": 1, "judge": "m", "score": 0.5, "rationale": f"no score: {secrets['key']}"}
            row["provenance"] |= {"judgements": [judgement], "rejected_by": secrets["home"]}

    with pytest.raises(InputError, match=r"data/train-.*parquet, row .*, contains .*Müller, Alice/"):
        send(make_dataset(tmp_path / "pairs", change=judged), token="hf_secret")
    assert not list(hub.store)

    def called(row: dict[str, Any]) -> None:
        row["provenance"] |= {"rejected_by": "http://alice:word@box/v1#m"}

    with pytest.raises(InputError, match=r"contains a user and a password of a URL.*curate again"):
        send(make_dataset(tmp_path / "called", change=called))
    assert not list(hub.store)


def test_nothing_of_credentialed_sources_but_numbers_goes_out(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    manifest = json.loads((pairs / "manifest.json").read_text())
    for source in ({"name": "mimic-cxr"}, {"name": "here", "credentialed": True}):
        manifest["source"].update(source)
        (pairs / "manifest.json").write_text(json.dumps(manifest))
        assert "no text and no image" in send(pairs, dry_run=True).notices[0]
    named = make_dataset(tmp_path / "named", 6, change=lambda row: row.update(source="CheXpert-v1.0"))
    assert send(named, dry_run=True).notices[0].startswith("CheXpert-v1.0 is restricted data")
    adapter = make_adapter(tmp_path / "adapter")
    training = json.loads((adapter / "training.json").read_text())
    training["dataset_manifest"] = {"source": {"name": "PadChest"}}
    (adapter / "training.json").write_text(json.dumps(training))
    with pytest.raises(InputError, match="PadChest is restricted data"):
        send(adapter, kind="adapter")
    assert not list(hub.store)


def test_the_card_of_weights_alone_says_what_is_licensed_and_what_it_holds(
    hub: Hub, send: Publish, pairs: Path, tmp_path: Path
) -> None:
    send(from_source(pairs, name="mimic-cxr"), fill={"license": "other"})
    send(make_adapter(tmp_path / "adapter"), "user/mine", "adapter", fill={"license": "other"})
    assert DatasetCard(text(hub)).data.pretty_name == "MMedPO weights for preference pairs from mimic-cxr"
    for card in (text(hub), text(hub, "user/mine", "model")):
        assert "\n**Licence of these weights:** other\n" in card


def no_shards(folder: Path) -> None:
    shutil.rmtree(folder / "data")


def a_shard_missing(folder: Path) -> None:
    sorted(folder.glob("data/*.parquet"))[1].unlink()


def another_name(folder: Path) -> None:
    sorted(folder.glob("data/*.parquet"))[0].rename(folder / "data" / "rows.parquet")


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def a_shard_cut_off(folder: Path) -> None:
    file = sorted(folder.glob("data/*.parquet"))[1]
    file.write_bytes(file.read_bytes()[:-100])


def a_shard_garbled(folder: Path) -> None:
    file = sorted(folder.glob("data/*.parquet"))[1]
    data = file.read_bytes()
    file.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])


def no_utf_8(folder: Path) -> None:
    (folder / "README.md").write_bytes("Müller".encode("latin-1"))


def a_list_for_a_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def a_manifest_without_counts(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": "mmedpo.manifest/1"}')


def a_picture_with_notes(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"  # the artist
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "JPEG", exif=exif)
    shutil.rmtree(folder)
    make_dataset(folder, 3, change=lambda row: row.update(images=[{"bytes": buffer.getvalue(), "path": "a.jpg"}]))


def a_faulty_row(folder: Path) -> None:
    file = sorted(folder.glob("data/*.parquet"))[0]
    rows = schema.undecoded(loading.load_split(str(folder), "train")).to_list()
    rows[1]["weight"], rows[2]["images"][0]["path"] = -1.0, "/data/someone/a.png"
    shutil.rmtree(folder / "data")
    file.parent.mkdir()
    from datasets import Dataset

    Dataset.from_list(rows, features=schema.FEATURES).to_parquet(folder / "data" / "train-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_shards, "is no finished dataset"),
        (a_shard_missing, "lacks shards of train"),
        (another_name, "is not named SPLIT-00000-of-00001.parquet"),
        (no_manifest, r"manifest\.json does not exist"),
        (a_shard_cut_off, r"a Parquet file is damaged \("),
        (a_shard_garbled, r"a Parquet file is damaged \("),
        (no_utf_8, r"README\.md cannot be read as UTF-8 text"),
        (a_list_for_a_manifest, r"manifest\.json (is not a JSON object|has the format None)"),
        (a_manifest_without_counts, r"manifest\.json has no entry source, counts"),
        (a_picture_with_notes, r"is no PNG or JPEG file without metadata \(EXIF"),
        (a_faulty_row, r"(?s)breaks? the preference schema.*weight.*is -1.*has a path as its name"),
    ],
)
def test_what_is_no_finished_dataset_is_refused(
    hub: Hub, send: Publish, pairs: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(pairs)
    for options in ({}, {"third_parties": True}):
        with pytest.raises(InputError, match=said):
            send(pairs, **options)
    assert not list(hub.store)


def test_what_is_no_folder_is_not_looked_for_on_the_hub(hub: Hub, send: Publish, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nix is not a folder\. Give the folder of a finished dataset"):
        send(tmp_path / "nix")
    assert not hub.calls()


def test_the_command_line_in_a_process_of_its_own(hub: Hub, pairs: Path) -> None:
    def command(*words: str, token: str = "write") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mmedpo.cli", "publish", *words], capture_output=True, text=True, check=False,
            env=hub.environment(token), stdin=subprocess.DEVNULL, cwd=hub.home,
        )  # fmt: skip

    done = command(str(pairs), "pairs", "--fill", "license=CC0 1.0", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.url}/datasets/user/pairs (private, tag v1)" in done.stdout.replace("\n", " ")
    assert list(hub.repo("user/pairs", "dataset").tags) == ["v1"]


def test_ctrl_d_at_a_question_sends_nothing(hub: Hub, pairs: Path) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"\x04")
    command = [sys.executable, "-m", "mmedpo", "publish", str(pairs), "pairs"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=hub.environment(), stdin=terminal, cwd=hub.home
    )
    assert done.returncode == 130 and "Nothing was sent." in done.stderr and not list(hub.store)


def test_the_picture_is_drawn_of_little_and_of_much(made: Path) -> None:
    audit = json.loads((made / "audit.json").read_text())
    little = {**audit, "weights": None, "style": None, "rejects": None}
    much = {**audit, "rejects": {f"reason {n}, which takes many words to say": n for n in range(1, 30)}}
    for record in (little, much):
        with Image.open(io.BytesIO(draw(record))) as drawn:
            assert drawn.size == (960, 480) and len(drawn.getcolors(100_000) or []) > 10
    assert draw(much) == draw(much)


def test_the_example_card_is_not_changed_by_publishing(made: Path) -> None:
    assert "audit.png" not in (EXAMPLES / "dataset.md").read_text()
    assert "configs" not in DatasetCard((made / "README.md").read_text()).data.to_dict()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    disable_progress_bars()
    yield
    enable_progress_bars()
