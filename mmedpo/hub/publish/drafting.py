"""Draft a publication: wanted content, required changes, and questions to a person."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmedpo.errors import InputError, Stopped
from mmedpo.hub.cards import GENERATED
from mmedpo.hub.publish import card, remote, repository
from mmedpo.hub.publish.card import CARD, Conflict
from mmedpo.hub.publish.content import OWN_FILES, Content
from mmedpo.hub.publish.remote import File, Plan, Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Confirm = Callable[[str], bool]


@dataclass(frozen=True)
class Draft:
    """Wanted content of a repository, and the changes it requires.

    Attributes:
        text: of the card.
        overwritten: files to change or delete that differ from the last publication.
        replaced: description of old and new content if their origins differ, else empty. Then no edits of the old card
            are kept, since they describe other content.
    """

    remote: Remote
    files: Mapping[str, File]
    plan: Plan
    text: str
    conflicts: Sequence[Conflict]
    overwritten: Sequence[str]
    replaced: str

    @property
    def needed(self) -> list[str]:
        """Open fields of the card that must be answered before publishing."""
        return card.needed_fields(self.text)


def draft(api: HfApi, repo_id: str, content: Content) -> Draft:
    """Return the draft, with the card merged with the repository's; raise errors of the Hub's client."""
    there, own = remote.read(api, repo_id, content.repo_type), OWN_FILES[content.repo_type]
    generated = File(content.generated.encode())
    changes = remote.plan({**content.files, GENERATED: generated}, own, there)  # the card apart
    left = remote.last_publication(api, there) if changes else there
    replaced = repository.replaced(api, left or there, content.files) if changes else ""
    text, conflicts = content.card, list[Conflict]()
    if not replaced:
        edited, base = (remote.text(api, there, path) for path in (CARD, GENERATED))
        if edited is not None:
            text, conflicts = card.merge(base, edited, text, f"{CARD} of {repo_id}")
    card.validated(text, content.repo_type, f"{CARD} for {repo_id}")
    files = {**content.files, CARD: File(text.encode()), GENERATED: generated}
    overwritten = remote.written_since(there, left, [*changes.changed, *changes.deleted])
    return Draft(there, files, remote.plan(files, own, there), text, conflicts, overwritten, replaced)


def ask(draft: Draft, repo_id: str, visibility: str, question: str, confirm: Confirm | None) -> None:
    """Ask a person the open questions; raise InputError if nobody can be asked, Stopped if the answer is no."""
    if not draft.plan:
        return
    questions = []
    if visibility == "public":
        questions.append(f"{repo_id} is public: everybody can read and copy what is uploaded. Publish it?")
    if draft.replaced:
        questions.append(f"{repo_id} {draft.replaced}. Replace them, and the card with what people wrote into it?")
    if draft.overwritten:
        listed = ", ".join(draft.overwritten)
        questions.append(
            f"No publication has left these files of {repo_id} as they are, and they would change or go: {listed}. "
            "Go on?"
        )
    advice = "Give --yes to go on."
    if draft.needed:
        also = "and" if questions else "or"
        advice = f'Answer fields in README.md of the folder or by --fill KEY="...", {also} give --yes to go on.'
        listed = "".join(f"\n  - {field}" for field in draft.needed)
        questions.append(f"The card leaves open what only a person can say:{listed}\nPublish it like that?")
    if question:
        questions.append(question)
    if questions and confirm is None:
        raise InputError("\n".join([*questions, f"Nobody can be asked here. {advice}"]))
    for question in questions:
        if confirm is not None and not confirm(question):
            raise Stopped("Nothing was sent.")


def refuse_unasked(asked: Draft, now: Draft) -> None:
    """Raise InputError if the repository changed so that a person would have to be asked again."""
    others = now.replaced not in ("", asked.replaced)
    if others or not set(now.overwritten) <= set(asked.overwritten):
        raise InputError(
            f"{now.remote.repo_id} was changed by somebody else in the meantime. Run the same command again, which "
            "asks what becomes of that."
        )
