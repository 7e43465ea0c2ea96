"""IU X-Ray: chest X-rays with radiology reports of Indiana University, from Open-i (Demner-Fushman et al. 2016).

Source   a folder in one of two layouts: R2Gen's (`annotation.json` and `images/`), or Kaggle's and Open-i's
         (`indiana_reports.csv`, `indiana_projections.csv` and the images anywhere below).
Terms    CC BY-NC-ND 4.0 (Open-i): derived pairs may not be passed on without asking.
Flaws    names and dates are blacked out as XXXX in the reports; reports compare with images that are not there. R2Gen's
         split is by study; Kaggle's has none, and is split by study (the finest that is published).
Lesions  none are marked: name a tool with --localizer (medklip:FOLDER knows chest X-rays).

Views    --views frontal (the default) gives a row per study about R2Gen's first image, or per frontal one of Kaggle's.
         --views all gives one row per study about all of its images: R2Gen's in its order, as its protocol shows them
         to a model, Kaggle's with the frontal ones first.

Example: mmedpo build iu_xray --config recipes/curate/reports.yaml --source data/iu_xray --output runs/iu-xray/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmedpo.cli import main
from mmedpo.data.files import Files, image_files, spelling
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
VIEWS = ("frontal", "all")
SPLITS = {"val": "validation"}


@dataclass
class Options:
    sections: str | None = field(
        default=None, metadata={"help": "Of Kaggle's reports: findings (the default), impression or both."}
    )

    views: str = field(default="frontal", metadata={"help": "frontal, or all: one row per study with all its images."})

    def __post_init__(self) -> None:
        if self.sections is not None:
            listed("--sections", self.sections, SECTIONS)
        if self.views not in VIEWS:
            raise InputError(f"--views is {self.views!r}; choose one of {', '.join(VIEWS)}.")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per study of R2Gen, or per frontal image of Kaggle; with all views, per study of both."""
    if not (source / "annotation.json").exists():
        sections = listed("--sections", options.sections or SECTIONS[0])
        return _studies_of_kaggle(source, sections) if options.views == "all" else _of_kaggle(source, sections)
    if options.sections is not None:
        raise InputError("R2Gen's annotation.json does not divide reports into sections: leave out --sections.")
    return _of_r2gen(source, options.views == "all")


def _of_r2gen(folder: Path, every: bool) -> Iterator[Item]:
    splits = json_file(folder / "annotation.json")
    if not isinstance(splits, dict):
        raise InputError("annotation.json holds no parts; R2Gen's holds the lists train, val and test.")
    for split, studies in splits.items():
        for study in studies:
            name, report = str(study["id"]), " ".join(("" if is_missing(study["report"]) else study["report"]).split())
            if not report:
                yield left_out(name, "the report is empty")
                continue
            images = [f"images/{path}" for path in study["image_path"]]
            shown = [Picture(image, folder / image) for image in images]
            about = report, name.split("_")[0], SPLITS.get(split) or split
            yield _row(name, shown if every else shown[0], *about)


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
            picture = _found(folder, images, file)
            if isinstance(picture, Fault):
                yield picture
                continue
            yield _row(file.split(".")[0], picture, text, f"CXR{row['uid']}", "")


def _studies_of_kaggle(folder: Path, wanted: list[str]) -> Iterator[Item]:
    files, studies = image_files(folder), dict[str, list[dict[str, str]]]()
    for row in csv_rows(folder, "indiana_projections"):
        studies.setdefault(row["uid"], []).append(row)
    for report in csv_rows(folder, "indiana_reports"):
        text = " ".join(" ".join(report[section].split()) for section in wanted).strip()
        name, rows = f"CXR{report['uid']}", studies.pop(report["uid"], [])
        if not rows:
            yield left_out(name, "the report has no image")
        elif not text:
            yield left_out(name, f"the report has no {' and no '.join(wanted)}")
        else:
            ordered = sorted(rows, key=lambda row: row["projection"] != "Frontal")
            shown = [_found(folder, files, row["filename"]) for row in ordered]
            pictures = [picture for picture in shown if isinstance(picture, Picture)]
            yield from (fault for fault in shown if isinstance(fault, Fault))
            if len(pictures) == len(shown):  # else the study would lack an image
                yield _row(name, pictures, text, name, "")
    for uid in studies:
        yield Fault(f"CXR{uid}", "uid", f"{uid} has no row in indiana_reports.csv; add it")


def _found(folder: Path, images: Files, file: str) -> Picture | Fault:
    found = images.get(spelling(file), [])
    if not found:
        return Fault(file.split(".")[0], "image", "is missing in the source; add the file", repr(file))
    if len(found) > 1:
        return Fault(file, "filename", f"is the name of {len(found)} files; leave one of them")
    return Picture(found[0].relative_to(folder).as_posix(), found[0])


def _row(name: str, shown: Picture | list[Picture], report: str, patient: str, split: str) -> dict[str, Any]:
    return {
        "id": name, "images" if isinstance(shown, list) else "image": shown, "question": REPORT_QUESTION,
        "report": report, "task": "report", "split": split, "patient_id": patient, "modality": "X-Ray",
        "organ": "Chest",
    }  # fmt: skip


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
