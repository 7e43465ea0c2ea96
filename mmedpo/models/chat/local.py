"""Chat models that transformers runs in this process, with or without vision."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmedpo.data import placeholders
from mmedpo.data.images import open_rgb
from mmedpo.data.text import unit_interval
from mmedpo.errors import InputError
from mmedpo.models.chat import ChatReply, ChatRequest, OnReplies
from mmedpo.models.chat.constrained import Constraint, Schema
from mmedpo.models.chat_template import encode
from mmedpo.models.fingerprint import model_contents
from mmedpo.models.vision_language import LanguageModel, can_see, load_processor, load_tokenizer

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

HELD = {"response_format": "json_schema"}  # as endpoints call it
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class _Prompt:
    """Answerable request: position in the given order, model input, seed of its sampling, longest reply, and schema."""

    place: int
    images: list[Image]
    text: str
    seed: int
    longest: int
    schema: Schema | None


class LocalChat(LanguageModel):
    """Chat model of the Hub or a folder, on this process's device (`best_device`).

    Requests are answered in batches. Temperature 0 is greedy; above it the seed of a request comes from `seed`, its
    text and its image. An answer thus depends on no other request, up to rounding in its batch. Batches are cut from
    the answerable requests in order, so that a resumed run without the finished batches forms the same ones.

    A reply keeps to the JSON schema of its request (`Constraint`), behind its thought if it has one. Where that cannot
    be done with the model's tokenizer, a warning says so.

    Args:
        model: Hub id or folder. A vision-language model answers requests without an image too.
        batch_size: Prompts at once. A batch that does not fit into memory is halved until it does.
        max_tokens: Longest answer, in tokens. Prompt and longest answer must fit into the model's context.
        temperature: 0 is greedy; above it the whole distribution is sampled (top-p 1, no top-k).
        dtype: Of the weights: one of `DTYPES`; "auto" is the checkpoint's own.

    Attributes:
        revision: The commit on the Hub; for a folder, the given value.
        settings: All that an answer depends on beside model and request: sampling, dtype, and a folder's contents.

    Raises:
        InputError: a setting is out of its range, or the model cannot be loaded or has no chat template.
    """

    def __init__(
        self, model: str, revision: str | None = None, batch_size: int = 8, max_tokens: int = 512,
        temperature: float = 0.0, seed: int = 0, dtype: str = "auto",
    ) -> None:  # fmt: skip
        if batch_size < 1 or max_tokens < 1:
            raise InputError(f"batch_size ({batch_size}) and max_tokens ({max_tokens}) must be at least 1.")
        if not 0 <= temperature < math.inf:
            raise InputError(f"temperature {temperature} must be at least 0.")
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
        self.batch_size, self._has_vision = batch_size, can_see(model, revision)
        processor = load_processor(model, revision) if self._has_vision else load_tokenizer(model, revision)
        super().__init__(processor, model, revision, dtype)
        config = self.model.config
        self.settings: Mapping[str, Any] = {
            "max_tokens": max_tokens, "temperature": temperature, "seed": seed,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            # a folder's contents may change
            **({} if getattr(config, "_commit_hash", None) else {"contents": model_contents(model)}),
        }  # fmt: skip
        self._constraint: Constraint | None = None
        try:
            self._constraint = Constraint(self.reader)
            self.settings = {**self.settings, **HELD}
        except ValueError as error:
            self._unheld = str(error)
        self._context: float = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf

    def complete(self, requests: Iterable[ChatRequest], on_replies: OnReplies | None = None) -> list[ChatReply]:
        """Return one reply per request, in order; an unanswerable request has its reason in `failure`.

        Replies of a batch are passed to `on_replies` before the next batch starts.

        Raises:
            InputError: a request has an image and the model has no vision.
        """
        requests = list(requests)
        if not self._has_vision and any(request.images for request in requests):
            raise InputError(
                f"{self.name!r} is a {self.model.config.model_type!r} model, which takes no images. Leave out "
                "--show-images, or name a vision-language model."
            )
        if self._constraint is None and any(request.schema for request in requests):
            warnings.warn(
                f"{self.name}: replies are not held to their JSON schema, since llguidance cannot read the tokenizer "
                f"({self._unheld}). Use a model with a fast tokenizer, or serve this one by an endpoint.",
                stacklevel=2,
            )
        replies: dict[int, ChatReply] = {}
        for batch in self._batches(requests):
            replies |= batch
            if on_replies is not None:
                on_replies(batch)
        return [replies[place] for place in range(len(requests))]

    def _batches(self, requests: Sequence[ChatRequest]) -> Iterator[dict[int, ChatReply]]:
        """Yield replies by position, batch by batch; those of a batch all have an image or none, and one length."""
        waiting: dict[tuple[bool, int], list[_Prompt]] = {}
        for place, request in enumerate(requests):
            prompt = self._prompt(place, request)
            if isinstance(prompt, ChatReply):
                yield {place: prompt}
                continue
            batch = waiting.setdefault((not prompt.images, prompt.longest), [])
            batch.append(prompt)
            if len(batch) == self.batch_size:
                yield self._answer(batch)
                batch.clear()
        for _, batch in sorted(waiting.items()):
            if batch:
                yield self._answer(batch)

    def _prompt(self, place: int, request: ChatRequest) -> _Prompt | ChatReply:
        """Return the request as model input, or the reply that says why it is unanswerable."""
        try:
            images = [*map(open_rgb, request.images)]
        except InputError as error:
            return ChatReply(failure=str(error).removesuffix("."))
        try:
            if held := placeholders.fault(request.text, getattr(self.processor, "image_token", None)):
                return ChatReply(failure=f"the text {held}")
            tokens = int(encode(self.processor, [(images, request.text)])["attention_mask"].sum())
        except InputError:
            raise
        except Exception as error:  # processors raise errors of any type
            return ChatReply(failure=f"the model's processor refuses it ({type(error).__name__}: {error})")
        longest = request.max_tokens or self.settings["max_tokens"]
        if tokens + longest > self._context:
            return ChatReply(
                failure=f"the prompt has {tokens} tokens, and with an answer of up to {longest} (max_tokens) it "
                f"exceeds the model's context of {self._context}"
            )
        digests = request.image_digests or [hashlib.sha256(b"").hexdigest()]
        seed = int(unit_interval(self.settings["seed"], request.text, *digests) * 2**53)
        return _Prompt(place, images, request.text, seed, longest, request.schema)

    def _answer(self, batch: Sequence[_Prompt]) -> dict[int, ChatReply]:
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        try:
            return self._generate(batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            said = str(error).splitlines()[0]
        clear_device_cache()  # after the except block, whose error holds the tensors
        if len(batch) == 1:
            return {batch[0].place: ChatReply(failure=f"out of memory with a batch of one: {said}")}
        warnings.warn(
            f"{self.name}: a batch of {len(batch)} does not fit into memory and is halved. A smaller batch_size avoids "
            "the attempt.",
            stacklevel=2,
        )
        half = len(batch) // 2
        return self._answer(batch[:half]) | self._answer(batch[half:])

    def _generate(self, batch: Sequence[_Prompt]) -> dict[int, ChatReply]:
        began = time.perf_counter()
        inputs = encode(self.processor, [(prompt.images, prompt.text) for prompt in batch])
        asked = [
            ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        schemas = [prompt.schema for prompt in batch]
        choice: list[Any] = []
        if self._constraint and any(schemas):
            choice.append(self._constraint.processor(asked, schemas, inputs["input_ids"].shape[1]))
        most, temperature = batch[0].longest, self.settings["temperature"]
        if temperature:
            choice.append(_Sampler([prompt.seed for prompt in batch], temperature, self.device))
        generated = self.generated(inputs, most, do_sample=False, logits_processor=choice)
        seconds = (time.perf_counter() - began) / len(batch)
        return {
            prompt.place: replace(self._reply(prompt, *tokens), seconds=seconds)
            for prompt, *tokens in zip(batch, asked, generated, strict=True)
        }

    def _reply(self, prompt: _Prompt, asked: list[int], generated: list[int]) -> ChatReply:
        """Return the reply for the tokens of prompt and answer, maybe with padding behind."""
        sent = HELD if self._constraint and prompt.schema else None
        answer = self.reader.read(asked, generated, prompt.longest)
        said = min(len(self.reader.until_end(generated)) + 1, len(generated))
        return ChatReply(**vars(answer), prompt_tokens=len(asked), completion_tokens=said, sent=sent)


class _Sampler:
    """Logits processor that samples from softmax(logits / temperature) by the Gumbel-max trick.

    Greedy search follows it. Each row of the batch has a random generator of its own.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        import torch

        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return `scores` [batch, vocabulary] divided by the temperature, plus Gumbel noise."""
        import torch

        drawn = [torch.rand(scores.shape[1], generator=own, device=scores.device) for own in self.generators]
        return scores / self.temperature - torch.log(-torch.log(torch.stack(drawn)))
