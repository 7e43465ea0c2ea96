"""Where a path that comes from data may lead: into the folders that the user named, after all links.

A table, an archive or a dataset may be anybody's. Its paths are read for the user, with the user's rights: an absolute
one, one with `..`, or a link that is part of it could name any file of the machine.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

OPTION = "--image-folders"
HELP = "Folders outside the source that links in it may lead to; no other link is followed."
OUTSIDE = "leads out of the source; name a file inside it"
LINKED = f"is a link that leads out of the source folder; copy the file into it, or name its folder with {OPTION}"


def leads_out(name: str) -> bool:
    """Whether a path in data names a place outside of the folder that it is in, whatever the disk holds."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts


def inside(root: Path | zipfile.Path, name: str, also: Sequence[Path] = ()) -> Path | zipfile.Path | None:
    """Return the file or folder of `root` that `name` means; None where it is outside of `root` and `also`.

    Args:
        root: a folder, or one in a ZIP file, which has no links.
        name: a path that comes from data.
        also: folders that links may lead to.
    """
    if leads_out(name):
        return None
    found = root / name
    return found if isinstance(found, zipfile.Path) or is_inside(found, (root, *also)) else None


def is_inside(file: Path, folders: Iterable[Path | zipfile.Path]) -> bool:
    """Whether a file is in one of these folders, after links."""
    return is_below(file.resolve(), folders)


def is_below(real: Path, folders: Iterable[Path | zipfile.Path]) -> bool:
    """As `is_inside`, of a file as it is after links."""
    return any(
        real.is_relative_to(home) for folder in folders if isinstance(folder, Path) for home in homes(folder.absolute())
    )


@lru_cache(maxsize=64)
def homes(folder: Path) -> tuple[Path, ...]:
    """An absolute folder itself, and of a snapshot in the Hub's cache, whose files are links, where they lead to."""
    real = folder.resolve()
    snapshot = next((part for part in (real, *real.parents) if part.parent.name == "snapshots"), None)
    return (real, snapshot.parent.parent / "blobs") if snapshot else (real,)


def parents(files: Iterable[Path]) -> set[Path]:
    """The folders that files lie in after links; those of links alone are looked up one by one."""
    plain = set[Path]()
    linked = set[Path]()
    for file in files:
        if file.is_symlink():
            linked.add(file)
        else:
            plain.add(file.parent)
    return {folder.resolve() for folder in plain} | {file.resolve().parent for file in linked}
