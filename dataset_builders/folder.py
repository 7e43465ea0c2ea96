r"""Any folder with one table (.jsonl, .json, .csv: image, question, answer or report, ...) and its images.

Source   the folder; docs/curation.md says what its columns may be. DICOM: pip install 'mmedpo[dicom]'.
Terms    yours to say: --license. Data that may not be passed on: --credentialed.
Flaws    yours to know. Without a column `split`, or where it tears images or patients apart, the questions are split by
         patient or image.
Lesions  the column `boxes`; with --localizer masks or heatmap those; or a tool's.

Example: mmedpo build folder --config recipes/curate/air_gapped.yaml --source data/clinic --license cc-by-4.0 \
         --output runs/clinic/pairs
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmedpo.cli import main

SOURCE = None
LAYOUTS = ()
LICENSE = None
CREDENTIALED = False
UPSTREAM_SPLIT = None
OPTIONS = {"split": "train"}
HAS_PAIRS = False


def read(source: Path, options: Any) -> None:
    return None  # a source folder already


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
