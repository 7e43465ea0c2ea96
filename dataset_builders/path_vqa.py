r"""PathVQA: questions about pathology images, made by rules from captions of two textbooks and PEIR (He et al. 2020).

Source   the Hub's copy (images, questions, answers: 32,632 rows), or a local copy of it (`data/*.parquet`). The
         authors' own release holds Python pickles, which can run code when read, and is not read.
Terms    MIT, says the Hub's card; the images and captions belong to the books' publishers and PEIR's owners.
Flaws    questions are made by rules and often odd; texts are in lower case. The split is by image; where the same
         file is in two of its parts, all is split anew by image.
Lesions  none are marked: name a detector with --localizer, or take text pairs only.

Example: mmedpo build path_vqa --model org/med-lvlm --chat hub:org/writer --judges hub:org/judge-a hub:org/judge-b \
         --limit 5000 --output runs/path-vqa/pairs
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedpo.cli import main
from mmedpo.hub.readers import Hub, Item, hub_triples

SOURCE = "hub:flaviagiammarino/path-vqa"
LAYOUTS = (("data/*.parquet",),)
LICENSE = "mit"
CREDENTIALED = False
UPSTREAM_SPLIT = "by image"
OPTIONS = {"split": "train", "localizer": "none"}
HAS_PAIRS = False


def read(source: Path | Hub, options: Any) -> Iterator[Item]:
    return hub_triples(source)


if __name__ == "__main__":
    main(["build", Path(__file__).stem, *sys.argv[1:]])
