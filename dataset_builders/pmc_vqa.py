"""PMC-VQA: multiple-choice questions about figures of open-access articles, written by a language model (Zhang 2023).

Source   the Hub's files, or a folder with `train_2.csv`, `test_2.csv` and `figures/` (or `images_2.zip`); of the first
         release (--release 1) `train.csv`, `test_clean.csv` and `images/` (or `images.zip`). --parts test reads the
         test table and its figures alone; the archives have tens of gigabytes.
Terms    CC BY-SA 4.0, says the Hub's card; each figure has its article's own licence (CC0 or CC BY).
Flaws    questions and options are a language model's, from the caption alone: some can be answered without the figure.
         The first release has figures of several panels. Rows whose options are empty or repeated, or whose answer is
         none of them or disagrees with its letter, are left out, counted. Both splits may hold figures of one article.
Lesions  none are marked: name a detector with --localizer, or take text pairs only.

Example: mmedpo build pmc_vqa --source data/PMC-VQA --parts test --output data/pmc-vqa --source-only
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase

from mmedpo.cli import main
from mmedpo.data import options as choices
from mmedpo.data import safe_paths
from mmedpo.data.tables import is_missing
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import Hub, Item, Picture, Tree, csv_rows, hub_folder, left_out, listed, unzipped

SOURCE = "hub:RadGenome/PMC-VQA"
LAYOUTS = (("test_2.csv",), ("train_2.csv",), ("test_clean.csv",), ("train.csv", "images*"))
LICENSE = "cc-by-sa-4.0"
CREDENTIALED = False
UPSTREAM_SPLIT = "by table; of what is not described"
OPTIONS = {"split": "train", "localizer": "none"}
HAS_PAIRS = False

TABLES = {2: {"train": "train_2", "test": "test_2"}, 1: {"train": "train", "test": "test_clean"}}
IMAGES = {2: ("figures", "images_2.zip"), 1: ("images", "images.zip")}
LETTERS = ascii_uppercase[:4]


@dataclass
class Options:
    release: int = field(default=2, metadata={"help": "Release: 2 (figures of one panel) or 1."})
    parts: str = field(default="train,test", metadata={"help": "Tables to read: train, test or both, with a comma."})

    def __post_init__(self) -> None:
        listed("--parts", self.parts, ("train", "test"))
        if self.release not in TABLES:
            raise InputError(f"--release is {self.release}; PMC-VQA has the releases 1 and 2.")


def read(source: Path | Hub, options: Options) -> Iterator[Item]:
    """Yield the questions of the wanted tables, with the gold option's text as answer."""
    stems = {part: TABLES[options.release][part] for part in listed("--parts", options.parts)}
    patterns = [*(f"{stem}.csv" for stem in stems.values()), IMAGES[options.release][1]]
    folder = hub_folder(source, patterns) if isinstance(source, Hub) else source
    images = _images(folder, *IMAGES[options.release])
    for part, stem in stems.items():
        for number, row in enumerate(csv_rows(folder, stem)):
            yield _question(f"{part}-{number}", part, row, images)


def _images(folder: Path, name: str, archive: str) -> Tree:
    if (folder / name).is_dir():
        return folder / name
    if not (folder / archive).exists():
        raise InputError(f"{folder} has neither {name}/ nor {archive}. Add one of them.")
    inside = unzipped(folder / archive)
    return inside / name if (inside / name).is_dir() else inside


def _question(name: str, part: str, row: dict[str, str], images: Tree) -> Item:
    figure, question = row["Figure_path"].strip(), row["Question"].strip()
    image = safe_paths.inside(images, figure)
    if image is None or not figure:
        return Fault(name, "image", safe_paths.OUTSIDE, repr(figure))
    if not question:
        return left_out(name, "the question is missing")
    offered, fault = choices.read([row[f"Choice {letter}"].strip().removeprefix(f"{letter}:") for letter in LETTERS])
    if fault:
        return left_out(name, f"the options {fault[0].partition(';')[0]}", fault[1])
    letter = row["Answer_label" if "Answer_label" in row else "Answer"].strip().rstrip(":.").upper()
    gold = dict(zip(LETTERS, offered, strict=True)).get(letter)
    text = row["Answer"].strip() if "Answer_label" in row else ""
    named = choices.gold(text, offered) if text else gold
    if named is None and gold is None:
        return left_out(name, "the answer is none of the options", f"{row['Answer']!r} {letter!r}")
    if gold is not None and named != gold:
        return left_out(name, "the answer and its letter disagree", f"{row['Answer']!r} {letter!r}")
    answer = f"{LETTERS[offered.index(str(named))]}. {named}" if is_missing(named) else named  # "NA" would be missing
    return {
        "id": name, "image": Picture(f"images/{figure}", image), "question": question, "answer": answer,
        "options": list(offered), "task": "choice_vqa", "split": part,
    }  # fmt: skip


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
