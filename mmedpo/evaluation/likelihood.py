"""Log-probabilities of given answers, on the tokens that training optimises.

The model's chat template writes prompt and answer, which are tokenised separately. The answer includes the end of turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmedpo.data.images import open_rgb
from mmedpo.errors import InputError
from mmedpo.models.generation import require_numbers
from mmedpo.models.vision_language import VisionLanguageModel, lacks_first_token

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

Messages = Sequence[dict[str, str]]
# Type ids of answer tokens by processor, 0 (text) by default; PaliGemma's 1 is outside of its prefix.
ANSWER_TYPES = {"token_type_ids": {"PaliGemmaProcessor": 1}, "mm_token_type_ids": {}}


@dataclass(frozen=True)
class View:
    """An answer to measure, after `images` (RGB) and `prompt` (messages of text)."""

    images: Sequence[Image]
    prompt: Messages
    answer: Messages


def answer_logps(model: VisionLanguageModel, views: Sequence[View]) -> list[float]:
    """Return the log-probability of each answer in nats, summed in float32 over its tokens and the end of turn.

    One padded forward pass computes all views; the language-model head runs on answer positions only. Out-of-memory
    errors are left to the caller, who chose the batch.

    Raises:
        InputError: a chat template that writes the prompt differently once an answer follows, or a model that computes
            no numbers.
    """
    import torch

    texts = [conversation(model.processor, view) for view in views]
    answers = model.processor.tokenizer([answer for _, answer in texts], add_special_tokens=False)["input_ids"]
    inputs = _encode(model.processor, [prompt for prompt, _ in texts], [view.images for view in views], answers)
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    ends = inputs["attention_mask"].sum(dim=1).tolist()
    # The position before a token predicts it.
    places = [(row, place) for row, (end, ids) in enumerate(zip(ends, answers, strict=True))
              for place in range(end - len(ids) - 1, end - 1)]  # fmt: skip
    rows, before = torch.tensor(places, device=model.device).T
    first = int(before.min())
    with torch.inference_mode():
        width = inputs["input_ids"].shape[1]
        logits = model.model(**inputs, use_cache=False, logits_to_keep=width - first).logits
    tokens, scores = inputs["input_ids"][rows, before + 1], logits[rows, before - first].float()
    require_numbers(scores, model.called)
    logps = scores.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
    return [float(part.sum()) for part in logps.cpu().split([len(ids) for ids in answers])]


def conversation(processor: Any, view: View) -> tuple[str, str]:
    """Return prompt and answer as the chat template writes them; the answer keeps its end-of-turn token.

    Raises:
        InputError: the template writes the prompt differently once an answer follows.
    """
    from trl.data_utils import prepare_multimodal_messages

    asked = prepare_multimodal_messages(list(view.prompt), images=list(view.images))
    answered = asked + prepare_multimodal_messages(list(view.answer))
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    whole = processor.apply_chat_template(answered, tokenize=False)
    if not whole.startswith(prompt):
        raise InputError(
            f"The chat template of {type(processor).__name__} writes the prompt differently once an answer follows, so "
            "that its answers cannot be measured alone. Use the template that the model was trained with."
        )
    return prompt, whole[len(prompt) :]


def _encode(
    processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Image]], answers: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return model inputs of the prompts followed by their answers, right-padded as in training."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    made = processor(
        text=list(prompts),
        images=[[open_rgb(image) for image in shown] for shown in images],
        padding=True,
        add_special_tokens=lacks_first_token(processor.tokenizer, prompts[0]),
        return_tensors="pt",
    )
    there = made["attention_mask"].bool()
    filler = processor.tokenizer.pad_token_id

    def extended(name: str, tails: list[torch.Tensor], value: int = 0) -> torch.Tensor:
        rows = [torch.cat([row[mask], tail]) for row, mask, tail in zip(made[name], there, tails, strict=True)]
        return pad_sequence(rows, batch_first=True, padding_value=value)

    ids = [torch.tensor(answer) for answer in answers]
    inputs = {name: value for name, value in made.items() if name != "labels"}  # PaliGemma's processor adds them
    for name, kinds in ANSWER_TYPES.items():
        if name in made:
            kind = kinds.get(type(processor).__name__, 0)
            inputs[name] = extended(name, [torch.full_like(answer, kind) for answer in ids])
    inputs["attention_mask"] = extended("attention_mask", [torch.ones_like(answer) for answer in ids])
    inputs["input_ids"] = extended("input_ids", ids, filler)
    return inputs
