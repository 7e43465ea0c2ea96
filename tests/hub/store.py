"""What a Hub keeps: repositories, whose commits are immutable snapshots (path -> blob) with a history."""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import yaml

# The Hub's own first commit names many more.
LARGE_BY_NAME = ("*.arrow", "*.bin", "*.ckpt", "*.h5", "*.jpg", "*.npy", "*.npz", "*.parquet", "*.pickle", "*.png",
                 "*.pt", "*.pth", "*.safetensors", "*.tar.*", "*.zip")  # fmt: skip
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE_BY_NAME).encode()


class HubError(Exception):
    """What a request is refused with: a status, a sentence, and the Hub's name for it (`X-Error-Code`)."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file's content; `lfs`: kept as a large file, so that git itself holds a pointer only."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{self.sha256}", f"size {len(self.data)}")
        return "".join(f"{line}\n" for line in lines).encode()

    @cached_property
    def oid(self) -> str:
        """Git's name of the blob: the file's, or its pointer's."""
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: Commit | None
    title: str
    message: str
    author: str
    date: str
    files: Mapping[str, Blob]

    @property
    def history(self) -> Iterator[Commit]:
        """This commit and those before it, newest first."""
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent

    def last_to_change(self, path: str) -> Commit:
        blob = self.files[path]
        return list(itertools.takewhile(lambda commit: commit.files.get(path) == blob, self.history))[-1]

    @property
    def card(self) -> dict[str, Any]:
        """The metadata at the head of README.md. Raises HubError (400) if it is no YAML mapping."""
        return (
            front_matter(self.files["README.md"].data.decode("utf-8", "replace")) if "README.md" in self.files else {}
        )


@dataclass
class Repo:
    kind: str
    id: str
    private: bool = False
    gated: str | bool = False
    sdk: str | None = None
    granted: set[str] = field(default_factory=set)  # users that may read the files although it is gated
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # uploaded, by sha256; a commit may name them
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)  # of large files on their way
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.branches["main"] = None  # type: ignore[assignment]
        self.commit("main", lambda files: files.update({".gitattributes": Blob(ATTRIBUTES)}), "initial commit")

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.branches["main"]

    def at(self, revision: str) -> Commit:
        for names in (self.branches, self.tags, self.commits):
            if revision in names:
                return names[revision]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        branch: str,
        edit: Callable[[dict[str, Blob]], object],
        title: str,
        message: str = "",
        author: str = "system",
        parent: str | None = None,
    ) -> Commit:
        """Put `edit` of a branch's files on top of it; all or nothing, and only on `parent`, if one is given."""
        with self.lock:
            if branch not in self.branches:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            before = self.branches[branch]
            if parent and parent != before.oid:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(before.files) if before else {}
            edit(files)
            date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            content = sorted((path, blob.oid) for path, blob in files.items())
            told = repr((self.id, before and before.oid, title, message, len(self.commits), content))
            commit = Commit(hashlib.sha1(told.encode()).hexdigest(), before, title, message, author, date, files)
            self.branches[branch] = self.commits[commit.oid] = commit
            return commit

    def upload_mode(self, path: str, size: int, sample: bytes, threshold: int) -> str:
        """`lfs` by the repository's attributes, by size in bytes, or for what git takes for binary; else `regular`."""
        attributes = self.head.files.get(".gitattributes", Blob(b"")).data.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        by_name = any(fnmatch.fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
        return "lfs" if by_name or size >= threshold or b"\0" in sample else "regular"


class Store:
    """All repositories, by kind and id. A moved one is found by its former ids too."""

    def __init__(self) -> None:
        self._repos: dict[tuple[str, str], Repo] = {}
        self._moved: dict[tuple[str, str], str] = {}

    def __iter__(self) -> Iterator[Repo]:
        return iter(list(self._repos.values()))

    def find(self, kind: str, id: str) -> Repo | None:
        return self._repos.get((kind, self._moved.get((kind, id), id)))

    def create(self, kind: str, id: str, **properties: Any) -> Repo:
        if (kind, id) in self._repos:
            raise HubError(409, f"You already created this {kind} repo")
        self._moved.pop((kind, id), None)
        self._repos[kind, id] = Repo(kind, id, **properties)
        return self._repos[kind, id]

    def delete(self, repo: Repo) -> None:
        del self._repos[repo.kind, repo.id]

    def move(self, repo: Repo, id: str) -> None:
        if (repo.kind, id) in self._repos:
            raise HubError(409, f"{id} exists already")
        self._repos[repo.kind, id] = self._repos.pop((repo.kind, repo.id))
        self._moved = {key: id if to == repo.id and key[0] == repo.kind else to for key, to in self._moved.items()}
        self._moved[repo.kind, repo.id] = id
        repo.id = id


def front_matter(readme: str) -> dict[str, Any]:
    """The metadata at the head of a card. Raises HubError (400) if it is no YAML mapping, or its tags no strings."""
    head = re.match(r"---\s*\n(.*?)^---\s*$", readme, re.S | re.M)
    if head is None:
        return {}
    try:
        found = yaml.safe_load(head[1]) or {}
    except yaml.YAMLError as error:
        raise HubError(400, f"YAML Metadata Error: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise HubError(400, "YAML Metadata Error: the metadata must be a mapping")
    if not all(isinstance(tag, str) for tag in found.get("tags") or []):
        raise HubError(400, '"tags" must be an array of strings')
    return found
