"""IU X-Ray: chest X-rays with radiology reports of Indiana University, from Open-i (Demner-Fushman et al. 2016).

Source   a folder in one of two layouts: R2Gen's (`annotation.json` and `images/`), or Kaggle's and Open-i's
         (`indiana_reports.csv`, `indiana_projections.csv` and the images anywhere below).
Terms    CC BY-NC-ND 4.0 (Open-i): derived pairs may not be passed on without asking.
Flaws    names and dates are blacked out as XXXX in the reports; reports compare with images that are not there. R2Gen's
         split is by study; Kaggle's has none, and is split by study (the finest that is published).
Lesions  none are marked: name a tool with --localizer (medklip:FOLDER knows chest X-rays).

A study with several images gives one row: R2Gen's first image, or each frontal one of Kaggle's.

Example: mmedpo build iu_xray --config recipes/curate/reports.yaml --source data/iu_xray --output runs/iu-xray/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmedpo.cli import main
from mmedpo.data.files import image_files, spelling
from mmedpo.data.tables import is_missing, json_file
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import REPORT_QUESTION, Item, Picture, csv_rows, left_out, listed


def split_of(source: Path) -> str | None:
    """Return what the layout's split keeps together; None if it has no split."""
    return "by study" if (source / "annotation.json").exists() else None


SOURCE = None
LAYOUTS = (("annotation.json", "images"), ("indiana_reports.csv", "indiana_projections.csv"))
LICENSE = "cc-by-nc-nd-4.0"
CREDENTIALED = False
UPSTREAM_SPLIT = split_of
OPTIONS = {"split": "train", "localizer": "none"}
HAS_PAIRS = False

SECTIONS = ("findings", "impression")
SPLITS = {"val": "validation"}


@dataclass
class Options:
    sections: str | None = field(
        default=None, metadata={"help": "Of Kaggle's reports: findings (the default), impression or both."}
    )

    def __post_init__(self) -> None:
        if self.sections is not None:
            listed("--sections", self.sections, SECTIONS)


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per study of R2Gen, or per frontal image of Kaggle."""
    if not (source / "annotation.json").exists():
        return _of_kaggle(source, listed("--sections", options.sections or SECTIONS[0]))
    if options.sections is not None:
        raise InputError("R2Gen's annotation.json does not divide reports into sections: leave out --sections.")
    return _of_r2gen(source)


def _of_r2gen(folder: Path) -> Iterator[Item]:
    splits = json_file(folder / "annotation.json")
    if not isinstance(splits, dict):
        raise InputError("annotation.json holds no parts; R2Gen's holds the lists train, val and test.")
    for split, studies in splits.items():
        for study in studies:
            name, report = str(study["id"]), " ".join(("" if is_missing(study["report"]) else study["report"]).split())
            if not report:
                yield left_out(name, "the report is empty")
                continue
            image = f"images/{study['image_path'][0]}"
            yield _row(name, Picture(image, folder / image), report, name.split("_")[0], SPLITS.get(split, split))


def _of_kaggle(folder: Path, wanted: list[str]) -> Iterator[Item]:
    reports = {row["uid"]: row for row in csv_rows(folder, "indiana_reports")}
    images = image_files(folder)
    for row in csv_rows(folder, "indiana_projections"):
        file, report = row["filename"], reports.get(row["uid"])
        if report is None:
            yield Fault(file, "uid", f"{row['uid']} has no row in indiana_reports.csv; add it")
            continue
        text = " ".join(" ".join(report[section].split()) for section in wanted).strip()
        if row["projection"] != "Frontal":
            yield left_out(file, "the view is not frontal", row["projection"])
        elif not text:
            yield left_out(file, f"the report has no {' and no '.join(wanted)}")
        else:
            found = images.get(spelling(file), [])
            if not found:
                yield Fault(file.split(".")[0], "image", "is missing in the source; add the file", repr(file))
                continue
            if len(found) > 1:
                yield Fault(file, "filename", f"is the name of {len(found)} files; leave one of them")
                continue
            picture = Picture(found[0].relative_to(folder).as_posix(), found[0])
            yield _row(file.split(".")[0], picture, text, f"CXR{row['uid']}", "")


def _row(name: str, picture: Picture, report: str, patient: str, split: str) -> dict[str, Any]:
    return {
        "id": name, "image": picture, "question": REPORT_QUESTION, "report": report, "task": "report", "split": split,
        "patient_id": patient, "modality": "X-Ray", "organ": "Chest",
    }  # fmt: skip


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
