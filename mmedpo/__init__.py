"""mmedpo: clinically weighted multimodal preference optimization for medical vision-language models.

Importing this package stays light; the trainer is loaded when it is first named.
"""

import os
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
        from mmedpo.share import metric

        return metric
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
