"""ProbMed: yes/no questions about X-ray, CT and MRI, each true one with an adversarial one (Yan et al. 2024).

Source   the Hub's files, after its terms are accepted there, or a folder with `test.json` and `probmed/`.
Terms    MIT, says the Hub's card; the images are of ChestX-ray14 and MedICaT, whose terms hold for them.
Flaws    a benchmark: evaluate on it (--source-only), do not train on it. Findings and positions were made from
         captions and labels. An image's questions of one kind are a question set, right only together, as the authors
         score them (question_set_accuracy by kind of question).
Lesions  none are marked.

Example: mmedpo build probmed --source data/ProbMed --output data/probmed --source-only
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedpo.cli import main
from mmedpo.data import safe_paths
from mmedpo.data.tables import json_file
from mmedpo.data.text import folded
from mmedpo.errors import Fault, InputError
from mmedpo.hub.readers import Hub, Item, Picture, hub_folder, left_out

SOURCE = "hub:rippleripple/ProbMed"
LAYOUTS = (("test.json", "probmed"),)
LICENSE = "mit"
CREDENTIALED = False
UPSTREAM_SPLIT = "test questions only"
OPTIONS = {"split": "test", "localizer": "none"}
HAS_PAIRS = False

KIND = re.compile(r"(modality|body_part|abnormality|entity|grounding)(?:_\w+)?")


def read(source: Path | Hub, options: Any) -> Iterator[Item]:
    """Yield the questions; `question_type` is their kind, and ids end with its full name ("entity_hallu_0")."""
    folder = hub_folder(source, ["test.json", "probmed/*"]) if isinstance(source, Hub) else source
    rows = json_file(folder / "test.json")
    if not isinstance(rows, list):
        raise InputError(f"test.json of {folder} is no list of questions. Give the data set's own file.")
    seen: Counter[str] = Counter()
    for row in rows:
        name = f"{row['id']}-{row['qa_type']}"
        seen[name] += 1
        yield _question(name if seen[name] == 1 else f"{name}-{seen[name]}", row, folder)


def _question(name: str, row: dict[str, Any], folder: Path) -> Item:
    kind, said = KIND.fullmatch(row["qa_type"]), folded(str(row["answer"])).rstrip(".")
    if kind is None:
        return left_out(name, "the kind of question is unknown", repr(row["qa_type"]))
    if said not in ("yes", "no"):
        return left_out(name, "the answer is neither yes nor no", repr(row["answer"]))
    found = [safe_paths.inside(root, row["image"]) for root in (folder, folder / "probmed")]
    image = next((file for file in found if file is not None and file.is_file()), found[0])
    if image is None:
        return Fault(name, "image", safe_paths.OUTSIDE, repr(row["image"]))
    modality, _, organ = re.sub(r"_| - ", "\n", row.get("image_type") or "", count=1).partition("\n")
    return {
        "id": name, "image": Picture(row["image"], image), "question": row["question"].replace("<image>", "").strip(),
        "answer": said, "task": "closed_vqa", "split": "test", "modality": modality, "organ": organ,
        "question_type": kind[1], "question_set": kind[1],
    }  # fmt: skip


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
