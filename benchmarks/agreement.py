"""Agreement of loss and gradients: optimised and plain computation, family by family, as a Markdown table.

    python benchmarks/agreement.py

Tiny random models (tests/training/families.py), three pairs with one or two images each, float32. Each cell is the
difference of the loss / the largest relative difference of a gradient, against every side alone with all logits. In
"plain" training the vision encoder is trained too, in LoRA it is frozen. "Shared" is what the trainer does by default,
"fallback" is without prefix sharing and images encoded once, "separate" without prefix sharing only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))
from families import FAMILIES, SETTINGS, differences


def main() -> None:
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, float32, attention sdpa (and eager)\n")
    print("| family | way | " + " | ".join([*SETTINGS, "plain, eager attention"]) + " |")
    print("|---" * (len(SETTINGS) + 3) + "|")
    for name in FAMILIES:
        for way, shared, once in (("shared", True, True), ("separate", False, True), ("fallback", False, False)):
            results = [differences(name, setting, shared, once=once) for setting in SETTINGS]
            results.append(differences(name, "plain", shared, "eager", once))
            print(f"| {name} | {way} | " + " | ".join(f"{loss:.0e} / {grad:.0e}" for loss, grad in results) + " |")


if __name__ == "__main__":
    main()
