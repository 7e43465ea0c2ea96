"""How answers are generated and read: sampling, lengths by task, the tokens a model may say, where an answer ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmedpo.errors import InputError
from mmedpo.models import thoughts
from mmedpo.models.thoughts import Answer

MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT = 64, 512  # the longest answer, but for a report
SEARCH = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}  # what greedy and sampling share
PROMPT_END = 16  # tokens of a prompt's end that may open a thought


@dataclass(frozen=True)
class Sampling:
    """How answers are generated. `temperature` 0 is greedy; `samples` answers a question come from one seed."""

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
            raise InputError(f"{self.samples} samples at temperature 0 would all be equal; raise the temperature.")


def longest(task: str, max_new_tokens: int = MAX_NEW_TOKENS, max_new_tokens_report: int = MAX_NEW_TOKENS_REPORT) -> int:
    """The longest answer to a question of the task, in tokens."""
    return max_new_tokens_report if task == "report" else max_new_tokens


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end an answer, the model's and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def unspoken(tokenizer: Any, ends: set[int]) -> list[int]:
    """Ids of the tokens that are never generated: special ones, but those that end answers or mark thoughts."""
    return sorted(set(tokenizer.all_special_ids) - ends - thoughts.token_ids(tokenizer))


def own_generation(model: Any, tokenizer: Any) -> Any:
    """The generation config that answers are made by: the ids of the model's tokens, and nothing else of its own.

    Beams, penalties and least lengths that a checkpoint brings would change its answers, unrecorded. Image
    placeholders and other special tokens but the end of text and the marks of thoughts are never generated, since a
    sampled placeholder breaks the next forward pass.
    """
    from transformers import GenerationConfig

    brought, ends = model.generation_config, end_tokens(model, tokenizer)
    return GenerationConfig(
        bos_token_id=brought.bos_token_id,
        decoder_start_token_id=brought.decoder_start_token_id,
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=unspoken(tokenizer, ends) or None,
        **SEARCH,
    )


class AnswerReader:
    """Reads generated tokens as answers: up to the end, without special tokens and thoughts, and whether they were cut.

    The model's own ends are read once: make it from a model whose generation config is still there.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer, self.ends = tokenizer, end_tokens(model, tokenizer)
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marks = thoughts.token_ids(tokenizer) & special  # which decoding leaves out

    def read(self, prompt: Sequence[int], generated: Sequence[int], longest: int) -> Answer:
        """The answer in `generated`, which padding may follow; `longest` is the most tokens it could have."""
        said = self.until_end(generated)
        cut = len(said) == len(generated) >= longest
        return thoughts.read(self.decode(said), longest if cut else None, self.opens(prompt))

    def opens(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends within a thought."""
        return thoughts.opens(self.tokenizer.decode(prompt[-PROMPT_END:]))

    def until_end(self, generated: Sequence[int]) -> Sequence[int]:
        """The tokens before the one that ends the answer."""
        return generated[: next((i for i, token in enumerate(generated) if token in self.ends), len(generated))]

    def places(self, prompt: Sequence[int], generated: Sequence[int], answer: Answer) -> range:
        """Where the tokens of an answer stand in what it was read from: the fewest that read alike, without thoughts;
        none where nothing was answered."""
        said, opened = self.until_end(generated), self.opens(prompt)
        if answer.said is None:
            return range(0)

        def reads(start: int, end: int) -> bool:
            found = thoughts.strip(self.decode(said[start:end]).strip(), opened and start == 0)
            return found is not None and found.strip() == answer.said

        def last_start(end: int) -> int:
            return next((start for start in range(end - 1, 0, -1) if reads(start, end)), 0)

        start = last_start(len(said))  # behind thoughts, and before a tag of the answer
        end = next((end for end in range(start + 1, len(said)) if reads(start, end)), len(said))
        return range(last_start(end), end)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones but those that mark thoughts and answers."""
        text, start = "", 0
        for place, token in enumerate(tokens):
            if token in self._marks:
                before = self.tokenizer.decode(tokens[start:place], skip_special_tokens=True)
                text, start = f"{text}{before}{self.tokenizer.decode([token])}", place + 1
        return text + str(self.tokenizer.decode(tokens[start:], skip_special_tokens=True))
