"""Log-probabilities of given answers, on the tokens that training optimises (`models.answers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmedpo.models.generation import require_numbers
from mmedpo.models.vision_language import VisionLanguageModel

if TYPE_CHECKING:
    from PIL.Image import Image

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class View:
    """An answer to measure, after `images` (RGB) and `prompt` (messages of text)."""

    images: Sequence[Image]
    prompt: Messages
    answer: Messages


def option_logps(
    model: VisionLanguageModel, asked: Sequence[tuple[Sequence[Image], str, Sequence[str]]], batch_size: int
) -> list[list[float]]:
    """Return the `answer_logps` of each option as the answer to (images, prompt, options), `batch_size` at once."""
    views = [
        View(images, [{"role": "user", "content": prompt}], [{"role": "assistant", "content": option}])
        for images, prompt, options in asked
        for option in options
    ]
    starts = range(0, len(views), batch_size)
    found = iter([logp for start in starts for logp in answer_logps(model, views[start : start + batch_size])])
    return [[next(found) for _ in options] for *_, options in asked]


def answer_logps(model: VisionLanguageModel, views: Sequence[View]) -> list[float]:
    """Return the log-probability of each answer in nats, summed in float32 over its tokens and the end of turn.

    One forward pass computes all views, what they share once (`models.sharing`); the language-model head runs on answer
    positions only. Out-of-memory errors are left to the caller, who chose the batch.

    Raises:
        InputError: a chat template that writes the prompt differently once an answer follows, or a model that computes
            no numbers.
    """
    import torch

    from mmedpo.models import answers, sharing
    from mmedpo.models.prompts import Prompts, Share, difference, read

    processor, images = model.processor, [view.images for view in views]
    texts = [answers.rendered(processor, view.prompt, len(view.images), [view.answer]) for view in views]
    ids = answers.token_ids(processor, [answer for _, (answer,) in texts])

    def prompts(share: Share) -> Prompts:
        with model.tokenizing:
            return read(processor, [prompt for prompt, _ in texts], images, share)

    @torch.inference_mode()
    def sums(asked: Prompts) -> torch.Tensor:
        inputs = {**answers.batch(processor, asked.owners, asked.tokens, ids), **asked.pixels}
        found = sharing.read_answers(model.model, {name: value.to(model.device) for name, value in inputs.items()})
        require_numbers(found.logits, model.called)
        return found.logps().sum(dim=1)

    def differs(shared: Prompts) -> str | None:
        if reason := sharing.prefix_refusal(model.model):
            return reason
        try:
            return difference(sums(prompts("")), sums(shared), model.model.dtype)
        except sharing.NotApartError as error:
            return str(error)

    scoring = model.scoring
    found: list[float] = sums(
        scoring.verified(prompts(scoring.share), lambda: prompts(scoring.share), differs)
    ).tolist()
    return found
