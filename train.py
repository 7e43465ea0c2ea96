"""Train an adapter on a preference dataset: `accelerate launch train.py --config recipes/quickstart.yaml`."""

import sys

from mmedpo.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
