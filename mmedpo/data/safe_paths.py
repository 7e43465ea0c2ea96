"""Path checks for paths that come from data: after links, they must lie in folders that the user named.

Tables, archives and datasets may be written by anybody, but are read with the user's rights. An absolute path, one with
`..` or a link could otherwise name any file of the machine.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

OPTION = "--image-folders"
MOST_LINKS = 40  # on one path, as Linux follows them
HELP = "Folders outside the source that links in it may lead to; no other link is followed."
OUTSIDE = "leads out of the source, or is not a file name; name a file inside it"
LONGEST_NAME, LONGEST_PATH = 255, 4000  # bytes
SURROGATE = re.compile("[\ud800-\udfff]")  # in JSON, or of a name on disk that is not UTF-8
LINKED = f"is a link that leads out of the source folder; copy the file into it, or name its folder with {OPTION}"


def leads_out(name: str) -> bool:
    """Return True if a path from data is no file's in its folder: absolute, with `..`, or a name that no file has."""
    path = PurePosixPath(name.replace("\\", "/"))
    data = name.encode("utf-8", "surrogatepass")
    possible = b"\0" not in data and len(data) <= LONGEST_PATH and max(map(len, data.split(b"/"))) <= LONGEST_NAME
    return path.is_absolute() or ".." in path.parts or not possible or SURROGATE.search(name) is not None


def inside(root: Path | zipfile.Path, name: str, also: Sequence[Path] = ()) -> Path | zipfile.Path | None:
    """Return `root / name`, or None if it lies outside of `root` and `also`.

    Args:
        root: a folder, or one in a ZIP file, which has no links.
        name: a path from data.
        also: further folders that links may lead to.
    """
    if leads_out(name):
        return None
    found = root / name
    return found if isinstance(found, zipfile.Path) or is_inside(found, (root, *also)) else None


def is_inside(file: Path, folders: Iterable[Path | zipfile.Path]) -> bool:
    """Return True if a file is in one of these folders, after resolving links."""
    return is_below(file.resolve(), folders)


def is_below(real: Path, folders: Iterable[Path | zipfile.Path]) -> bool:
    """Return True if a resolved path is in one of these folders."""
    return any(
        real.is_relative_to(home) for folder in folders if isinstance(folder, Path) for home in homes(folder.absolute())
    )


@lru_cache(maxsize=64)
def homes(folder: Path) -> tuple[Path, ...]:
    """Return a resolved folder; for a snapshot in the Hub's cache also the folder that its links lead to."""
    real = folder.resolve()
    snapshot = next((part for part in (real, *real.parents) if part.parent.name == "snapshots"), None)
    return (real, snapshot.parent.parent / "blobs") if snapshot else (real,)


def routes(path: Path) -> list[Path]:
    """Return a path as spelled, as each link on its way leads on, and resolved."""
    found = [path.absolute()]
    for _ in range(MOST_LINKS):
        link = next((part for part in (*reversed(found[-1].parents), found[-1]) if part.is_symlink()), None)
        if link is None:
            break
        found.append(link.parent / link.readlink() / found[-1].relative_to(link))
    return [*found, path.resolve()]


def parents(files: Iterable[Path]) -> set[Path]:
    """Return the folders of files, also those of each file that a link leads to."""
    return {route.parent for file in files for route in (routes(file) if file.is_symlink() else [file])}
