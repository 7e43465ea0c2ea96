"""Publish datasets, adapters and metrics on the Hub: one commit with everything or nothing, then its tag.

Only files named by the folder's kind are sent (`content.py`). Cards are merged with people's edits (`card.py`). After
a failure, running the same publication again finishes it: files already on the Hub are recognised by hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmedpo.data import consent, credentialed, origin
from mmedpo.errors import InputError, Stopped
from mmedpo.hub.publish import card, stripped
from mmedpo.hub.publish.card import Conflict
from mmedpo.hub.publish.content import (
    KINDS,
    REPO_TYPES,
    Content,
    finished_shards,
    refuse_links,
    refuse_private_words,
)
from mmedpo.hub.publish.files import whole_parquet
from mmedpo.hub.publish.repository import Draft, Repository
from mmedpo.hub.publish.state import Plan
from mmedpo.runs import hosts

__all__ = ["Publication", "prepare", "publish"]

Confirm = Callable[[str], bool]


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
    from huggingface_hub import get_token

    if kind not in KINDS:
        raise InputError(f"{kind!r} cannot be published; the kinds are {', '.join(KINDS)}.")
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give the folder of a finished {kind}.")
    try:
        repository = Repository.open(repo, REPO_TYPES[kind], token, endpoint)
        content = _content(folder, kind, repository.id, third_parties)
        content = replace(content, card=card.fill(content.card, fill or {}))
        refuse_private_words(content, token or get_token())
        draft = repository.draft(content, tag)
        visibility = draft.state.visibility or ("public" if public else "private")
        if dry_run:
            commit, version = None, (tag or draft.state.next_tag) if draft.plan else None
        else:
            if content.said:
                source, parts = content.said
                consent.announce(source, [f"{hosts.host(repository.api.endpoint)} ({repository.id})"], parts)
            _ask(draft, visibility, content.question, confirm)
            commit = repository.commit(content, draft, visibility)
            version = repository.tag(commit, tag)
    except KeyboardInterrupt:
        raise Stopped(
            f"Interrupted. {repo} holds all of this version or nothing of it. Run the same command again to finish; "
            "files that have arrived are not sent again."
        ) from None
    return Publication(
        repository.id, repository.url, visibility, commit or draft.state.head, version, draft.plan,
        {name: file.size for name, file in draft.files.items()},
        [question for _, question in card.open_fields(draft.card)], [*content.conflicts, *draft.conflicts],
        content.notices,
    )  # fmt: skip


def prepare(
    repo: str,
    kind: str = "dataset",
    record: Mapping[str, Any] | None = None,
    *,
    token: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Check that a future folder can be published to a repository without asking; change nothing there.

    Args:
        record: the folder's future record, as far as it is known.

    Raises:
        InputError: the account may not write; the repository has edited files or content of another origin; or it is
            public and its card lacks required answers.
    """
    Repository.open(repo, REPO_TYPES[kind], token, endpoint).check(record)


def _content(folder: Path, kind: str, repo_id: str, third_parties: bool) -> Content:
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
        return stripped.whole(content, source, repo_id)
    return content


def _ask(draft: Draft, visibility: str, question: str, confirm: Confirm | None) -> None:
    """Ask a person the open questions; raise InputError if nobody can be asked, Stopped if the answer is no."""
    if not draft.plan:
        return
    repo_id, needed, questions = draft.state.id, card.needed_fields(draft.card), []
    if visibility == "public":
        questions.append(f"{repo_id} is public: everybody can read and copy what is uploaded. Publish it?")
    if draft.replaced:
        questions.append(f"{repo_id} {draft.replaced}. Replace it and its card, edits included?")
    if draft.edited:
        questions.append(
            f"{repo_id}: files added or edited outside publications would be overwritten or deleted: "
            f"{', '.join(draft.edited)}. Go on?"
        )
    advice = "Give --yes to go on."
    if needed:
        also = "and" if questions else "or"
        advice = f'Answer fields in README.md of the folder or by --fill KEY="...", {also} give --yes to go on.'
        listed = "".join(f"\n  - {field}" for field in needed)
        questions.append(f"The card has open fields that only a person can fill:{listed}\nPublish it with them open?")
    if question:
        questions.append(question)
    if questions and confirm is None:
        raise InputError("\n".join([*questions, f"There is no terminal to ask at. {advice}"]))
    for question in questions:
        if confirm is not None and not confirm(question):
            raise Stopped("Nothing was sent.")
