"""State of a repository on the Hub: files, tags and earlier publications, read at one commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING

from mmedpo.errors import InputError
from mmedpo.hub.publish.content import OWN_FILES
from mmedpo.hub.publish.files import File

if TYPE_CHECKING:
    from huggingface_hub import GitCommitInfo, HfApi
    from huggingface_hub.hf_api import RepoFile

TITLE = "Published with mmedpo"  # start of a publication's commit message


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


@dataclass(frozen=True)
class State:
    """A repository at one commit; `head` is None if it has none, `visibility` if it does not exist.

    Errors of the Hub's client pass through.
    """

    api: HfApi
    id: str
    type: str
    visibility: str | None = None
    head: str | None = None
    files: Mapping[str, RepoFile] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)  # name -> commit

    @classmethod
    def read(cls, api: HfApi, id: str, type: str) -> State:
        """Return the state at the newest commit."""
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            info = api.repo_info(id, repo_type=type)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            return cls(api, id, type)
        state = cls(api, id, type, "private" if info.private else "public")
        if info.sha is None:
            return state
        tags = {tag.name: tag.target_commit for tag in api.list_repo_refs(id, repo_type=type).tags}
        return replace(state.at(info.sha), tags=tags)

    def at(self, commit: str) -> State:
        """Return the state at another commit."""
        from huggingface_hub.hf_api import RepoFile

        tree = self.api.list_repo_tree(self.id, recursive=True, revision=commit, repo_type=self.type)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        return replace(self, head=commit, files=files)

    def text(self, path: str) -> str | None:
        """Return a text file of this commit, without writing to disk; None if there is none."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        if path not in self.files:
            return None
        url = hf_hub_url(self.id, path, repo_type=self.type, revision=self.head, endpoint=self.api.endpoint)
        response = get_session().get(url, headers=build_hf_headers(token=self.api.token))
        hf_raise_for_status(response)
        return response.content.decode("utf-8", "replace")

    def plan(self, files: Mapping[str, File]) -> Plan:
        """Compare files with the repository by hash; a publication's files that are not among them are deleted."""
        there = self.files
        same = [name for name, file in files.items() if name in there and file.equals(there[name])]
        return Plan(
            new=[name for name in files if name not in there],
            changed=[name for name in files if name in there and name not in same],
            same=same,
            deleted=[name for name in self.owned if name not in files],
        )

    @property
    def owned(self) -> list[str]:
        """Files with names that publications write; `*` of a pattern does not cross folders."""
        return [
            name for name in self.files
            if any(name.count("/") == own.count("/") and fnmatchcase(name, own) for own in OWN_FILES[self.type])
        ]  # fmt: skip

    @property
    def next_tag(self) -> str:
        numbers = [int(name[1:]) for name in self.tags if name[:1] == "v" and name[1:].isdecimal()]
        return f"v{max(numbers, default=0) + 1}"

    def refuse_moving(self, tag: str | None, commit: str | None) -> None:
        """Raise InputError if the tag names another commit."""
        if tag and self.tags.get(tag, commit) != commit:
            raise InputError(f"{self.id}: the tag {tag} exists and names another version. Choose another --tag.")

    @cached_property
    def commits(self) -> list[GitCommitInfo]:
        """Commits up to this one, the newest first."""
        return self.api.list_repo_commits(self.id, repo_type=self.type, revision=self.head) if self.head else []

    @property
    def publications(self) -> list[str]:
        """Commits of publications, the newest first."""
        return [commit.commit_id for commit in self.commits if commit.title.startswith(TITLE)]

    def last_publication(self) -> State | None:
        commit = next(iter(self.publications), None)
        if commit is None or commit == self.head:
            return self if commit else None
        return self.at(commit)

    def edited(self, names: Iterable[str], last: State | None) -> list[str]:
        """Return those of `names` that differ from the last publication; all if there was none."""
        before = last.files if last else {}
        return [name for name in names if name not in before or before[name].blob_id != self.files[name].blob_id]

    def untagged(self) -> str | None:
        """Return the commit of the last publication if neither it nor a later one has a tag."""
        for commit in self.commits:
            if commit.commit_id in self.tags.values():
                return None
            if commit.title.startswith(TITLE):
                return commit.commit_id
        return None

    def refuse_versions_with(self, barred: Sequence[str]) -> None:
        """Raise InputError if a publication or a tag holds one of these files at its top level."""
        versions = {commit: commit[:12] for commit in self.publications} if barred else {}
        versions |= {commit: tag for tag, commit in self.tags.items()} if barred else {}
        for commit, name in versions.items():
            tree = self.api.list_repo_tree(self.id, revision=commit, repo_type=self.type)
            if any(entry.path in barred for entry in tree):
                raise InputError(
                    f"{self.id}: its version {name} holds texts and images, which stay in its history. Delete the "
                    "repository in its settings on the Hub and publish again, or choose another name."
                )
