"""Constrained decoding: replies of a model in this process keep to the JSON schema of their request (llguidance)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmedpo.models import thoughts
from mmedpo.models.generation import PROMPT_END, AnswerReader

if TYPE_CHECKING:
    import torch
    from llguidance import LLMatcher

Schema = Mapping[str, Any]
# JSON as the prompts show it. Free white space lets a model write line breaks until its limit.
FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Constraint:
    """JSON schemas as constraints on the tokens of one model.

    Raises:
        ValueError: llguidance cannot read the tokenizer, which is no fast one or has no bytes.
    """

    def __init__(self, reader: AnswerReader) -> None:
        from llguidance.hf import from_tokenizer

        self.reader = reader
        self._tokens = from_tokenizer(reader.tokenizer, eos_token=sorted(reader.ends))
        marks = thoughts.token_ids(reader.tokenizer)
        self.openings = [mark for mark in sorted(marks) if thoughts.opens(reader.tokenizer.decode([mark]))]

    def processor(self, prompts: Sequence[Sequence[int]], schemas: Sequence[Schema | None], width: int) -> _Masks:
        """Return the logits processor of a batch; a reply without a schema is free.

        Args:
            prompts: tokens of each prompt, without padding.
            width: tokens of each prompt with its padding.
        """
        rows = [
            None if schema is None else _Row(self, self._matcher(schema), self.reader.opens(prompt))
            for prompt, schema in zip(prompts, schemas, strict=True)
        ]
        return _Masks(rows, width)

    def _matcher(self, schema: Schema) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokens, LLMatcher.grammar_from_json_schema(dict(schema), overrides=FORM))
        if matcher.is_error():
            raise ValueError(f"schema {schema}: {matcher.get_error()}")
        return matcher


class _Row:
    """One reply: free within its thought, then held to its schema, and free again behind its end.

    A thought is opened by the chat template, or by a first token that opens one.
    """

    def __init__(self, constraint: Constraint, matcher: LLMatcher, thinking: bool) -> None:
        self.constraint, self.matcher, self.thinking, self.ended = constraint, matcher, thinking, False

    def allowed(self, said: list[int]) -> torch.Tensor | None:
        """Return the tokens that may come next (truth values by id), or None for all. To be called for each token."""
        import torch

        reader, openings = self.constraint.reader, self.constraint.openings
        if said:
            self.ended |= said[-1] in reader.ends
            if self.thinking:
                self.thinking = thoughts.strip(reader.decode(said[-PROMPT_END:]), opened=True) is None
            elif said[0] in openings and len(said) == 1:
                self.thinking = True
            elif not self.ended:
                self.matcher.consume_token(said[-1])
        if self.thinking or self.ended:
            return None
        found = torch.frombuffer(bytearray(self.matcher.compute_logit_bias()), dtype=torch.uint8) > 0
        if not said:
            found[openings] = True
        return found


class _Masks:
    """Logits processor that leaves each row the tokens that its schema allows."""

    def __init__(self, rows: Sequence[_Row | None], width: int) -> None:
        self.rows, self.width = rows, width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        scores = scores.clone()
        for row, said, its in zip(self.rows, input_ids[:, self.width :].tolist(), scores, strict=True):
            allowed = None if row is None else row.allowed(said)
            if allowed is not None:
                its[: len(allowed)].masked_fill_(~allowed.to(its.device), -torch.inf)
                its[len(allowed) :] = -torch.inf  # rows of the head without a token
        return scores
