"""The preference rows that MMedPO's authors released: text pairs with a score each, joined with images by name.

Source   one of their files (vqa-rad_dpo_weighted.json, slake_..., iuxray_...: LLaVA's layout), and with --images the
         folder of the data set's own images, which are not in the files.
Terms    the repository is Apache-2.0; texts and images keep those of VQA-RAD (CC0 1.0), SLAKE (CC BY 4.0) and IU X-Ray
         (CC BY-NC-ND 4.0). For other files: --license.
Flaws    equal sides, rejected answers that hold the gold one or say the same yes or no or speak of their own prompt,
         repeated questions, lost characters, missing images: each a counted reject. What stays is told apart by its
         length: rejected answers are five times as long (docs/curation.md).
Lesions  none are in the files: --localizer adds `lesion_noise` rows with the same answer.

The published scores become `clinical_relevance`; the weights are normalised as in every dataset (--weights raw: as
released). All rows are used. The authors' test images of VQA-RAD are among them: --split train leaves those out that
`mmedpo evaluate --source data/vqa-rad --split test` asks about.

Example: mmedpo build released --source vqa-rad_dpo_weighted.json --images data/vqa-rad --output runs/released/pairs
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmedpo.cli import main
from mmedpo.data.files import find_file, image_files
from mmedpo.data.tables import FAULT, has_table, is_missing, read_table
from mmedpo.data.text import plain, polarity, words
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import Item, Picture, left_out


class Known(NamedTuple):
    """Facts about one of the authors' files."""

    source: str
    license: str | None = None
    upstream_split: str | None = None
    reports: bool | None = None  # None: texts longer than REPORT_WORDS are reports


KNOWN = {
    "vqa-rad_dpo_weighted.json": Known("vqa-rad", "cc0-1.0", "by question", False),
    "slake_dpo_weighted.json": Known("slake", "cc-by-4.0", "by image", False),
    "iuxray_dpo_weighted.json": Known("iu-xray", "cc-by-nc-nd-4.0", "by study", True),
}


def known(source: Path) -> Known:
    """Return the facts about a file; a file of another name gives only its source's name."""
    return KNOWN.get(source.name, Known(source.stem))


def split_of(source: Path) -> str | None:
    return known(source).upstream_split


SOURCE = None
LAYOUTS = ()
LICENSE = None
CREDENTIALED = False
UPSTREAM_SPLIT = split_of
OPTIONS = {"localizer": "none", "skip_faulty": True}
HAS_PAIRS = True

MADE_BY = "MMedPO's authors, as released"
REPORT_WORDS = 20
OF_ITS_PROMPT = re.compile(
    r"\b(original|candidate|dispreferred)\W+(answer|statement)|\bdispreferred\b|\bcontradict", re.IGNORECASE
)
LOST = "\ufffd"  # replacement character of a failed decoding


@dataclass
class Options:
    images: Path | None = field(default=None, metadata={"help": "Folder of the data set's images (must be given)."})

    def __post_init__(self) -> None:
        if self.images is None or not self.images.is_dir():
            raise InputError(f"--images is {self.images}; give the folder of the images that the file names.")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield rows with their published pair, and a reject for each unusable row."""
    if not source.is_file():
        raise InputError(f"{source} is a folder; give one of the released JSON files.")
    assert options.images
    folder = options.images.absolute()
    files, root = image_files(folder), _root(folder)
    seen: dict[tuple[str, str], str] = {}
    about = known(source)
    for where, row in read_table(source):
        pair = _pair(row, about.reports)
        if isinstance(pair, str):
            yield left_out(where, pair)
            continue
        image = find_file(where, "image", row["image"], folder, files)
        first = seen.setdefault((str(row["image"]), plain(pair["question"])), where)
        if isinstance(image, Fault):
            yield left_out(where, "no single image of that name", str(row["image"]))
        elif first != where:
            yield left_out(where, "the question was asked of the image before", first)
        else:
            picture = Picture(image.relative_to(root).as_posix(), image)
            name = where if is_missing(row["id"]) else str(row["id"])
            yield {"source": about.source, "license": about.license, "id": name, "image": picture, **pair}


def _root(images: Path) -> Path:
    """Return the folder that image ids are relative to.

    It is the parent folder if that holds the data set's table. Ids and split then equal those of `mmedpo evaluate
    --source`.
    """
    return images.parent if not has_table(images) and has_table(images.parent) else images


def _pair(row: dict[str, Any], is_report: bool | None) -> dict[str, Any] | str:
    """Return question, texts, task and score of a row in LLaVA's layout, or the reason for a reject."""
    try:
        (asked, gold), (_, wrong) = (
            [turn["value"].replace("<image>", "").strip() for turn in row[side]]
            for side in ("conversations", "rejected_conversations")
        )
        score = float(row["weighted_score"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return "faulty row: no two turns a side and a score" + (f" ({row[FAULT][1]})" if FAULT in row else "")
    if not 0 <= score <= 1:
        return "the score is not in [0, 1]"
    if LOST in asked + gold + wrong:
        return "a character of its texts was lost"
    is_report = len(words(gold)) > REPORT_WORDS if is_report is None else is_report
    told = OF_ITS_PROMPT.search(wrong) and not OF_ITS_PROMPT.search(gold)
    fault = "the wrong answer speaks of the other answers, as it was told to contradict them" if told else None
    short = "closed_vqa" if polarity(gold) and len(gold) <= 3 else "open_vqa"
    return {
        "question": asked, "answer": gold, "task": "report" if is_report else short,
        "rejected": wrong, "rejected_fault": fault, "rejected_by": MADE_BY, "clinical_relevance": score,
    }  # fmt: skip


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
