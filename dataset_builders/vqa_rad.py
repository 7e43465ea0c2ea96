"""VQA-RAD: clinicians' questions about radiology images of head, chest and abdomen (Lau et al. 2018).

Source   the Hub's copy (images, questions, answers: 2,244 rows), or the authors' own folder: `qa.jsonl` or
         `VQA_RAD*.json` with the images. Only the authors' has answer types, organs and image names.
Terms    CC0 1.0
Flaws    the official split is by question, so that nearly every test image is a training image too: the questions are
         split by image here. Some answers are numbers; questions come in several wordings.
Lesions  none are marked: name a detector with --localizer, or take text pairs only.

Example: mmedpo build vqa_rad --config recipes/curate/vqa_rad.yaml --source data/vqa-rad --output runs/vqa-rad/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedpo.cli import main
from mmedpo.hub.readers import Hub, Item, hub_triples

SOURCE = "hub:flaviagiammarino/vqa-rad"
LAYOUTS = (("qa.jsonl",), ("VQA_RAD*.json",), ("data/*.parquet",))
LICENSE = "cc0-1.0"
CREDENTIALED = False
UPSTREAM_SPLIT = "by question"
OPTIONS = {"split": "train", "localizer": "none"}
HAS_PAIRS = False


def read(source: Path | Hub, options: Any) -> Iterator[Item] | None:
    return hub_triples(source) if isinstance(source, Hub) or any(source.glob("data/*.parquet")) else None


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
