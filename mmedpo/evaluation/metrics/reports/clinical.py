"""Clinical scores of reports by their authors' packages; opt-in, since they load models from the Hub.

Written for radgraph 0.1.18 and f1chexbert 0.0.2. The tests never run them with their weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import Floats, mean_of, sums_of

Texts = Sequence[str]
log = logging.getLogger(__name__)
PICKLES = (
    "{package} unpickles files of StanfordAIMI/RRG_scorers from the Hub, which can run any code on this machine. Use "
    "it only if you trust that repository and the local cache, on a machine without other data."
)


def scores(name: str, predictions: Texts, references: Texts) -> list[dict[str, Any]]:
    """Return the scores of each pair of raw texts.

    Args:
        name: one of `SCORES`.
        predictions: n reports of the model.
        references: n gold reports.

    Returns:
        n of {"radgraph_f1": value in [0, 1]} or {"chexbert_counts": [tp, fp, fn]} over 14 labels.

    Raises:
        InputError: the package is not installed, its weights cannot be loaded, or it fails with the installed
            transformers.
    """
    try:
        return SCORES[name](predictions, references) if predictions else []
    except ImportError as error:
        raise InputError(
            f"clinical score {name!r} needs a package that is not installed ({error}). "
            "Run `pip install 'mmedpo[clinical]'`, or leave it out."
        ) from None
    except Exception as error:  # the packages document no exceptions
        raise InputError(
            f"clinical score {name!r} could not be computed by its package ({type(error).__name__}: {error}). "
            "At first use it loads weights from StanfordAIMI/RRG_scorers on the Hub: run it once with network, "
            "or leave it out."
        ) from error


def _radgraph(predictions: Texts, references: Texts) -> list[dict[str, Any]]:
    rewards = _model("radgraph", "F1RadGraph", reward_level="partial", model_type="radgraph-xl")(
        refs=list(references), hyps=list(predictions)
    )[1]
    return [{"radgraph_f1": float(reward)} for reward in rewards]


def _chexbert(predictions: Texts, references: Texts) -> list[dict[str, Any]]:
    model = _model("f1chexbert", "F1CheXbert")
    said, gold = (np.array([model.get_label(text.strip()) for text in texts]) for texts in (predictions, references))
    counts = np.stack([said & gold, said & ~gold & 1, gold & ~said & 1]).sum(axis=-1).T
    return [{"chexbert_counts": row} for row in counts.tolist()]


@cache
def _model(package: str, name: str, **options: str) -> Any:
    found = getattr(import_module(package), name)
    log.warning(PICKLES.format(package=package))
    from transformers import PreTrainedTokenizerBase

    if not hasattr(PreTrainedTokenizerBase, "encode_plus"):
        setattr(PreTrainedTokenizerBase, "encode_plus", _encode_plus)  # noqa: B010
    return found(**options)


def _encode_plus(tokenizer: Any, text: str | list[str], text_pair: str | None = None, **options: Any) -> Any:
    """Replace `encode_plus`, which both packages call and transformers 5 removed; a list holds tokens."""
    if isinstance(text, str):
        return tokenizer(text, text_pair, **options)
    ids = tokenizer.convert_tokens_to_ids(text)
    return {"input_ids": [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]}


def micro_f1(sums: Floats) -> Floats:
    """Return 2 tp / (2 tp + fp + fn) [...] of sums (tp, fp, fn) [..., 3]; 0 where there are no labels."""
    doubled = 2 * sums[..., 0]
    return doubled / np.maximum(doubled + sums[..., 1] + sums[..., 2], 1)


SCORES: dict[str, Callable[[Texts, Texts], list[dict[str, Any]]]] = {"radgraph_f1": _radgraph, "chexbert_f1": _chexbert}
METRICS = (mean_of("radgraph_f1"), sums_of("chexbert_counts", "chexbert_f1", micro_f1))
