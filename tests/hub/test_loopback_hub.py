"""The loopback Hub as huggingface_hub, unmodified, finds it: repositories, commits, files, permissions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub.accounts import Account
from hub.server import Hub

LARGE = bytes(range(256)) * 40
CARD = b"---\nlicense: mit\ntags: [medical]\n---\nText.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    (made / "data").mkdir(parents=True)
    (made / "README.md").write_bytes(CARD)
    (made / "data" / "notes.txt").write_bytes(b"one")
    (made / "data" / "weights.safetensors").write_bytes(LARGE)
    (made / "noise.log").write_bytes(b"")
    (made / ".gitignore").write_bytes(b"# local\n*.log\n")
    return made


def content(folder: Path) -> dict[str, bytes]:
    """Of the files that .gitignore does not name."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".log")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_repository_from_its_making_to_its_end(hub: Hub, folder: Path) -> None:
    told = hub.ask(
        """
        repo = api.create_repo("made", private=True)
        api.create_repo("made", exist_ok=True)
        first = api.upload_folder(repo_id=repo.repo_id, folder_path=sys.argv[1]).oid
        api.create_tag("user/made", tag="v1", tag_message="released")
        api.create_branch("user/made", branch="draft/2")
        api.upload_file(path_or_fileobj=b"two", path_in_repo="data/notes.txt", repo_id="user/made", revision="draft/2")
        api.delete_file("data/weights.safetensors", "user/made")
        api.move_repo("user/made", "user/moved")
        info = api.repo_info("user/moved", files_metadata=True)
        tree = api.list_repo_tree("user/moved", recursive=True, expand=True)
        api.create_repo("gone", repo_type="dataset")
        api.delete_repo("gone", repo_type="dataset")
        refs = api.list_repo_refs("user/moved")
        api.delete_branch("user/moved", branch="draft/2")
        say({
            "first": first, "who": api.whoami()["name"], "id": info.id, "private": info.private, "tags": info.tags,
            "license": info.card_data.license, "sizes": {file.rfilename: file.size for file in info.siblings},
            "at v1": api.list_repo_files("user/moved", revision="v1"), "formerly": api.repo_info("user/made").id,
            "titles": [commit.title for commit in api.list_repo_commits("user/moved")],
            "refs": [ref.name for ref in refs.branches + refs.tags], "tag": refs.tags[0].target_commit,
            "changed by": {entry.path: entry.last_commit and entry.last_commit.title for entry in tree},
            "info of": [entry.path for entry in api.get_paths_info("user/moved", ["data", "absent", "README.md"])],
            "datasets": [found.id for found in api.list_datasets(author="user")],
            "models": [found.id for found in api.list_models(author="user", filter="license:mit", search="MOV")],
        })
        """,
        folder,
    )
    kept = {".gitattributes", ".gitignore", "README.md", "data/notes.txt"}
    titles = ["Delete data/weights.safetensors with huggingface_hub", "Upload folder using huggingface_hub"]
    assert told["who"] == "user" and told["private"] and told["id"] == told["formerly"] == "user/moved"
    assert told["license"] == "mit" and told["tags"] == ["medical", "license:mit"]
    assert told["sizes"].keys() == kept and told["sizes"]["data/notes.txt"] == 3
    assert set(told["at v1"]) == kept | {"data/weights.safetensors"} and told["tag"] == told["first"]
    assert told["titles"] == [*titles, "initial commit"]
    assert told["refs"] == ["main", "draft/2", "v1"] and list(hub.repo("user/moved").branches) == ["main"]
    assert told["changed by"] == dict.fromkeys(kept - {".gitattributes"}, titles[1]) | {
        ".gitattributes": "initial commit", "data": None
    }  # fmt: skip
    assert told["info of"] == ["data", "README.md"] and told["models"] == ["user/moved"] and told["datasets"] == []
    assert hub.files("user/moved", revision="v1") == content(folder)
    assert [commit.author for commit in hub.repo("user/moved").head.history] == ["user", "user", "system"]


def test_what_the_hub_has_is_neither_sent_nor_committed_again(hub: Hub, folder: Path) -> None:
    upload = "say(api.upload_folder(repo_id='user/x', folder_path=sys.argv[1]).oid)"
    hub.put("user/x", {})
    first = hub.ask(upload, folder)
    assert hub.sent() == len(LARGE) and hub.files("user/x") == content(folder)
    assert [call.rsplit("/", 1)[0] for call in hub.calls()][-3:] == [
        "PUT /lfs/models/user/x", f"POST /lfs/models/user/x/{hashlib.sha256(LARGE).hexdigest()}",
        "POST /api/models/user/x/commit",
    ]  # fmt: skip
    (folder / "noise.log").unlink()  # ignored files alone make the client send a commit of nothing
    assert hub.ask(upload, folder) == first == hub.repo("user/x").head.oid
    assert hub.sent() == 0 and not [call for call in hub.calls() if "/commit/" in call]
    (folder / "data" / "notes.txt").write_bytes(b"two")
    (folder / "copy.safetensors").write_bytes(LARGE)
    second = hub.ask(upload, folder)
    head = hub.repo("user/x").head
    assert hub.sent() == 0 and head.oid == second and head.parent and head.parent.oid == first
    assert hub.files("user/x") == content(folder)


def test_large_files_go_up_in_parts_and_a_failed_part_alone_again(hub: Hub) -> None:
    hub.put("user/x", {}, kind="dataset")
    hub.part_size = 4000
    hub.fail(r"PUT .*/2$", status=500)
    hub.ask("""
        say(api.upload_file(path_or_fileobj=bytes(range(256)) * 40, path_in_repo="a.bin", repo_id="user/x",
                            repo_type="dataset"))
    """)
    parts = [(request.path[-1], request.body, request.status) for request in hub.requests if request.method == "PUT"]
    assert parts == [("1", 4000, 200), ("2", 4000, 500), ("2", 4000, 200), ("3", 2240, 200)]
    assert hub.files("user/x", "dataset") == {"a.bin": LARGE}


def test_files_come_down_once_and_in_pieces(hub: Hub) -> None:
    repo = hub.put("user/x", {"a.txt": b"text", "b/c.bin": LARGE, "b/d.txt": b""}, large=("b/c.bin",))
    hub.page_size = 2
    hub.fail("GET .*/c.bin", cut=1000)
    told = hub.ask("""
        from pathlib import Path
        from huggingface_hub import HfFileSystem, get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
        try:
            hf_hub_download("user/x", "b/c.bin")
        except Exception as error:
            lost = type(error).__name__
        paths = [hf_hub_download("user/x", "b/c.bin") for _ in range(2)]
        whole = snapshot_download("user/x")
        meta = {name: get_hf_file_metadata(hf_hub_url("user/x", name)) for name in ("a.txt", "b/c.bin")}
        with HfFileSystem().open("user/x/b/c.bin", "rb", block_size=100) as file:
            file.seek(5000)
            piece = file.read(4)
        say({"lost": lost, "same": paths[0] == paths[1], "path": paths[0], "piece": list(piece), "whole": whole,
             "etags": [meta.etag for meta in meta.values()], "sizes": [meta.size for meta in meta.values()]})
    """)
    assert told["lost"] == "ReadError" and told["same"] and Path(told["path"]).read_bytes() == LARGE
    assert {name: (Path(told["whole"]) / name).read_bytes() for name in hub.files("user/x")} == hub.files("user/x")
    # git's own hash of "text", by `git hash-object`
    assert told["etags"] == ["f3a34851d44d6b97c90fbb99dd3d18c261b9a237", hashlib.sha256(LARGE).hexdigest()]
    assert told["sizes"] == [4, len(LARGE)] and told["piece"] == [136, 137, 138, 139] and repo.head.oid in told["whole"]
    loads = [request for request in hub.requests if request.method == "GET" and request.path.endswith("c.bin")]
    assert [request.status for request in loads] == [None, 200, 206]  # lost, whole, and the piece
    assert sum("/tree/" in request.path for request in hub.requests) >= 3  # pages


def test_what_is_not_there_is_said_by_name(hub: Hub) -> None:
    hub.put("user/x", {"a.txt": b""})
    told = hub.ask("""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, hf_hub_download
        def refused(call, *arguments, **named):
            try:
                call(*arguments, **named)
            except Exception as error:
                return [type(error).__name__, error.response.status_code]
        say([
            refused(api.repo_info, "user/absent"), refused(api.repo_info, "gpt2"),
            refused(api.repo_info, "user/x", revision="v9"), refused(hf_hub_download, "user/x", "absent"),
            refused(hf_hub_download, "user/x", "a.txt", revision="v9"),
            refused(lambda: list(api.list_repo_tree("user/x", "absent"))),
            refused(api.delete_file, "absent", "user/x"), refused(api.delete_tag, "user/x", tag="v9"),
            refused(api.create_repo, "x"), refused(api.create_branch, "user/x", branch="main"),
            refused(api.move_repo, "user/x", "user/x"),
            refused(api.upload_file, path_or_fileobj=b"", path_in_repo="b", repo_id="user/x", create_pr=True),
            refused(api.upload_file, path_or_fileobj=b"", path_in_repo="b", repo_id="user/x", revision="absent"),
        ])
    """)
    assert told == [
        ["RepositoryNotFoundError", 404], ["RepositoryNotFoundError", 404], ["RevisionNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404], ["RevisionNotFoundError", 404], ["RemoteEntryNotFoundError", 404],
        ["RemoteEntryNotFoundError", 404], ["RevisionNotFoundError", 404], ["HfHubHTTPError", 409],
        ["HfHubHTTPError", 409], ["HfHubHTTPError", 409], ["HfHubHTTPError", 403], ["RevisionNotFoundError", 404],
    ]  # fmt: skip


def test_everyone_sees_and_writes_what_is_theirs(hub: Hub) -> None:
    hub.accounts["org"] = Account("member", orgs={"clinic": "write", "ward": "read"})
    for id in ("user/private", "clinic/private", "ward/private"):
        hub.put(id, {"a.txt": b"a"}, private=True)
    hub.put("user/gated", {"a.txt": b"a"}, gated="manual", granted={"member"})
    hub.put("user/open", {"a.txt": b"a"})
    told = hub.ask("""
        from huggingface_hub import HfApi
        def outcome(call, *arguments, **named):
            try:
                call(*arguments, **named)
                return "yes"
            except Exception as error:
                return f"{type(error).__name__} {error.response.status_code}"
        found = {}
        for token in (False, "unknown", "read", "write", "other", "org"):
            api = HfApi(token=token)
            found[token or "none"] = {
                "read": {id: outcome(api.hf_hub_download, id, "a.txt", cache_dir=f"of-{token}")
                         for id in ("user/open", "user/private", "clinic/private", "ward/private", "user/gated")},
                "write": {id: outcome(api.upload_file, repo_id=id, path_in_repo="b.txt", path_or_fileobj=token.encode()
                                      if token else b"")
                          for id in ("user/open", "user/private", "clinic/private", "ward/private")},
                "checked": outcome(api.auth_check, "clinic/private", write=True),
                "create": outcome(api.create_repo, "clinic/" + (token or "none")),
                "listed": len(list(api.list_models())) if token != "unknown" else None,
                "info": outcome(api.model_info, "user/gated"),
            }
        say(found)
    """)
    none, unknown, read, write, other, org = told.values()
    absent, forbidden = "RepositoryNotFoundError 404", "HfHubHTTPError 403"
    hidden, nobody = "RepositoryNotFoundError 401", "HfHubHTTPError 401"
    assert list(none["read"].values()) == ["yes", hidden, hidden, hidden, "GatedRepoError 401"]
    assert list(none["write"].values()) == [nobody, hidden, hidden, hidden] and none["create"] == nobody
    assert {*unknown["read"].values(), *unknown["write"].values(), unknown["info"]} == {nobody}
    assert list(read["read"].values()) == ["yes", "yes", absent, absent, "yes"]
    assert list(read["write"].values()) == [forbidden, forbidden, absent, absent] and read["create"] == forbidden
    assert list(write["write"].values()) == ["yes", "yes", absent, absent] and write["create"] == forbidden
    assert list(other["read"].values()) == ["yes", absent, absent, absent, "GatedRepoError 403"]
    assert list(other["write"].values()) == [forbidden, absent, absent, absent]
    assert list(org["read"].values()) == ["yes", absent, "yes", "yes", "yes"]
    assert list(org["write"].values()) == [forbidden, absent, "yes", forbidden] and org["create"] == "yes"
    assert (org["checked"], write["checked"], none["info"]) == ("yes", absent, "yes")
    assert [each["listed"] for each in (none, read, write, other, org)] == [2, 3, 3, 2, 5]


def test_of_commits_on_one_parent_one_is_made_and_the_others_are_told(hub: Hub) -> None:
    hub.put("user/x", {"a.txt": b""})
    told = hub.ask("""
        from concurrent.futures import ThreadPoolExecutor
        def upload(number, parent=None):
            try:
                api.upload_file(path_or_fileobj=str(number).encode(), path_in_repo=f"{number}.txt", repo_id="user/x",
                                parent_commit=parent)
                return 200
            except Exception as error:
                return error.response.status_code
        head = api.repo_info("user/x").sha
        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(lambda number: upload(number, head), range(8)))
            second = list(pool.map(upload, range(8, 16)))
        say([first, second])
    """)
    assert sorted(told[0]) == [200] + [412] * 7 and told[1] == [200] * 8
    winner = told[0].index(200)
    assert set(hub.files("user/x")) == {"a.txt", f"{winner}.txt", *(f"{number}.txt" for number in range(8, 16))}
    assert len(list(hub.repo("user/x").head.history)) == 2 + 1 + 8
