"""Files below a source folder, found by the names that tables give them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from mmedpo.data import dicom, safe_paths
from mmedpo.data.images import SUFFIXES
from mmedpo.errors import Fault

READ = (*SUFFIXES, ".npy")


def spelling(name: str) -> str:
    """Return a file's name in Unicode NFC, since disks and tables differ in how they store accents."""
    return unicodedata.normalize("NFC", name)


def relative_name(root: Path, file: Path) -> str:
    return spelling(file.relative_to(root).as_posix())


class Files(dict[str, list[Path]]):
    """Files by the `spelling` of each end of their path ("c.png", "b/c.png"), shortest paths first.

    `folders` are those that links may lead to.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__()
        self.folders = folders
        self.known: dict[str, Path | str] = {}  # cache of `find_file` by name: the file, or the fault's sentence


def image_files(root: Path, also: Sequence[Path] = ()) -> Files:
    """Return all files below `root`, whose links may also lead to the folders `also`; `find_file` reads their kind."""
    images = Files((root, *also))
    for file in sorted(root.rglob("*"), key=lambda file: (len(file.parts), file)):
        parts = relative_name(root, file).split("/")
        for begin in range(len(parts)):
            images.setdefault("/".join(parts[begin:]), []).append(file)
    return images


def find_file(where: str, column: str, name: Any, root: Path, images: Files) -> Path | Fault:
    """Return the file of that path, else the one whose path ends in it; or the fault."""
    if (found := images.known.get(repr(name))) is None:
        found = images.known[repr(name)] = _look_up(name, root, images)
    return found if isinstance(found, Path) else Fault(where, column, found, repr(name))


def _look_up(name: Any, root: Path, images: Files) -> Path | str:
    path = PurePosixPath(spelling(str(name)))
    ending = [file for file in images.get(path.as_posix(), []) if _is_read(file, images.folders)]
    depth = len(root.parts) + len(path.parts)
    found = list(takewhile(lambda file: len(file.parts) == depth, ending)) or ending
    if len(found) > 1:  # the disk has both Unicode forms
        found = [file for file in found if file.name == PurePosixPath(str(name)).name] or found
    if not found:
        kinds = "" if path.suffix.lower() in READ else f" as one of {', '.join(READ)} or a DICOM file"
        return f"is not below the source folder{kinds}; add the file"
    if len(found) > 1:
        return f"is the name of {len(found)} files; give its whole path"
    if found[0].is_symlink() and not safe_paths.is_inside(found[0], images.folders):
        return safe_paths.LINKED
    return found[0]


def _is_read(file: Path, folders: Sequence[Path]) -> bool:
    """Return True for a known suffix, and for DICOM under any name; links that lead out are not opened."""
    if file.suffix.lower() in READ or (file.is_symlink() and not safe_paths.is_inside(file, folders)):
        return True
    with suppress(OSError):
        if file.is_file():
            with file.open("rb") as opened:
                return dicom.is_dicom(opened.read(132))
    return False
