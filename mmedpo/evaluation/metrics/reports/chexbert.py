"""CheXbert (Smit et al. 2020): 14 labels of a chest X-ray report, by a BERT encoder with a linear head a label.

Labels and averages are those of f1chexbert and RadEval: positive and uncertain count as present; F1 is micro and macro,
over all 14 labels and over the 5 that CheXpert's competition scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mmedpo.errors import InputError
from mmedpo.evaluation.metrics.base import Floats, Metric
from mmedpo.evaluation.metrics.reports import weights
from mmedpo.runs.device import best_device

if TYPE_CHECKING:
    from pathlib import Path

    import torch

VERSION = 1
FILE = "chexbert.pth"
MODEL = "google-bert/bert-base-uncased"  # tokenizer and configuration
LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")
PRESENT = (1, 3)  # classes positive and uncertain, of blank, positive, negative, uncertain; "No Finding" has two
LONGEST = 512  # tokens; the rest of a report is not read
BATCH = 16
KEY = "chexbert_labels"  # in scores.jsonl: names of the labels present in "prediction" and "reference"


def scores(predictions: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """Return the labels present in each of n pairs of reports: {KEY: {"prediction": [...], "reference": [...]}}."""
    texts = dict.fromkeys([*predictions, *references])
    labeler = load()
    labeler.network.to(best_device())
    found = dict(zip(texts, labeler.labels(list(texts)), strict=True))
    return [
        {KEY: {"prediction": found[said], "reference": found[gold]}}
        for said, gold in zip(predictions, references, strict=True)
    ]


@cache
def definition() -> str:
    """Return name, version and weights of the score."""
    return weights.definition("chexbert", VERSION, weights.fetch("chexbert", FILE))


class Labeler:
    """A network of CheXbert's architecture.

    Args:
        tokenizer: of the encoder.
        encoder: BERT, which the state's weights fill.
        state: tensors by name, `bert.*` and `linear_heads.0` to `.13`.
        file: their file, for messages.
    """

    def __init__(self, tokenizer: Any, encoder: Any, state: dict[str, torch.Tensor], file: Path) -> None:
        from torch import nn

        width, classes = encoder.config.hidden_size, [4] * (len(LABELS) - 1) + [2]
        heads = nn.ModuleList(nn.Linear(width, count) for count in classes)
        self.network, self.heads = nn.ModuleDict({"bert": encoder, "linear_heads": heads}), heads
        weights.load(self.network, state, file)
        self.network.eval()
        self.tokenizer = tokenizer

    def labels(self, texts: Sequence[str]) -> list[list[str]]:
        """Return the names of the labels present in each text."""
        return [
            [label for label, one in zip(LABELS, row, strict=True) if one in PRESENT]
            for start in range(0, len(texts), BATCH)
            for row in self._classes([*texts[start : start + BATCH]])
        ]

    def _classes(self, texts: list[str]) -> Iterator[list[int]]:
        import torch

        given = self.tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        given = given.to(self.network["bert"].device)
        with torch.inference_mode():
            encoded = self.network["bert"](input_ids=given["input_ids"], attention_mask=given["attention_mask"])
            first = encoded.last_hidden_state[:, 0]
            yield from torch.stack([head(first).argmax(-1) for head in self.heads], -1).tolist()


@cache
def load() -> Labeler:
    """Return CheXbert with its published weights, once a process. Raises InputError where they are missing."""
    file = weights.fetch("chexbert", FILE)
    content = weights.tensors(file)
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), dict):
        raise InputError(f"{file.name} has no tensors under model_state_dict; fetch it again.")
    state = {name.removeprefix("module."): tensor for name, tensor in content["model_state_dict"].items()}
    return Labeler(*weights.encoder("chexbert", MODEL), state, file)


def _counts(scores: Mapping[str, Any]) -> list[float]:
    """Return true positives, false positives and false negatives (1 or 0) of each label, one after the other."""
    said, gold = (scores[KEY][side] for side in ("prediction", "reference"))
    return [
        float(one)
        for label in LABELS
        for one in (
            label in said and label in gold,
            label in said and label not in gold,
            label in gold and label not in said,
        )
    ]


def f1(counts: Floats) -> Floats:
    """Return 2 tp / (2 tp + fp + fn) [...] of counts (tp, fp, fn) [..., 3]; 0 where all are 0, as in scikit-learn."""
    doubled = 2 * counts[..., 0]
    return doubled / np.maximum(doubled + counts[..., 1] + counts[..., 2], 1)


def _averaged(labels: Sequence[str], macro: bool, sums: Floats) -> Floats:
    """Return the F1 [...] over these labels, of sums [..., 42] of `_counts`."""
    counts = sums.reshape(*sums.shape[:-1], len(LABELS), 3)[..., [LABELS.index(label) for label in labels], :]
    return f1(counts).mean(-1) if macro else f1(counts.sum(-2))


def _metric(labels: Sequence[str], macro: bool) -> Metric:
    name = f"chexbert_{'macro' if macro else 'micro'}_f1_{len(labels)}"
    return Metric(name, lambda scores: KEY in scores, _counts, lambda sums: _averaged(labels, macro, sums))


METRICS = tuple(_metric(labels, macro) for labels in (LABELS, FIVE) for macro in (False, True))
