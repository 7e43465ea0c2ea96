"""Safe loading of models: configurations, tokenizers and tensors only; a repository's code is never run."""

from __future__ import annotations

import os
import re

OWN_CODE = (
    "it needs code of its repository, which is not run. Give a model whose code ships with transformers "
    "(`mmedpo convert` makes one of LLaVA's own layout)."
)
PICKLED = (
    "it has no model.safetensors, and pickled weights (pytorch_model.bin) are not read, since they could run code. "
    "If you trust it, save it with `save_pretrained`, and give that folder."
)
OBJECTS = "it is pickled with more than tensors, which could run code and is not read. Give safetensors."

SCRIPT = "it needs a loading script, which is not run. Give a dataset with its rows (Parquet files)."


def only_data() -> dict[str, bool]:
    """Return the options of every `from_pretrained`, so that a repository's own code is never run nor prompted for."""
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # else transformers asks a Space of the Hub to convert weights
    return {"trust_remote_code": False}


def refused(error: BaseException) -> str | None:
    """Return why something that could run code was not read, by a library's error; None for other errors."""
    text = " ".join(str(error).split())
    if "Dataset scripts are no longer supported" in text:
        return SCRIPT
    if "trust_remote_code" in text or "custom code" in text:
        return OWN_CODE
    if "Weights only load failed" in text or "Unsupported global" in text:
        return OBJECTS
    if re.search(r"(no file named|have a file named) (pytorch_model\.bin or )?model\.safetensors", text):
        return PICKLED
    return None
