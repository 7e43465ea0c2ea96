"""NIH ChestX-ray14's images with hand-drawn boxes (Wang et al. 2017).

Source   a folder with `boxes.jsonl` (image, labels, boxes in pixels, patient_id) and its images.
Terms    unrestricted with attribution (NIH Clinical Center)
Flaws    nobody asked questions: they are made from the boxed findings, and from labels that an image does not have.
         Those labels were text-mined, so that "no" is less certain than "yes".
Lesions  the boxes.

Example: mmedpo build nih_bbox --config recipes/curate/air_gapped.yaml --source data/nih-bbox --output runs/nih/pairs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmedpo.cli import main

SOURCE = None
LAYOUTS = (("boxes.jsonl",),)
LICENSE = "unrestricted with attribution (NIH Clinical Center)"
CREDENTIALED = False
UPSTREAM_SPLIT = None
OPTIONS = {"split": "train", "localizer": "boxes"}
HAS_PAIRS = False


def read(source: Path, options: Any) -> None:
    return None  # a source folder already


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
