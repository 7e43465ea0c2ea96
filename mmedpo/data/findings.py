"""Questions made from an image's boxed and labelled findings, for tables without questions (NIH ChestX-ray14)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.data.tables import is_missing
from mmedpo.data.text import folded, unit_interval

VOCABULARY = ["atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"]
NO_FINDING = {"no finding"}  # NIH's label of a normal image
OTHERS = {"consolidation", "edema", "emphysema", "fibrosis", "hernia", "pleural thickening"}  # NIH's without boxes
KNOWN = {*VOCABULARY, *OTHERS, *NO_FINDING}
SPELLINGS = {  # NIH's lists of boxes and labels differ in spelling
    **{name + ending: name for name in KNOWN for ending in ("s", "es")},
    **dict.fromkeys(("infiltrate", "infiltrates"), "infiltration"),
}

Box = Mapping[str, Any]


def ask(image: str, boxes: Sequence[Box], labels: Sequence[str], width: float | None) -> Iterator[dict[str, Any]]:
    """Yield `id`, `question`, `answer`, `task` and `boxes` of the questions about one image.

    - Present: "Is there ...?" (yes) for each boxed finding.
    - Side: the side of a boxed finding that is on one side only.
    - What: the finding of a side with one boxed finding, unless the image has labels without boxes.
    - Absent: "Is there ...?" (no) for one finding that is neither boxed nor labelled. Absence rests on image-level
      labels, which may be text-mined. Not asked without labels, or with a finding outside `KNOWN` (maybe a synonym).

    Ids count findings and do not name them, since ids of restricted data are published.

    Args:
        image: path in the source.
        boxes: {"label", "x", "width", ...} each, in pixels.
        labels: all findings of the image, boxed or not.
        width: of the image in pixels; None: no questions about sides.
    """
    name = Path(image).with_suffix("").as_posix()
    by_finding: dict[str, list[Box]] = {}
    for box in boxes:
        by_finding.setdefault(_finding(box["label"]), []).append(box)
    labelled, boxed = named(labels), named(box["label"] for box in boxes)

    def question(kind: str, text: str, answer: str, task: str, shown: Sequence[Box]) -> dict[str, Any]:
        return {"id": f"{name}-{kind}", "question": text, "answer": answer, "task": task, "boxes": list(shown)}

    for place, (finding, shown) in enumerate(by_finding.items(), 1):
        yield question(f"present-{place}", f"Is there {finding} in this image?", "yes", "closed_vqa", shown)
        sides = {_side(box, width) for box in shown}
        if sides in ({"right"}, {"left"}):
            text = f"On which side of the patient is the {finding}?"
            yield question(f"side-{place}", text, str(sides.pop()), "open_vqa", shown)
    for side in ("right", "left") if labelled - NO_FINDING <= boxed else ():
        there = [box for box in boxes if _side(box, width) in (side, None)]
        findings = {_finding(box["label"]) for box in there}
        if len(findings) == 1 and all(_side(box, width) for box in there):
            text = f"What abnormality is seen on the {side} side?"
            yield question(f"what-{side}", text, findings.pop(), "open_vqa", there)
    absent = [finding for finding in VOCABULARY if finding not in labelled | boxed]
    if absent and labelled and labelled | boxed <= KNOWN:
        finding = absent[int(unit_interval(name) * len(absent))]
        yield question("absent", f"Is there {finding} in this image?", "no", "closed_vqa", [])


def named(labels: Iterable[str]) -> set[str]:
    """Return the findings in labels, without missing values. A label may name several ("Nodule/Mass")."""
    return {_finding(one) for label in labels for one in re.split(r"[|/,;\n]", label) if not is_missing(one)}


def fault(boxes: Sequence[object], labels: Sequence[str]) -> tuple[str, str | None] | None:
    """Return why no question can be made about an image, as sentence and value of a fault, or None."""
    if boxes:
        return None
    if not (labelled := named(labels)):
        return "contain no finding; write No Finding where there is none", None
    if unknown := sorted(labelled - KNOWN):
        names = ", ".join(sorted(KNOWN))
        sentence = f"may mean a finding of another name; use {names}, or add boxes or a question"
        return sentence, repr(unknown[0])
    return None


def _finding(label: str) -> str:
    name = folded(label.replace("_", " "))
    return SPELLINGS.get(name, name)


def _side(box: Box, width: float | None) -> str | None:
    """Return the patient's side (a frontal radiograph shows the right side on the left); None across the middle."""
    if width is None or box["x"] < width / 2 < box["x"] + box["width"]:
        return None
    return "right" if box["x"] < width / 2 else "left"
