"""A repository on the Hub and the steps of a publication: open, draft, commit, tag.

A draft compares the content with the newest commit, and the commit is made on top of that one. After an outage, or a
commit of others, the content is drafted again, so that no change of others is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmedpo.data import hub
from mmedpo.data.text import number_of
from mmedpo.errors import InputError
from mmedpo.hub.cards import GENERATED
from mmedpo.hub.publish import card
from mmedpo.hub.publish.card import CARD, Conflict
from mmedpo.hub.publish.content import RECORDS, Content, origin
from mmedpo.hub.publish.files import File
from mmedpo.hub.publish.state import TITLE, Plan, State

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Draft:
    """Wanted content of a repository, and the changes that it requires.

    Attributes:
        card: merged with the repository's.
        edited: files to change or delete that differ from the last publication.
        replaced: description of old and new content if their origins differ, else empty. Then no edits of the old card
            are kept, since they describe other content.
    """

    state: State
    files: Mapping[str, File]
    plan: Plan
    card: str
    conflicts: Sequence[Conflict]
    edited: Sequence[str]
    replaced: str


@dataclass(frozen=True)
class Repository:
    """A repository to publish to, of type "dataset", "model" or "space", which need not exist yet."""

    api: HfApi
    id: str
    type: str
    account: Mapping[str, Any]

    @classmethod
    def open(cls, name: str, type: str, token: str | None, endpoint: str | None) -> Repository:
        """Return the repository owner/name, or `name` of the token's owner.

        Raises:
            InputError: the name is not allowed, or the token may not write.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id

        api = HfApi(endpoint=endpoint, token=token)
        with hub.in_words(f"{name!r} cannot be published to"):
            validate_repo_id(name)
        account = hub.writer(api)
        return cls(api, name if "/" in name else f"{account['name']}/{name}", type, account)

    @property
    def url(self) -> str:
        from huggingface_hub import constants

        return f"{self.api.endpoint}/{constants.REPO_TYPES_URL_PREFIXES.get(self.type, '')}{self.id}"

    def check(self, record: Mapping[str, Any] | None) -> None:
        """Raise InputError unless a future folder with this record can be published without asking."""
        owners = [org["name"] for org in self.account.get("orgs") or [] if org.get("roleInOrg") != "read"]
        if self.id.split("/")[0] not in (owners := [self.account["name"], *owners]):
            raise InputError(
                f"{self.id} is not yours: {owners[0]} may write to {', '.join(owners)}. Choose another name."
            )
        hub.patiently(f"{self.id} cannot be read", lambda: self._check(record))

    def _check(self, record: Mapping[str, Any] | None) -> None:
        state = State.read(self.api, self.id, self.type)
        last = state.last_publication()
        if edited := state.edited(state.owned, last):
            raise InputError(
                f"{self.id}: files added or edited outside publications could be overwritten or deleted: "
                f"{', '.join(edited)}. Choose another name."
            )
        if last and (replaced := _replaced(last, record)):
            raise InputError(f"{self.id} {replaced}. Choose another name.")
        if state.visibility == "public":
            text = state.text(CARD)
            if GENERATED not in state.files or text is None or card.needed_fields(text):
                raise InputError(
                    f"{self.id} is public, and its card has open fields that only a person can fill. Fill them on the "
                    "Hub, or choose another name."
                )

    def draft(self, content: Content, tag: str | None) -> Draft:
        """Compare the content with the repository, and merge the two cards.

        Raises:
            InputError: the repository cannot be read; the tag names another version; a version holds a barred file.
        """

        def once() -> Draft:
            draft = self._draft(content)
            draft.state.refuse_versions_with(content.barred)
            draft.state.refuse_moving(tag, None if draft.plan else draft.state.head)
            return draft

        return hub.patiently(f"{self.id} cannot be read", once)

    def _draft(self, content: Content) -> Draft:
        state, generated = State.read(self.api, self.id, self.type), File(content.generated.encode())
        changes = state.plan({**content.files, GENERATED: generated})  # the card apart
        last = state.last_publication() if changes else state
        replaced = _replaced(last or state, content.record) if changes else ""
        text, conflicts = content.card, list[Conflict]()
        if not replaced and (edited := state.text(CARD)) is not None:
            text, conflicts = card.merge(state.text(GENERATED), edited, text, f"{CARD} of {self.id}")
        card.validated(text, self.type, f"{CARD} for {self.id}")
        files = {**content.files, CARD: File(text.encode()), GENERATED: generated}
        others = state.edited([*changes.changed, *changes.deleted], last)
        return Draft(state, files, state.plan(files), text, conflicts, others, replaced)

    def commit(self, content: Content, asked: Draft, visibility: str) -> str | None:
        """Commit the content; create a missing repository.

        Args:
            asked: the draft that a person agreed to.

        Returns:
            The commit; None if the repository holds the content already.
        """

        def once() -> tuple[Draft, str] | None:
            now = self._draft(content)
            if now.state.visibility is None:
                self._create(content, visibility)
                now = self._draft(content)
            if now.state.visibility != visibility:
                raise InputError(
                    f"{self.id}: its visibility changed to {now.state.visibility}, not {visibility}. Check its "
                    "settings on the Hub, then run the same command again."
                )
            if not now.plan:
                return None
            if now.replaced not in ("", asked.replaced) or not set(now.edited) <= set(asked.edited):
                raise InputError(
                    f"{self.id} was changed by somebody else in the meantime. Run the same command again, and confirm "
                    "what it asks."
                )
            return now, self._send(now)

        made = hub.patiently(f"{self.id} was not published", once)
        if made is None:
            return None
        sent, commit = made
        with hub.in_words(f"{self.id} was published, but not checked"):
            there = sent.state.at(commit).files
        if ignored := [name for name in sent.plan.sent if name not in there]:
            raise InputError(
                f"{self.id}: its .gitignore keeps out {', '.join(ignored)}. Change that file on the Hub, then run the "
                "same command again."
            )
        return commit

    def _create(self, content: Content, visibility: str) -> None:
        from huggingface_hub import SpaceCard

        sdk = str(SpaceCard(content.card).data.get("sdk") or "gradio") if self.type == "space" else None
        private = visibility == "private"
        self.api.create_repo(self.id, repo_type=self.type, private=private, exist_ok=True, space_sdk=sdk)

    def _send(self, draft: Draft) -> str:
        """Commit on top of the drafted commit; errors of the Hub's client pass through, also after another commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(name, is_folder=False) for name in draft.plan.deleted]
        for name in draft.plan.sent:
            operations.append(CommitOperationAdd(name, draft.files[name].source))
            operations[-1].upload_info.sha256 = bytes.fromhex(draft.files[name].sha256)
        message = f"{TITLE}: {number_of(len(draft.plan.sent), 'files')}"
        return self.api.create_commit(
            self.id, operations, commit_message=message, repo_type=self.type, parent_commit=draft.state.head
        ).oid

    def tag(self, commit: str | None, tag: str | None) -> str | None:
        """Tag the commit, or the untagged one of an interrupted publication; return the tag, if any."""

        def once() -> str | None:
            state = State.read(self.api, self.id, self.type)
            target = commit or (state.head if tag else state.untagged())
            if target is None:
                return None
            if tag is None and target in state.tags.values():  # the tag was made but the reply was lost
                return next(name for name, tagged in state.tags.items() if tagged == target)
            name = tag or state.next_tag
            state.refuse_moving(name, target)
            if name not in state.tags:
                self.api.create_tag(self.id, tag=name, revision=target, repo_type=self.type)
            return name

        return hub.patiently(f"{self.id} was published, but not tagged", once)


def _replaced(state: State, record: Mapping[str, Any] | None) -> str:
    """Return a description of old and new content if their recorded origins differ, else an empty text."""
    if not record:
        return ""
    try:
        old = origin(state.type, json.loads(state.text(RECORDS[state.type]) or "null"))
    except json.JSONDecodeError:
        return ""
    new = origin(state.type, record)
    return f"holds {old}, and the new content is {new}" if old and old != new else ""
