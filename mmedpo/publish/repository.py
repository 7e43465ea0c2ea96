"""Whether a repository is one that may be published to, asked before there is anything to publish."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mmedpo import hub
from mmedpo.cards import GENERATED
from mmedpo.errors import InputError
from mmedpo.publish import card, remote
from mmedpo.publish.content import CARD, OWN_FILES, REPO_TYPES

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def checked_name(api: HfApi, repo: str) -> str:
    """The whole id of a repository. Raises InputError where it is no name, or nobody may write who is known."""
    from huggingface_hub.utils import validate_repo_id

    with hub.in_words(f"{repo!r} cannot be published to"):
        validate_repo_id(repo)
    who = hub.writer(api)
    return repo if "/" in repo else f"{who['name']}/{repo}"


def prepare(repo: str, kind: str = "dataset", *, token: str | None = None, endpoint: str | None = None) -> None:
    """See to it that a folder which is still to be made can be published to a repository without asking a person; one
    that is not there yet is made, private and empty.

    Raises:
        InputError: it may not be written, or holds files that no publication has written, or is public while its card
            leaves open what only a person can say.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    repo_id, repo_type = checked_name(api, repo), REPO_TYPES[kind]
    there = hub.patiently(f"{repo_id} cannot be read", lambda: remote.read(api, repo_id, repo_type))
    if there.visibility is None:
        made = partial(api.create_repo, repo_id, repo_type=repo_type, private=True, exist_ok=True)
        hub.patiently(f"{repo_id} cannot be made", made)
        return
    who = hub.writer(api)
    writing = [who["name"], *(org["name"] for org in who.get("orgs") or [] if org.get("roleInOrg") != "read")]
    if there.repo_id.split("/")[0] not in writing:
        raise InputError(
            f"{repo_id} is not yours: {who['name']} may write to {', '.join(writing)}. Choose another name."
        )
    if GENERATED not in there.files and any(remote.fits(name, OWN_FILES[repo_type]) for name in there.files):
        raise InputError(f"{repo_id} holds another's files of the same names. Choose another name.")
    if there.visibility == "public":
        text = hub.patiently(f"{repo_id} cannot be read", lambda: remote.text(api, there, CARD))
        if GENERATED not in there.files or text is None or card.needed_fields(text):
            raise InputError(
                f"{repo_id} is public, and its card leaves open what only a person can say. Answer it there first, or "
                "choose another name."
            )
