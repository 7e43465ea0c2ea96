"""Agreement of loss and gradients: optimised and plain computation, family by family, as a Markdown table.

    python benchmarks/agreement.py

Tiny random models (tests/training/families.py), three pairs with one or two images each, float32; "trees": five
questions about three images, and "64 pairs": as many ragged pairs about one image, one row. Each cell is the difference
of the loss / the largest relative difference of a gradient, against every side alone with all logits. In "plain"
training the vision encoder is trained too, in LoRA it is frozen. "Shared" is what the trainer does by default,
"fallback" is without prefix sharing and images encoded once, "separate" without prefix sharing only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))
from families import FAMILIES, SETTINGS, differences, pairs, questions


def main() -> None:
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, float32, attention sdpa (and eager)\n")
    print("| family | way | " + " | ".join([*SETTINGS, "plain, eager attention"]) + " |")
    print("|---" * (len(SETTINGS) + 3) + "|")
    for name in FAMILIES:
        for way, shared, once, drawn in (
            ("shared", True, True, pairs()), ("separate", False, True, pairs()), ("fallback", False, False, pairs()),
            ("trees", True, True, questions()), ("64 pairs", True, True, questions([[1 + i % 8 for i in range(64)]])),
        ):  # fmt: skip
            results = [differences(name, setting, shared, once=once, drawn=drawn) for setting in SETTINGS]
            results.append(differences(name, "plain", shared, "eager", once, drawn))
            print(f"| {name} | {way} | " + " | ".join(f"{loss:.0e} / {grad:.0e}" for loss, grad in results) + " |")


if __name__ == "__main__":
    main()
