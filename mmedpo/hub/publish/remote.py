"""State of a repository on the Hub, its difference from the wanted files, and the commit that applies it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.runs.json_files import sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

TITLE = "Published with mmedpo"  # start of a publication's commit message


@dataclass(frozen=True)
class File:
    """A file to publish, on disk or in memory; its hashes are computed once."""

    source: Path | bytes

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        return sha256(self.source)

    def equals(self, there: RepoFile) -> bool:
        """Return whether a file on the Hub has the same content, by hash."""
        if self.size != there.size:
            return False
        if there.lfs is not None:
            return self.sha256 == there.lfs.sha256
        return hashlib.sha1(b"blob %d\0" % self.size + self.read()).hexdigest() == there.blob_id

    def read(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


@dataclass(frozen=True)
class Remote:
    """A repository at one commit; `head` is None if it has none, `visibility` if it does not exist."""

    repo_id: str
    repo_type: str
    visibility: str | None = None
    head: str | None = None
    files: Mapping[str, RepoFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # name -> commit

    @property
    def next_tag(self) -> str:
        numbers = [int(name[1:]) for name in self.tags if name[:1] == "v" and name[1:].isdecimal()]
        return f"v{max(numbers, default=0) + 1}"


@dataclass(frozen=True)
class Plan:
    """Changes of a commit: names of new, changed, unchanged and deleted files."""

    new: Sequence[str]
    changed: Sequence[str]
    same: Sequence[str]
    deleted: Sequence[str]

    @property
    def sent(self) -> list[str]:
        return [*self.new, *self.changed]

    def __bool__(self) -> bool:
        return bool(self.new or self.changed or self.deleted)


def read(api: HfApi, repo_id: str, repo_type: str, revision: str | None = None) -> Remote:
    """Return the repository at a commit, by default the newest; a missing one has no visibility."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.repo_info(repo_id, repo_type=repo_type, revision=revision)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError as error:
        if error.response.status_code != 404:
            raise
        return Remote(repo_id, repo_type)
    visibility = "private" if info.private else "public"
    if info.sha is None:
        return Remote(info.id, repo_type, visibility)
    files = _files(api, repo_id, repo_type, info.sha)
    tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(repo_id, repo_type=repo_type).tags}
    return Remote(info.id, repo_type, visibility, info.sha, files, tags)


def text(api: HfApi, remote: Remote, path: str) -> str | None:
    """Return a text file of the repository at that commit, without writing to disk; None if it has none."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    if path not in remote.files:
        return None
    url = hf_hub_url(remote.repo_id, path, repo_type=remote.repo_type, revision=remote.head, endpoint=api.endpoint)
    response = get_session().get(url, headers=build_hf_headers(token=api.token))
    hf_raise_for_status(response)
    return response.content.decode("utf-8", "replace")


def plan(files: Mapping[str, File], own: Sequence[str], remote: Remote) -> Plan:
    """Compare `files` with the repository by hash; files matching `own` but not in `files` are deleted."""
    there = remote.files
    return Plan(
        new=[name for name in files if name not in there],
        changed=[name for name, file in files.items() if name in there and not file.equals(there[name])],
        same=[name for name, file in files.items() if name in there and file.equals(there[name])],
        deleted=[name for name in there if name not in files and fits(name, own)],
    )


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a file name matches a pattern; `*` does not cross folders."""
    return any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for pattern in patterns)


def commit(api: HfApi, remote: Remote, files: Mapping[str, File], plan: Plan, message: str) -> str:
    """Commit a plan on top of the commit that it was made for; return the new commit.

    Errors of the Hub's client pass through, also if somebody else committed since.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in plan.deleted]
    for name in plan.sent:
        source = files[name].source
        operations.append(CommitOperationAdd(name, source))
        operations[-1].upload_info.sha256 = bytes.fromhex(files[name].sha256)
    done = api.create_commit(
        remote.repo_id, operations, commit_message=message, repo_type=remote.repo_type, parent_commit=remote.head
    )
    return done.oid


def refuse_history(api: HfApi, remote: Remote, barred: Sequence[str]) -> None:
    """Raise InputError if a publication or a tag holds one of these files at its top level."""
    if not barred or remote.head is None:
        return
    history = api.list_repo_commits(remote.repo_id, repo_type=remote.repo_type, revision=remote.head)
    versions = {made.commit_id: made.commit_id[:12] for made in history if made.title.startswith(TITLE)}
    versions |= {commit: tag for tag, commit in remote.tags.items()}
    for commit, name in versions.items():
        tree = api.list_repo_tree(remote.repo_id, revision=commit, repo_type=remote.repo_type)
        if any(entry.path in barred for entry in tree):
            raise InputError(
                f"{remote.repo_id} holds texts and images already: its version {name} was published whole, and the "
                "history keeps that, whatever is put on top. Delete the repository on the Hub (in its settings) and "
                "publish anew, or choose another name."
            )


def last_publication(api: HfApi, remote: Remote) -> Remote | None:
    """Return the repository at its last publication; None if there was none."""
    if remote.head is None:
        return None
    for made in api.list_repo_commits(remote.repo_id, repo_type=remote.repo_type, revision=remote.head):
        if made.title.startswith(TITLE):
            return remote if made.commit_id == remote.head else _at(api, remote, made.commit_id)
    return None


def _at(api: HfApi, remote: Remote, commit: str) -> Remote:
    return replace(remote, head=commit, files=_files(api, remote.repo_id, remote.repo_type, commit))


def _files(api: HfApi, repo_id: str, repo_type: str, commit: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def written_since(remote: Remote, left: Remote | None, names: Iterable[str]) -> list[str]:
    """Return those of `names` that differ from the last publication `left` (None: there was none)."""
    before = left.files if left else {}
    return [name for name in names if name not in before or before[name].blob_id != remote.files[name].blob_id]


def untagged(api: HfApi, remote: Remote) -> str | None:
    """Return the commit of the last publication if neither it nor a later one has a tag."""
    tagged = set(remote.tags.values())
    for made in api.list_repo_commits(remote.repo_id, repo_type=remote.repo_type, revision=remote.head):
        if made.commit_id in tagged:
            return None
        if made.title.startswith(TITLE):
            return made.commit_id
    return None
