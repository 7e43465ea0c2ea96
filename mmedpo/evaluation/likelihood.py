"""Log-probabilities of given answers, on the tokens that training optimises (`models.answers`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmedpo.data.images import open_rgb
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
    model: VisionLanguageModel, asked: Sequence[tuple[Image, str, Sequence[str]]], batch_size: int
) -> list[list[float]]:
    """Return the `answer_logps` of each option as the answer to (image, prompt, options), `batch_size` at once."""
    views = [
        View([image], [{"role": "user", "content": prompt}], [{"role": "assistant", "content": option}])
        for image, prompt, options in asked
        for option in options
    ]
    starts = range(0, len(views), batch_size)
    found = iter([logp for start in starts for logp in answer_logps(model, views[start : start + batch_size])])
    return [[next(found) for _ in options] for *_, options in asked]


def answer_logps(model: VisionLanguageModel, views: Sequence[View]) -> list[float]:
    """Return the log-probability of each answer in nats, summed in float32 over its tokens and the end of turn.

    One padded forward pass computes all views; the language-model head runs on answer positions only. Out-of-memory
    errors are left to the caller, who chose the batch.

    Raises:
        InputError: a chat template that writes the prompt differently once an answer follows, or a model that computes
            no numbers.
    """
    import torch

    from mmedpo.models import answers

    processor = model.processor
    texts = [answers.rendered(processor, view.prompt, len(view.images), [view.answer]) for view in views]
    images = [[open_rgb(image) for image in view.images] for view in views]
    prompts, pixels = answers.read_prompts(processor, [prompt for prompt, _ in texts], images)
    ids = answers.token_ids(processor, [answer for _, (answer,) in texts])
    inputs = {**answers.batch(processor, range(len(views)), prompts, ids), **pixels}
    with torch.inference_mode():
        found = answers.read_answers(model.model, {name: value.to(model.device) for name, value in inputs.items()})
    require_numbers(found.logits, model.called)
    sums: list[float] = found.logps().sum(dim=1).tolist()
    return sums
