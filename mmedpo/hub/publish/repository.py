"""Check that a repository may be published to, before there is content to publish."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmedpo.data import hub, licenses
from mmedpo.errors import InputError
from mmedpo.hub.cards import GENERATED
from mmedpo.hub.publish import card, remote
from mmedpo.hub.publish.card import CARD
from mmedpo.hub.publish.content import OWN_FILES, REPO_TYPES
from mmedpo.hub.publish.remote import File, Remote

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RECORDS = {"dataset": "manifest.json", "model": "training.json"}  # records of a content's origin


def made_of(repo_type: str, record: Any) -> str:
    """Return the origin of a dataset or adapter in words, by its record; empty if not recorded."""
    record = record if isinstance(record, Mapping) else {}
    if repo_type == "model":
        source = _source(record.get("dataset_manifest")).get("name")
        data = f"{record.get('dataset')} ({source})" if source else record.get("dataset")
        return f"weights of {record['model']} trained on {data}" if record.get("model") else ""
    source = _source(record)
    return f"pairs from {source['name']} ({licenses.names(source)})" if source.get("name") else ""


def _source(manifest: Any) -> Mapping[str, Any]:
    found = manifest.get("source") if isinstance(manifest, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def replaced(api: HfApi, there: Remote, files: Mapping[str, File]) -> str:
    """Return a description of old and new content if their origins differ, else an empty text."""
    record = RECORDS.get(there.repo_type, "")
    if record not in files or record not in there.files or files[record].equals(there.files[record]):
        return ""
    return _difference(api, there, json.loads(files[record].read()))


def _difference(api: HfApi, there: Remote, record: Mapping[str, Any]) -> str:
    new = made_of(there.repo_type, record)
    try:
        old = made_of(there.repo_type, json.loads(remote.text(api, there, RECORDS[there.repo_type]) or "null"))
    except json.JSONDecodeError:
        return ""
    return f"holds {old}, and these are {new}" if old and old != new else ""


def checked_name(api: HfApi, repo: str) -> str:
    """Return the whole id of a repository; raise InputError if it is invalid, or the token may not write."""
    return _named(api, repo)[0]


def _named(api: HfApi, repo: str) -> tuple[str, dict[str, Any]]:
    """Return the whole id of a repository and the account; raise as `checked_name`."""
    from huggingface_hub.utils import validate_repo_id

    with hub.in_words(f"{repo!r} cannot be published to"):
        validate_repo_id(repo)
    who = hub.writer(api)
    return repo if "/" in repo else f"{who['name']}/{repo}", who


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
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token)
    repo_id, who = _named(api, repo)
    _refuse_strangers(repo_id, who)
    hub.patiently(f"{repo_id} cannot be read", lambda: _check(api, repo_id, REPO_TYPES[kind], record))


def _refuse_strangers(repo_id: str, who: Mapping[str, Any]) -> None:
    writing = [who["name"], *(org["name"] for org in who.get("orgs") or [] if org.get("roleInOrg") != "read")]
    if repo_id.split("/")[0] not in writing:
        raise InputError(
            f"{repo_id} is not yours: {who['name']} may write to {', '.join(writing)}. Choose another name."
        )


def _check(api: HfApi, repo_id: str, repo_type: str, record: Mapping[str, Any] | None) -> None:
    there = remote.read(api, repo_id, repo_type)
    left = remote.last_publication(api, there)
    own = [name for name in there.files if remote.fits(name, OWN_FILES[repo_type])]
    if others := remote.written_since(there, left, own):
        raise InputError(
            f"{repo_id} holds files that no publication has left as they are, and that could change or go: "
            f"{', '.join(others)}. Choose another name."
        )
    if record and left and RECORDS[repo_type] in left.files and (said := _difference(api, left, record)):
        raise InputError(f"{repo_id} {said}. Choose another name.")
    if there.visibility == "public":
        text = remote.text(api, there, CARD)
        if GENERATED not in there.files or text is None or card.needed_fields(text):
            raise InputError(
                f"{repo_id} is public, and its card leaves open what only a person can say. Answer it there first, or "
                "choose another name."
            )
