"""SLAKE: questions in English and Chinese about CT, MRI and X-ray images, organs and lesions marked (Liu et al. 2021).

Source   the Hub's files, a folder with `train.json`, `validate.json` (or `validation.json`), `test.json` and `imgs/`
         (or `imgs.zip`), or Slake1.0.zip as it was downloaded.
Terms    CC BY 4.0
Flaws    many questions ask for modality, plane or organ, which no lesion decides. Questions in the other language are
         left out, counted (--language en or zh).
Lesions  `detection.json` beside each image boxes organs and lesions alike; only boxes labelled as a lesion are used.

Example: mmedpo build slake --config recipes/curate/air_gapped.yaml --source data/Slake1.0 --output runs/slake/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from mmedpo.cli import main
from mmedpo.data import safe_paths
from mmedpo.data.tables import json_file
from mmedpo.data.text import words
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import Hub, Item, Picture, Tree, hub_folder, left_out, unzipped

SOURCE = "hub:BoKelvin/SLAKE"
LAYOUTS = (("train.json", "imgs*"), ("*Slake*.zip",), ("*SLAKE*.zip",), ("*slake*.zip",))
LICENSE = "cc-by-4.0"
CREDENTIALED = False
UPSTREAM_SPLIT = "by image"
OPTIONS = {"split": "train", "localizer": "boxes"}
HAS_PAIRS = False

BOX = ("label", "x", "y", "width", "height")
SPLITS = {"train": ("train",), "validation": ("validate", "validation"), "test": ("test",)}
LESIONS = frozenset(
    {"atelectasis", "cardiomegaly", "effusion", "infiltration", "infiltrate", "mass", "nodule", "pneumonia", "lesion"}
    | {"pneumothorax", "edema", "oedema", "cancer", "tumor", "tumour", "hemorrhage", "fracture", "consolidation"}
)


@dataclass
class Options:
    language: str = field(default="en", metadata={"help": "Language of the questions: en or zh."})

    def __post_init__(self) -> None:
        if self.language not in ("en", "zh"):
            raise InputError(f"--language is {self.language!r}; SLAKE's questions are in en and zh.")


def read(source: Path | Hub, options: Options) -> Iterator[Item]:
    """Yield the questions in the wanted language, with the boxes of their image's lesions."""
    tree = _inside(hub_folder(source, ["*.json", "imgs.zip"]) if isinstance(source, Hub) else source)
    imgs = _images(tree)
    lesions = lru_cache(maxsize=None)(_lesions)
    for split, row in _rows(tree, source.name):
        name = f"{split}-{row['qid']}"
        if row["q_lang"] != options.language:
            yield left_out(name, f"the question is not in the language {options.language}", str(row["q_lang"]))
            continue
        image = safe_paths.inside(imgs, row["img_name"])
        beside = safe_paths.inside(imgs, str(PurePosixPath(row["img_name"]).parent / "detection.json"))
        if image is None or beside is None:
            yield Fault(name, "image", safe_paths.OUTSIDE, repr(row["img_name"]))
            continue
        boxes = lesions(beside)
        if boxes is None:
            yield Fault(name, "boxes", f"detection.json beside {row['img_name']} is no list of label and box")
            continue
        yield {
            "id": name, "image": Picture(f"imgs/{row['img_name']}", image), "question": row["question"],
            "answer": row["answer"], "answer_type": row["answer_type"], "split": split, "modality": row["modality"],
            "organ": row["location"], "question_type": row["content_type"], "boxes": boxes,
        }  # fmt: skip


def _inside(source: Path) -> Tree:
    """Return the folder with the tables: the source, or the one in its archive or in the archive's folder."""
    archives = [file for file in source.glob("*.zip") if "slake" in file.name.lower()]
    tree = unzipped(archives[0] if len(archives) == 1 and not (source / "train.json").exists() else source)
    return next((inner for inner in (tree, *tree.iterdir()) if (inner / "train.json").exists()), tree)


def _images(tree: Tree) -> Tree:
    if (tree / "imgs").is_dir():
        return tree / "imgs"
    packed = unzipped(tree / "imgs.zip")
    return packed / "imgs" if (packed / "imgs").is_dir() else packed


def _rows(tree: Tree, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    tables = {
        split: [file for stem in stems if (file := tree / f"{stem}.json").exists()] for split, stems in SPLITS.items()
    }
    if missing := [" or ".join(f"{stem}.json" for stem in SPLITS[split]) for split in SPLITS if not tables[split]]:
        raise InputError(f"{name} has no {', no '.join(missing)}; SLAKE comes with all three tables.")
    for split, (table, *_) in tables.items():
        yield from ((split, row) for row in json_file(table))


def _lesions(file: Tree) -> list[dict[str, Any]] | None:
    """Return the boxes of lesions in `file` ([{label: [x, y, width, height]}, ...], pixels); None if damaged."""
    if not file.exists():
        return []
    try:
        entries = [pair for entry in json_file(file) for pair in entry.items()]
        boxes = [dict(zip(BOX, (label, *box), strict=True)) for label, box in entries]
    except (ValueError, AttributeError, TypeError):
        return None
    return [box for box in boxes if LESIONS.intersection(words(box["label"]))]


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
