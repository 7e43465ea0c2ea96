"""Questions about images whose findings are boxed and labelled, but which nobody has asked anything yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedpo.text import unit_interval

VOCABULARY = ["atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax"]
SPELLINGS = {"infiltrate": "infiltration"}  # NIH's box list and label list differ


def ask(row: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (kind, changed columns) of the questions about one image.

    A boxed finding gives "Is there ...?" (yes), and where it is on one side only, the side; a side with one finding
    gives what is there. One finding that is neither boxed nor labelled gives "Is there ...?" (no): absence rests on
    image-level labels, which may be text-mined.

    Args:
        row: `image`, `width` (pixels), `labels` (texts), `boxes` ({"label", "x", "w", ...} each, already checked).
    """
    stem = Path(str(row["image"])).stem
    boxes: Sequence[Mapping[str, Any]] = row["boxes"] or []
    by_finding: dict[str, list[Mapping[str, Any]]] = {}
    for box in boxes:
        by_finding.setdefault(_finding(box.get("label", "")), []).append(box)

    def question(kind: str, text: str, answer: str, task: str, shown: Sequence[Any]) -> tuple[str, dict[str, Any]]:
        changed = {"id": f"{stem}-{kind}", "question": text, "answer": answer, "task": task, "boxes": list(shown)}
        return kind, changed

    for finding, shown in by_finding.items():
        yield question(f"present-{finding}", f"Is there {finding} in this image?", "yes", "closed_vqa", shown)
        sides = {_side(box, row["width"]) for box in shown} if row["width"] else set()
        if len(sides) == 1:
            text = f"On which side of the patient is the {finding}?"
            yield question(f"side-{finding}", text, sides.pop(), "open_vqa", shown)
    for side in ("right", "left") if row["width"] else ():
        there = [box for box in boxes if _side(box, row["width"]) == side]
        findings = {_finding(box.get("label", "")) for box in there}
        if len(findings) == 1:
            text = f"What abnormality is seen on the {side} side?"
            yield question(f"what-{side}", text, findings.pop(), "open_vqa", there)
    known = {_finding(label) for label in row["labels"]} | by_finding.keys()
    absent = [finding for finding in VOCABULARY if finding not in known]
    if absent:
        finding = absent[int(unit_interval(stem) * len(absent))]
        yield question("absent", f"Is there {finding} in this image?", "no", "closed_vqa", [])


def _finding(label: str) -> str:
    name = str(label).strip().lower()
    return SPELLINGS.get(name, name)


def _side(box: Mapping[str, Any], width: float) -> str:
    """The patient's side: frontal radiographs show the right side on the left."""
    return "right" if float(box["x"]) + float(box.get("w", box.get("width"))) / 2 < float(width) / 2 else "left"
