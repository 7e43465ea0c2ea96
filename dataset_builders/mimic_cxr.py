r"""MIMIC-CXR: chest X-rays with radiology reports of Beth Israel Deaconess (Johnson et al. 2019). Credentialed.

Source   PhysioNet's tree of MIMIC-CXR-JPG or MIMIC-CXR: `files/p10/p10000032/s50414267/*.jpg` (or .dcm), the tables
         mimic-cxr-2.0.0-split.csv and mimic-cxr-2.0.0-metadata.csv (or .csv.gz), and the reports
         `files/p10/p10000032/s50414267.txt`, in the same tree or another (--reports).
Terms    PhysioNet Credentialed Health Data License: neither texts nor images may be passed on. What that means here:
         docs/restricted.md.
Flaws    names and dates are blacked out as ___; reports compare with earlier images. Reports without the section asked
         for (--sections) and views other than --views are left out, counted.
Lesions  none are marked: name a tool with --localizer (medklip:FOLDER knows chest X-rays).

Views    each image of --views PA,AP (the default, also called frontal) is a row; --views all gives one row per study
         about all of its images, the frontal ones first.

The split is upstream's, by patient. A part of the tree will do with --skip-faulty, which leaves the missing files out.

Example: mmedpo build mimic_cxr --config recipes/curate/reports.yaml --source data/mimic-cxr-jpg \
         --reports data/mimic-cxr-reports --output runs/mimic/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mmedpo.cli import main
from mmedpo.data import safe_paths
from mmedpo.errors import Fault
from mmedpo.hub.readers import REPORT_QUESTION, Item, Picture, csv_rows, left_out, listed, sections

SOURCE = None
LAYOUTS = (("mimic-cxr-2.0.0-split.csv*", "mimic-cxr-2.0.0-metadata.csv*", "files"),)
LICENSE = "physionet-credentialed-1.5.0"
CREDENTIALED = True
UPSTREAM_SPLIT = "by patient"
OPTIONS = {"split": "train", "localizer": "none"}
HAS_PAIRS = False

SECTIONS = ("findings", "impression")
FRONTAL = ("PA", "AP")


@dataclass
class Options:
    reports: Path | None = field(default=None, metadata={"help": "Tree with the reports, where it is another one."})
    sections: str = field(default="findings", metadata={"help": "findings, impression or findings,impression."})
    views: str = field(
        default=",".join(FRONTAL),
        metadata={"help": "Views of which each image is a row, as the metadata calls them; or all: a row a study."},
    )

    def __post_init__(self) -> None:
        listed("--sections", self.sections, SECTIONS)
        listed("--views", self.views)


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per image in upstream's split, with the wanted sections of its report; with all views, per study."""
    views = {row["dicom_id"]: row["ViewPosition"] for row in csv_rows(source, "mimic-cxr-2.0.0-metadata")}
    wanted, asked = listed("--sections", options.sections), listed("--views", options.views)
    asked = [*FRONTAL] if asked == ["frontal"] else asked
    report = lru_cache(maxsize=256)(_report)  # images of one study are neighbours
    studies: dict[str, list[dict[str, str]]] = {}
    for row in csv_rows(source, "mimic-cxr-2.0.0-split"):
        name = row["dicom_id"]
        if asked == ["all"]:
            studies.setdefault(_study(row), []).append(row)
        elif views.get(name) not in asked:
            yield left_out(name, "the view was not asked for", views.get(name) or "unknown")
        else:
            yield _row(source, options, wanted, name, [row], report)
    for study, rows in studies.items():
        ordered = sorted(rows, key=lambda row: views.get(row["dicom_id"]) not in FRONTAL)
        yield _row(source, options, wanted, study.rpartition("/")[2], ordered, report)


def _study(row: Mapping[str, str]) -> str:
    patient = f"p{row['subject_id']}"
    return f"files/{patient[:3]}/{patient}/s{row['study_id']}"


def _row(
    source: Path, options: Options, wanted: Sequence[str], name: str, rows: Sequence[Mapping[str, str]],
    report: Callable[[Path], dict[str, str] | None],
) -> Item:  # fmt: skip
    """Return the row about images of one study."""
    first, study = rows[0], _study(rows[0])
    file = safe_paths.inside(options.reports or source, f"{study}.txt")
    found = report(file) if isinstance(file, Path) else None
    if found is None:
        return Fault(name, "report", f"{study}.txt is missing or no UTF-8; add it, or name its tree with --reports")
    text = " ".join(found[section.upper()] for section in wanted if section.upper() in found)
    if not text:
        return left_out(name, f"the report has no {' and no '.join(wanted)}", f"{study}.txt")
    pictures = [_picture(source, study, row["dicom_id"]) for row in rows]
    return {
        "id": name, **({"images": pictures} if options.views == "all" else {"image": pictures[0]}),
        "question": REPORT_QUESTION, "report": text, "task": "report",
        "split": {"validate": "validation"}.get(first["split"], first["split"]),
        "patient_id": f"p{first['subject_id']}", "modality": "X-Ray", "organ": "Chest",
    }  # fmt: skip


def _picture(source: Path, study: str, name: str) -> Picture:
    files = [f"{study}/{name}{suffix}" for suffix in (".jpg", ".dcm")]
    image = next((file for file in files if not safe_paths.leads_out(file) and (source / file).exists()), files[0])
    return Picture(image, source / image)


def _report(file: Path) -> dict[str, str] | None:
    """Return the report's sections; None if the file is missing or not UTF-8."""
    try:
        return sections(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
