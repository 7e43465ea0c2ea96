"""Who asks, what they may do, and the repository and commit that they ask about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from hub.store import Commit, HubError, Repo

if TYPE_CHECKING:
    from hub.server import Hub

HUB: web.AppKey[Hub] = web.AppKey("hub")

FORBIDDEN = "you don't have the rights to create or change a repository in the namespace {}"


@dataclass(frozen=True)
class Account:
    """One token: its user, what the token is for (`read` or `write`), and the user's role in each organisation
    (`read`, `write` or `admin`)."""

    name: str
    token_role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)

    def may_see(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def may_write(self, namespace: str) -> bool:
        return self.token_role == "write" and (namespace == self.name or self.orgs.get(namespace) in ("write", "admin"))

    def whoami(self) -> dict[str, Any]:
        orgs = [{"type": "org", "id": name, "name": name, "roleInOrg": role} for name, role in self.orgs.items()]
        token = {"displayName": "loopback", "role": self.token_role}
        return {"type": "user", "id": self.name, "name": self.name, "fullname": self.name, "orgs": orgs,
                "auth": {"type": "access_token", "accessToken": token}}  # fmt: skip


ACCOUNT = web.RequestKey("account", Account)  # None where no token came


def check_seen(repo: Repo | None, account: Account | None) -> Repo:
    """The repository, or what the Hub says to those for whom there is none."""
    if repo and (not repo.private or (account and account.may_see(repo.namespace))):
        return repo
    raise HubError(404 if account else 401, "Repository not found", "RepoNotFound")


def check_files(repo: Repo, account: Account | None) -> None:
    """Raise if the repository is gated and its files are not for this account."""
    if not repo.gated or (account and (account.may_see(repo.namespace) or account.name in repo.granted)):
        return
    message = f"Access to {repo.kind} {repo.id} is restricted. You must have access to it and be authenticated."
    raise HubError(403 if account else 401, message, "GatedRepo")


def check_write(namespace: str, account: Account | None) -> None:
    if not account:
        raise HubError(401, "Invalid username or password.")
    if not account.may_write(namespace):
        raise HubError(403, FORBIDDEN.format(namespace))


def repository(request: web.Request, write: bool = False, files: bool = False) -> Repo:
    """The repository in the path, if this account may see it (and, if asked, `write` to it or read its `files`)."""
    part = request.match_info
    kind = part.get("kind", "models").removesuffix("s")
    repo = request.app[HUB].store.find(kind, f"{part['namespace']}/{part['name']}")
    repo = check_seen(repo, request[ACCOUNT])
    if write:
        check_write(repo.namespace, request[ACCOUNT])
    if files:
        check_files(repo, request[ACCOUNT])
    return repo


def commit(request: web.Request, repo: Repo) -> Commit:
    return repo.at(request.match_info.get("revision", "main"))
