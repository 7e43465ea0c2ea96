"""Publish datasets, adapters and metrics on the Hub: one commit with everything or nothing, then its tag.

Only files named by the folder's kind are sent (`content.py`). Cards are merged with people's edits (`card.py`). After
a failure, running the same publication again finishes it: files already on the Hub are recognised by hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mmedpo.data import consent, credentialed, hub, origin
from mmedpo.data.text import number_of
from mmedpo.errors import InputError, Stopped
from mmedpo.hub.publish import card, remote, stripped
from mmedpo.hub.publish.card import Conflict
from mmedpo.hub.publish.content import (
    KINDS,
    Content,
    finished_shards,
    refuse_links,
    refuse_private_words,
    whole_parquet,
)
from mmedpo.hub.publish.drafting import Confirm, Draft, ask, draft, refuse_unasked
from mmedpo.hub.publish.remote import Plan, Remote
from mmedpo.hub.publish.repository import checked_name, prepare
from mmedpo.runs import hosts

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Publication", "prepare", "publish"]


@dataclass(frozen=True)
class Publication:
    """Result of a publication, or of a dry run.

    Attributes:
        repo_id, url: owner/name, and its page.
        visibility: "private" or "public".
        commit: holds the content now; None for a dry run on a repository that does not exist.
        tag: of this version; None if nothing is new.
        plan: file names that are new, changed, the same or deleted.
        sizes: bytes of each file.
        open_fields: questions that the card leaves open.
        conflicts: places of the card changed differently by a person and the program; the person's text is kept.
        notices: for the person who publishes.
    """

    repo_id: str
    url: str
    visibility: str
    commit: str | None
    tag: str | None
    plan: Plan
    sizes: Mapping[str, int]
    open_fields: Sequence[str]
    conflicts: Sequence[Conflict]
    notices: Sequence[str] = ()


def publish(
    folder: Path,
    repo: str,
    kind: str = "dataset",
    *,
    public: bool = False,
    tag: str | None = None,
    fill: Mapping[str, str] | None = None,
    dry_run: bool = False,
    third_parties: bool = False,
    confirm: Confirm | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Publication:
    """Publish a folder on the Hub.

    Args:
        folder: of `mmedpo curate` ("dataset"), of `mmedpo train` ("adapter"), or a metric's ("metric").
        repo: owner/name, or a name of the token's owner.
        public: visibility of a new repository; an existing one keeps its own.
        tag: of this version; by default the next of v1, v2, ...
        fill: answers to open fields of the card by key ("license", "privacy").
        dry_run: read and compare, send nothing.
        third_parties: send restricted data whole, and models trained on it, to all readers of the repository. Otherwise
            only a dataset's published form is sent (`stripped.py`), and no such adapter.
        confirm: is asked before anything becomes public, goes out with required fields open, changes files that were
            edited since a publication, or replaces content of another origin. None refuses all four.
        token, endpoint: by default those of huggingface_hub.

    Raises:
        InputError: the folder cannot be published, or the Hub refuses it; the message says how to continue.
        Stopped: the answer was no, or Ctrl-C.
    """
    from huggingface_hub import HfApi, constants, get_token

    if kind not in KINDS:
        raise InputError(f"{kind!r} cannot be published; the kinds are {', '.join(KINDS)}.")
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give that of a finished {kind}.")
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo_id = checked_name(api, repo)
        content = _content(kind, folder, repo_id, third_parties)
        content = replace(content, card=card.fill(content.card, fill or {}))
        refuse_private_words(content, api.token if isinstance(api.token, str) else get_token())
        planned = hub.patiently(f"{repo_id} cannot be read", lambda: draft(api, repo_id, content))
        barred = partial(remote.refuse_history, api, planned.remote, content.barred)
        hub.patiently(f"{repo_id} cannot be read", barred)
        visibility = planned.remote.visibility or ("public" if public else "private")
        _refuse_moving(planned.remote, tag, None if planned.plan else planned.remote.head)
        if dry_run:
            commit, named = planned.remote.head, (tag or planned.remote.next_tag) if planned.plan else None
        else:
            if content.said:
                source, what = content.said
                consent.announce(source, [f"{hosts.host(api.endpoint)} ({repo_id})"], what)
            ask(planned, repo_id, visibility, content.question, confirm)
            commit = _commit(api, repo_id, content, visibility, planned)
            named = _tag(api, repo_id, content.repo_type, commit, tag)
    except KeyboardInterrupt:
        raise Stopped(
            f"Interrupted. {repo} holds all of this version or nothing of it. Run the same command again to finish; "
            "what has arrived is not sent again."
        ) from None
    prefix = constants.REPO_TYPES_URL_PREFIXES.get(content.repo_type, "")
    return Publication(
        repo_id, f"{api.endpoint}/{prefix}{repo_id}", visibility, commit or planned.remote.head, named, planned.plan,
        {name: file.size for name, file in planned.files.items()},
        [question for _, question in card.open_fields(planned.text)], [*content.conflicts, *planned.conflicts],
        content.notices,
    )  # fmt: skip


def _content(kind: str, folder: Path, repo_id: str, third_parties: bool) -> Content:
    """Return the content of a folder; for restricted data only its published form, unless `third_parties`."""
    refuse_links(folder, kind)
    source = None
    if kind == "dataset":
        finished_shards(folder)
        with whole_parquet(str(folder)):
            source = origin.credentialed_source(folder)
        if source and not third_parties:
            return stripped.dataset(folder, repo_id, source)
    content = KINDS[kind](folder, repo_id)
    if not third_parties:
        credentialed.refuse_publishing(content.records, str(folder))
        return content
    if source := source or credentialed.first(content.records):
        return stripped.whole(content, source, repo_id, kind)
    return content


def _commit(api: HfApi, repo_id: str, content: Content, visibility: str, asked: Draft) -> str | None:
    """Commit the content; draft anew after every outage and every commit of others.

    Args:
        asked: the draft that a person agreed to.

    Returns:
        The commit; None if the repository holds the content already.
    """

    def once() -> tuple[str, Draft] | None:
        now = draft(api, repo_id, content)
        if now.remote.visibility is None:
            api.create_repo(
                repo_id, repo_type=content.repo_type, private=visibility == "private", exist_ok=True,
                space_sdk=_sdk(content) if content.repo_type == "space" else None,
            )  # fmt: skip
            now = draft(api, repo_id, content)
        if now.remote.visibility != visibility:
            raise InputError(f"{repo_id} is {now.remote.visibility} all at once, not {visibility}. Look at it first.")
        if not now.plan:
            return None
        refuse_unasked(asked, now)
        message = f"{remote.TITLE}: {number_of(len(now.plan.sent), 'files')}"
        return remote.commit(api, now.remote, now.files, now.plan, message), now

    made = hub.patiently(f"{repo_id} was not published", once)
    if made is None:
        return None
    commit, done = made
    with hub.in_words(f"{repo_id} was published, but could not be looked at"):
        there = remote.read(api, repo_id, content.repo_type, commit)
    if ignored := [name for name in done.plan.sent if name not in there.files]:
        raise InputError(
            f"{repo_id} did not take {', '.join(ignored)}: its .gitignore names them. Change that file on the Hub, "
            "then run the same command again."
        )
    return commit


def _refuse_moving(there: Remote, tag: str | None, commit: str | None) -> None:
    """Raise InputError if this tag names another commit."""
    if tag and there.tags.get(tag, commit) != commit:
        raise InputError(f"{there.repo_id} has a tag {tag} already, and what it names stays. Choose another --tag.")


def _sdk(content: Content) -> str:
    from huggingface_hub import SpaceCard

    return str(SpaceCard(content.card).data.get("sdk") or "gradio")


def _tag(api: HfApi, repo_id: str, repo_type: str, commit: str | None, tag: str | None) -> str | None:
    """Tag the commit, or the untagged one of an interrupted publication; return the tag, if any."""

    def once() -> str | None:
        there = remote.read(api, repo_id, repo_type)
        target = commit or (there.head if tag else remote.untagged(api, there))
        if target is None:
            return None
        if tag is None and target in there.tags.values():  # the tag was made but the reply was lost
            return next(name for name, commit in there.tags.items() if commit == target)
        name = tag or there.next_tag
        _refuse_moving(there, name, target)
        if name in there.tags:
            return name
        api.create_tag(repo_id, tag=name, revision=target, repo_type=repo_type)
        return name

    return hub.patiently(f"{repo_id} holds this version now, but has no tag for it", once)
