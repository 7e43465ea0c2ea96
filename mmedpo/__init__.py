"""mmedpo: clinically weighted multimodal preference optimization for medical vision-language models.

Importing this package stays light; the trainer is loaded when it is first named.
"""

import os
import sys

# `python -m mmedpo` would import libraries from the current folder first: a `yaml.py` beside somebody's data would run.
if sys.argv[:1] == ["-m"] and not sys.flags.safe_path and __file__ != f"{sys.path[0]}{os.sep}mmedpo{os.sep}__init__.py":
    del sys.path[0]

from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # clinical work reports to nobody

__version__ = "0.1.0"
__all__ = ["MMedPOConfig", "MMedPOTrainer", "metric"]


def __getattr__(name: str) -> Any:
    if name == "MMedPOConfig":
        from mmedpo.training.config import MMedPOConfig

        return MMedPOConfig
    if name == "MMedPOTrainer":
        from mmedpo.training.trainer import MMedPOTrainer

        return MMedPOTrainer
    if name == "metric":
        from mmedpo.runs.packaged import metric

        return metric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
