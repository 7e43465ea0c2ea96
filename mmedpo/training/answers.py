"""Log-probabilities of a batch's answers, from one forward pass with the language-model head at answer tokens only."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from mmedpo.errors import InputError
from mmedpo.training.images import BatchImages
from mmedpo.training.sharing import PACKING, base_model, shared_prefixes


@dataclass
class Answers:
    """Next-token distributions at K places, which predict the N tokens of S answers.

    Attributes:
        logits: float32, K x V. Two answers behind one prompt share the prediction of their first tokens, so K <= N.
        places: int64, N: index in K that predicts each answer token, in the order of `there`.
        tokens: int64, N: ids of the answer tokens.
        there: bool, S x T: True where answer s has a token t.
    """

    logits: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor
    there: torch.Tensor

    def logps(self) -> torch.Tensor:
        """Return the log-probability of each answer token (float32, S x T; 0 where there is none)."""
        return self._spread(self.logits[self.places, self.tokens] - self.logits.logsumexp(dim=-1)[self.places])

    def divergence(self, reference: Answers) -> torch.Tensor:
        """Return KL(reference || this) in nats at each answer token (float32, S x T; 0 where there is none)."""
        own, target = self.logits.log_softmax(dim=-1), reference.logits.log_softmax(dim=-1)
        return self._spread(F.kl_div(own, target, reduction="none", log_target=True).sum(dim=-1)[self.places])

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.there.shape).masked_scatter(self.there, values)


def read_answers(model: Any, inputs: dict[str, torch.Tensor], images: BatchImages | None = None) -> Answers:
    """Run a model over a batch and return its answers' distributions.

    Args:
        model: a vision-language model of transformers, maybe inside PEFT, DeepSpeed or DDP.
        inputs: the output of `sharing.pack`, and further model inputs (`pixel_values`, ...).
        images: the batch's images, to be encoded once for several rows or passes.

    Raises:
        InputError: the model's head cannot be limited to chosen places.
        NotApartError: rows hold two answers and the model ignored the mask that keeps them apart.
    """
    there = inputs["completion_mask"].bool()
    predictors = inputs["predictors"][there]
    keep = torch.zeros_like(inputs["attention_mask"], dtype=torch.bool)
    keep.view(-1)[predictors] = True
    plain = {name: value for name, value in inputs.items() if name not in PACKING}
    with contextlib.ExitStack() as stack:
        if bool((inputs["segments"] > 1).any()):
            stack.enter_context(shared_prefixes(model, inputs["segments"], inputs["positions"]))
        if images is not None:
            stack.enter_context(images.encoded_once(model))
        logits = model(**plain, use_cache=False, logits_to_keep=keep).logits
    kept = keep.view(-1).cumsum(0)
    if logits.shape[:-1] != (int(kept[-1]),):
        raise InputError(
            f"{type(base_model(model)).__name__} does not take `logits_to_keep` as a mask, so its language-model head "
            "cannot be limited to answers. Use a model class that ships with transformers."
        )
    return Answers(logits.float(), kept[predictors] - 1, inputs["answer_ids"][there], there)
