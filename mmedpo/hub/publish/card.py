"""Cards written by programs and people together: merge edits, list and fill open fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mmedpo.data import licenses
from mmedpo.errors import InputError
from mmedpo.hub.cards import GENERATED, adapter_card, results_files

CARD = "README.md"
HEADER = re.compile(r"\A\s*---[ \t]*\n(.*?)\n?^---[ \t]*(?:\n|\Z)", re.S | re.M)
OPEN = re.compile(r"\[More information needed(?: before publishing \((?P<key>\w+)\))?: (?P<question>[^\]]*)\]")
COMPUTED = ("configs", "dataset_info", "size_categories")  # keys of the header that describe the files beside the card


@dataclass(frozen=True)
class Conflict:
    """A place of a card that a person and the program changed differently."""

    card: str
    place: str
    kept: str
    left_out: str

    def __str__(self) -> str:
        return (
            f"{self.card} ({self.place}): the edit is kept: {_short(self.kept)}; not used: {_short(self.left_out)}. "
            "If that is wrong, change it there."
        )


def merge(base: str | None, edited: str, new: str, place: str) -> tuple[str, list[Conflict]]:
    """Bring the changes from `base` to `new` into a card that a person may have edited since `base`.

    The person's text wins where both changed; those places are returned too. Lists in the header (tags) are merged
    entry by entry. The header's `COMPUTED` keys always come from `new`.

    Args:
        base: the generated card that `edited` began as; None appends `new` to a card that a person wrote.
        place: name of `edited` in messages.

    Raises:
        InputError: a header is no YAML mapping.
    """
    conflicts: list[Conflict] = []
    (base_header, base_body), (header, body), (new_header, new_body) = (
        _parts(text) for text in (base or "", edited, new)
    )
    merged = new_header
    if header.strip() and header != base_header:
        before, theirs, ours = (_values(text, place) for text in (base_header, header, new_header))
        as_it_is = ours == before and all(theirs.get(key) == ours.get(key) for key in COMPUTED)
        merged = header if as_it_is else _merge_headers(conflicts, place, before, theirs, ours)
    if base is None:
        return f"---\n{merged}\n---\n{body}{new_body if new_body.strip() not in body else ''}", conflicts
    lines = _merge_lines(conflicts, place, *(text.splitlines(keepends=True) for text in (base_body, body, new_body)))
    return f"---\n{merged}\n---\n{''.join(lines)}", conflicts


def with_local_edits(folder: Path, plain: str, generated: str) -> tuple[str, list[Conflict]]:
    """Return a folder's newly generated card merged with its edited README.md; raise as `merge`.

    Args:
        plain: the card as generated before, if the folder has not kept it.
    """
    path, base = folder / CARD, folder / GENERATED
    if not path.exists():
        return generated, []
    written = read_text(base) if base.exists() else plain
    return merge(written, read_text(path), generated, str(path))


def read_text(path: Path) -> str:
    """Return a UTF-8 text file; raise InputError if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text ({error}). Save it in UTF-8.") from error


def with_results(folder: Path, comparison: Mapping[str, Any]) -> tuple[dict[str, str], list[Conflict]]:
    """Return `cards.results_files` with the edits of the folder's card; write nothing, raise as both."""
    files = results_files(folder, comparison)
    text, conflicts = with_local_edits(folder, adapter_card(folder), files[CARD])
    return {**files, CARD: text, GENERATED: files[CARD]}, conflicts


def open_fields(card: str) -> list[tuple[str | None, str]]:
    """Return the open fields as (key, question); the key is None for those that may stay open."""
    return [(found["key"], " ".join(found["question"].split())) for found in OPEN.finditer(card)]


def needed_fields(card: str) -> list[str]:
    """Return the open fields that must be answered before publishing, as "key: question"."""
    return [f"{key}: {question}" for key, question in open_fields(card) if key]


def fill(card: str, answers: Mapping[str, str]) -> str:
    """Return the card with open fields answered by key; a licence is set in the header too.

    Raises:
        InputError: a key has no open field.
    """
    keys = {key for key, _ in open_fields(card) if key}
    if unknown := sorted(answers.keys() - keys):
        raise InputError(
            f"The card has no open field {', '.join(unknown)}; open fields: {', '.join(sorted(keys)) or 'none'}. "
            "Change answers in README.md of the folder, or on the Hub after a publication."
        )
    filled = OPEN.sub(lambda found: answers.get(found["key"], found[0]).strip(), card)
    if "license" not in answers:
        return filled
    header, body = _parts(filled)
    values = {key: value for key, value in _values(header, "The card").items() if not key.startswith("license")}
    return f"---\n{_yaml({**licenses.fields(answers['license']), **values})}\n---\n{body}"


def validated(card: str, repo_type: str, place: str) -> str:
    """Return the card if huggingface_hub's card class of this repository type reads it; else raise InputError."""
    import yaml
    from huggingface_hub import DatasetCard, ModelCard, SpaceCard

    try:
        {"dataset": DatasetCard, "model": ModelCard, "space": SpaceCard}[repo_type](card)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{place}: its header (between the --- lines) cannot be read: {error}. Correct it.") from error
    return card


def _parts(card: str) -> tuple[str, str]:
    """Return header and body with uniform line ends."""
    text = card.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = HEADER.match(text)
    return (found[1], text[found.end() :]) if found else ("", text)


def _values(header: str, place: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(header) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{place}: its header (between the --- lines) is not YAML: {error}. Correct it.") from error
    if not isinstance(values, dict):
        raise InputError(f"{place}: its header (between the --- lines) must be `key: value` lines. Correct it.")
    return values


def _merge_headers(
    conflicts: list[Conflict], card: str, base: Mapping[str, Any], edited: Mapping[str, Any], new: Mapping[str, Any]
) -> str:
    merged = {}
    for key in dict.fromkeys([*new, *edited]):
        before, theirs, ours = (values.get(key) for values in (base, edited, new))
        if key in COMPUTED or theirs == before:
            kept = ours
        elif ours in (before, theirs):
            kept = theirs
        elif all(isinstance(value or [], list) for value in (before, theirs, ours)):
            kept = _merge_lists(before or [], theirs or [], ours or [])
        else:
            kept = theirs
            conflicts.append(Conflict(card, f"header, {key}", f"{theirs}", f"{ours}"))
        if kept is not None:
            merged[key] = kept
    return _yaml(merged)


def _yaml(values: Mapping[str, Any]) -> str:
    from huggingface_hub.utils import yaml_dump

    return str(yaml_dump(values, sort_keys=False)).rstrip("\n")


def _merge_lists(base: Sequence[Any], edited: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    kept = [entry for entry in edited if entry in new or entry not in base]
    return kept + [entry for entry in new if entry not in base and entry not in kept]


def _merge_lines(
    conflicts: list[Conflict], card: str, base: Sequence[str], edited: Sequence[str], new: Sequence[str]
) -> Iterator[str]:
    """Yield the lines of a three-way merge, cut at lines that are equal in all three."""
    theirs, ours = _places(base, edited), _places(base, new)
    i = e = n = 0
    for place, line in [*enumerate(base), (len(base), "")]:
        at_end = place == len(base)
        to_e, to_n = (len(edited), len(new)) if at_end else (theirs.get(place, -1), ours.get(place, -1))
        if to_e < e or to_n < n:
            continue
        yield from _resolve(conflicts, card, base[i:place], edited[e:to_e], new[n:to_n])
        yield line
        i, e, n = place + 1, to_e + 1, to_n + 1


def _places(base: Sequence[str], other: Sequence[str]) -> dict[int, int]:
    blocks = SequenceMatcher(None, base, other, autojunk=False).get_matching_blocks()
    return {block.a + k: block.b + k for block in blocks for k in range(block.size)}


def _resolve(
    conflicts: list[Conflict], card: str, base: Sequence[str], edited: Sequence[str], new: Sequence[str]
) -> Sequence[str]:
    if edited in (base, new):
        return new
    if new == base:
        return edited
    if len(base) == len(edited) == len(new) > 1:  # merge neighbouring table rows one by one
        return [
            line for three in zip(base, edited, new, strict=True)
            for line in _resolve(conflicts, card, *([part] for part in three))
        ]  # fmt: skip
    conflicts.append(Conflict(card, "text", "".join(edited), "".join(new)))
    return edited


def _short(text: str) -> str:
    words = " ".join(text.split())
    return repr(words if len(words) <= 100 else f"{words[:97]}...") if words else "nothing"
