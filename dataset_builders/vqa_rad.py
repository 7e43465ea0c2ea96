"""VQA-RAD (Lau et al. 2018, CC0): a folder with `qa.jsonl` and `images/`, as its authors publish it.

The official split is by question, so that nearly every test image is a training image too; the questions are split by
image instead. The data has no lesion boxes: name a detector with --localizer, or take text pairs only.

Example: python dataset_builders/vqa_rad.py --source data/vqa-rad --model org/med-lvlm --output runs/vqa-rad/pairs
"""

import sys

from mmedpo.cli import main

if __name__ == "__main__":
    main(["curate", "--split", "train", "--license", "cc0-1.0", *sys.argv[1:]])
