"""The commit of a Git checkout, read from its files: no program is run, which could be another `git` on PATH."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

SHORT = 12  # digits of a commit in records
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
REF = re.compile(r"ref: (refs/(?!.*\.\.)\S+)")


def commit(checkout: Path) -> str | None:
    """Return the first digits of the commit that is checked out, in a linked worktree too; None: not to be read."""
    git = checkout / ".git"
    with suppress(OSError, UnicodeDecodeError):
        if git.is_file():
            git = checkout / git.read_text().removeprefix("gitdir:").strip()
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        head = (git / "HEAD").read_text().strip()
        if ref := REF.fullmatch(head):
            head = _of_branch(ref[1], git, common)
        return head[:SHORT] if COMMIT.fullmatch(head) else None
    return None


def _of_branch(ref: str, git: Path, common: Path) -> str:
    for folder in (git, common):
        if (folder / ref).is_file():
            return (folder / ref).read_text().strip()
    packed = (common / "packed-refs").read_text().splitlines()
    return next((line.partition(" ")[0] for line in packed if line.partition(" ")[2] == ref), "")
