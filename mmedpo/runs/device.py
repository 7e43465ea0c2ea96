"""Accelerator of this process: chosen for models, and named in records."""

from __future__ import annotations

import gc
import platform
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def best_device() -> torch.device:
    """Return the current CUDA device (a launcher sets it per process), else Apple's MPS, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def release() -> None:
    """Free the memory that finished work holds on an accelerator."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def hardware() -> str:
    """Return the name of the current accelerator, or the type of processor."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
