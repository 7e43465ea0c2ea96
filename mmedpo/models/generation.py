"""Generation of answers: sampling, lengths by task, vocabulary, suppressed tokens, reading of generated tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmedpo.errors import InputError
from mmedpo.models import thoughts
from mmedpo.models.thoughts import Answer

if TYPE_CHECKING:
    import torch

MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT = 64, 512  # longest answer, and longest report
SEARCH = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # for greedy and sampling alike
PROMPT_END = 16  # last tokens of a prompt that are searched for an opened thought


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 is greedy; all `samples` of a question are drawn from one `seed`."""

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1:
            raise InputError(f"samples ({self.samples}) and max_new_tokens ({self.max_new_tokens}) must be at least 1.")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise InputError(f"temperature {self.temperature} must be >= 0 and top_p {self.top_p} in (0, 1].")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"{self.samples} samples at temperature 0 would be equal; raise the temperature.")


def longest(task: str, max_new_tokens: int = MAX_NEW_TOKENS, max_new_tokens_report: int = MAX_NEW_TOKENS_REPORT) -> int:
    """Return the longest allowed answer to a question of the task, in tokens."""
    return max_new_tokens_report if task == "report" else max_new_tokens


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids of the tokens that end an answer, of both model and tokenizer."""
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def suppressed_tokens(tokenizer: Any, ends: set[int]) -> list[int]:
    """Return the ids of special tokens to suppress: all but those that end answers or mark thoughts."""
    return sorted(set(tokenizer.all_special_ids) - ends - thoughts.token_ids(tokenizer))


def generation_config(model: Any, tokenizer: Any) -> Any:
    """Return a generation config with the model's token ids and none of its other defaults.

    Beams, penalties and minimum lengths of a checkpoint would change answers without a record. Special tokens are
    suppressed (`suppressed_tokens`), since a sampled image placeholder breaks the next forward pass.
    """
    from transformers import GenerationConfig

    brought, ends = model.generation_config, end_tokens(model, tokenizer)
    return GenerationConfig(
        bos_token_id=brought.bos_token_id,
        decoder_start_token_id=brought.decoder_start_token_id,
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=suppressed_tokens(tokenizer, ends) or None,
        **SEARCH,
    )


def require_numbers(scores: torch.Tensor, model: str) -> None:
    """Raise InputError if any position's scores [..., vocabulary] hold NaN or infinity; -inf suppresses a token."""
    if not scores.amax(dim=-1).isfinite().all():
        raise InputError(
            f"The model {model!r} computes NaN or infinite values instead of scores. Its weights, or its adapter's, "
            "are damaged, or its dtype is too narrow. Copy or train them again, or load it in bfloat16 or float32."
        )


class NumbersOnly:
    """Logits processor that changes nothing and raises as `require_numbers`: NaN would be the first token."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        require_numbers(scores, self.model)
        return scores


class AnswerReader:
    """Reader of generated tokens: cuts at the end token, drops special tokens and thoughts, notes truncation.

    Create it from a model that still has its own generation config, which names the end tokens.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer, self.ends = tokenizer, end_tokens(model, tokenizer)
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marks = thoughts.token_ids(tokenizer) & special  # dropped by decoding, so kept by `decode`

    def read(self, prompt: Sequence[int], generated: Sequence[int], longest: int) -> Answer:
        """Return the answer in `generated`, maybe with padding behind; `longest` is the limit in tokens."""
        said = self.until_end(generated)
        cut = len(said) == len(generated) >= longest
        return thoughts.read(self.decode(said), longest if cut else None, self.opens(prompt))

    def opens(self, prompt: Sequence[int]) -> bool:
        """Return True where a prompt ends within a thought."""
        return thoughts.opens(self.tokenizer.decode(prompt[-PROMPT_END:]))

    def until_end(self, generated: Sequence[int]) -> Sequence[int]:
        """Return the tokens before the end token."""
        return generated[: next((i for i, token in enumerate(generated) if token in self.ends), len(generated))]

    def places(self, prompt: Sequence[int], generated: Sequence[int], answer: Answer) -> range:
        """Return the places of an answer's tokens in `generated`, without thoughts; empty without an answer.

        It is the shortest range of tokens that reads as the answer.
        """
        said, opened = self.until_end(generated), self.opens(prompt)
        if answer.said is None:
            return range(0)

        def reads(start: int, end: int) -> bool:
            found = thoughts.strip(self.decode(said[start:end]).strip(), opened and start == 0)
            return found is not None and found.strip() == answer.said

        def last_start(end: int) -> int:
            return next((start for start in range(end - 1, 0, -1) if reads(start, end)), 0)

        start = last_start(len(said))  # behind thoughts, before an answer tag
        end = next((end for end in range(start + 1, len(said)) if reads(start, end)), len(said))
        return range(last_start(end), end)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens but with marks of thoughts and answers."""
        text, start = "", 0
        for place, token in enumerate(tokens):
            if token in self._marks:
                before = self.tokenizer.decode(tokens[start:place], skip_special_tokens=True)
                text, start = f"{text}{before}{self.tokenizer.decode([token])}", place + 1
        return text + str(self.tokenizer.decode(tokens[start:], skip_special_tokens=True))


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """Raise InputError where a tokenizer writes tokens for which the model has no embedding."""
    rows = model.get_input_embeddings().weight.shape[0]
    if rows and len(tokenizer) > rows:  # 0 where ZeRO-3 splits the weights
        raise InputError(
            f"The tokenizer of {name!r} has {len(tokenizer)} tokens, its model embeds {rows}: they do not belong "
            "together. Save the model's own tokenizer with it."
        )
