"""Commit of a Git checkout, read from its files, since `git` on PATH may be another program."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

SHORT = 12  # recorded digits of a commit
COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
REF = re.compile(r"ref: (refs/(?!.*\.\.)\S+)")


def commit(checkout: Path) -> str | None:
    """Return the first `SHORT` digits of the commit of a checkout or linked worktree; None if unreadable."""
    git = checkout / ".git"
    with suppress(OSError, UnicodeDecodeError):
        if git.is_file():
            git = checkout / git.read_text().removeprefix("gitdir:").strip()
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        head = (git / "HEAD").read_text().strip()
        if ref := REF.fullmatch(head):
            head = _branch_commit(ref[1], git, common)
        return head[:SHORT] if COMMIT.fullmatch(head) else None
    return None


def _branch_commit(ref: str, git: Path, common: Path) -> str:
    for folder in (git, common):
        if (folder / ref).is_file():
            return (folder / ref).read_text().strip()
    packed = (common / "packed-refs").read_text().splitlines()
    return next((line.partition(" ")[0] for line in packed if line.partition(" ")[2] == ref), "")
