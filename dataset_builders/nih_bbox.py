"""NIH ChestX-ray14's images with hand-drawn boxes (Wang et al. 2017): a folder with `boxes.jsonl` and `images/`.

Questions are made from the boxed findings, and from labels that an image does not have; those labels were text-mined,
so "no" is less certain than "yes". Patients are never split. The boxes are the localizer.

Example: python dataset_builders/nih_bbox.py --source data/nih-bbox --model org/med-lvlm --output runs/nih-bbox/pairs
"""

import sys

from mmedpo.cli import main

LICENSE = "unrestricted with attribution (NIH Clinical Center)"

if __name__ == "__main__":
    main(["curate", "--split", "train", "--license", LICENSE, "--localizer", "boxes", *sys.argv[1:]])
