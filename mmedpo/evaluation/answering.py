"""Answer questions with a vision-language model in this process or behind an endpoint."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from mmedpo.data.images import png
from mmedpo.data.text import unit_interval
from mmedpo.errors import InputError
from mmedpo.evaluation.likelihood import option_logps
from mmedpo.evaluation.predictions import Line, line
from mmedpo.evaluation.questions import READERS, Question, QuestionSet
from mmedpo.models.chat import ChatReply, ChatRequest
from mmedpo.models.chat.limits import Budget, Limits
from mmedpo.models.chat.opening import open_endpoint
from mmedpo.models.chat_template import render
from mmedpo.models.generation import MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT, Sampling, longest
from mmedpo.models.vision_language import VisionLanguageModel
from mmedpo.runs.device import hardware
from mmedpo.runs.provenance import portable
from mmedpo.schema import TASKS

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "evaluate@1"  # version of the prompt: the question unchanged, with its options (`options.asked`)
Batch = Sequence[Question]
Keep = Callable[[Mapping[str, Line]], None]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Generation:
    """Generation settings: longest answers in tokens, temperature (0 is greedy), seed and questions per batch."""

    max_new_tokens: int = MAX_NEW_TOKENS
    max_new_tokens_report: int = MAX_NEW_TOKENS_REPORT
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16

    def longest(self, task: str) -> int:
        """Return the longest answer to a question of the task, in tokens."""
        return longest(task, self.max_new_tokens, self.max_new_tokens_report)

    def parts(self, batch: Batch) -> list[Batch]:
        """Return the parts of a batch that are decoded together: of one task, and no more than `batch_size`."""
        own = ([question for question in batch if question.task == task] for task in reversed(TASKS))
        size = self.batch_size
        return [those[start : start + size] for those in own for start in range(0, len(those), size)]

    def sampling(self, batch: Batch) -> Sampling:
        """Return the sampling settings of a batch, or part, of one task.

        The seed depends on the batch alone, so that a resumed run samples what an uninterrupted one would.
        """
        seed = int(unit_interval("evaluate", self.seed, *(question.id for question in batch)) * 2**32)
        return Sampling(self.longest(batch[0].task), self.temperature, seed=seed)


class Answering(Protocol):
    """Interface of models that answer batches of questions (`predict.batches`)."""

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Container[str], keep: Keep
    ) -> dict[str, str]:
        """Answer the questions whose ids are not in `done`.

        Args:
            keep: called with lines of predictions.jsonl by question id as they arrive. Replies without an answer, such
                as an unfinished thought, have a line too.

        Returns:
            Reason by id for each question without a line; another attempt may succeed.

        Raises:
            InputError, Stopped: no more questions can be answered.
        """

    def record(self, question: str) -> dict[str, Any]:
        """Return the model's fields of results.json; the example prompt is made of `question`."""


class LocalModel:
    """Model in this process. Images of the next batches are read while it answers one.

    Lines about questions with options have "option_logps", the log-probability of each option as the answer.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Container[str], keep: Keep
    ) -> dict[str, str]:
        from mmedpo.models import prefill

        # Answers depend on their batch, so that an incomplete batch is answered again as a whole.
        left = [batch for batch in batches if any(question.id not in done for question in batch)]

        def together() -> Iterator[list[Batch]]:
            """Yield the parts whose prompts are read together: those of a batch, where images are shared."""
            for parts in map(generation.parts, left):
                yield from [parts] if self.model.generating.share == "images" else [[part] for part in parts]

        def read(parts: list[Batch]) -> Any:
            questions = [question for part in parts for question in part]
            images = {image: asked.open_image(image) for image in {own for one in questions for own in one.images}}
            asking = [([images[own] for own in question.images], question.prompt) for question in questions]
            measured = {one.id: (*pair, one.options) for pair, one in zip(asking, questions, strict=True)}
            shown = [[measured[one.id] for one in part] if part[0].task == "choice_vqa" else [] for part in parts]
            return parts, shown, self.model.prompts(asking, generation.sampling(parts[0]))

        for parts, shown, prompts in ahead(read, together()):
            lines: dict[str, Line] = {}
            said = prefill.answers(self.model, prompts, [(len(part), generation.sampling(part)) for part in parts])
            for part, options, answers in zip(parts, shown, said, strict=True):
                lines |= {question.id: line(answer) for question, (answer,) in zip(part, answers, strict=True)}
                for question, measured in zip(part, self._likelihoods(options, generation), strict=False):
                    lines[question.id] |= measured
            keep(lines)
        return {}

    def _likelihoods(
        self, shown: Sequence[tuple[Sequence[Image], str, Sequence[str]]], generation: Generation
    ) -> list[Line]:
        """Return the log-probabilities of the options of each of (images, prompt, options), or why there are none."""
        try:
            found = option_logps(self.model, shown, generation.batch_size)
        except InputError as error:  # by its template or head, which can answer but not be measured
            return [{"option_logps_absent": str(error)}] * len(shown)
        return [{"option_logps": logps} for logps in found]

    def record(self, question: str) -> dict[str, Any]:
        model, template = self.model, str(self.model.processor.chat_template)
        return {
            **identity(model), "generation": self._generation(),
            "dtype": str(model.model.dtype).removeprefix("torch."), "hardware": hardware(),
            "prompt": {
                "example": render(model.processor, question),
                "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            },
        }  # fmt: skip

    def _generation(self) -> dict[str, Any]:
        """Return the generation config that is in force; settings that are absent are off."""
        config = self.model.model.generation_config.to_diff_dict()
        return {name: value for name, value in config.items() if name != "transformers_version"} | {
            "top_p": Sampling.top_p, "top_k": 0,
        }  # fmt: skip


Opening = Callable[[int], Answering]  # of the model, for one of so many tasks, which share its limits


def identity(model: VisionLanguageModel) -> dict[str, Any]:
    """Return the recorded names, revisions and digests of a model and its adapter."""
    return {
        "model": portable(model.name), "revision": model.revision,
        "adapter": model.adapter and portable(model.adapter), "adapter_revision": model.adapter_revision,
        "adapter_sha256": model.adapter_sha256, "adapter_checked_by": model.adapter_checked_by,
        "model_fingerprint": model.fingerprint,
    }  # fmt: skip


class EndpointModel:
    """Model behind an endpoint (`mmedpo.models.chat.endpoint`); requests hold the question and its image's pixels.

    Args:
        name: name of the endpoint, as in `http://host:port/v1#model`.
        limits: limits of the requests of this task.

    Raises:
        InputError: `name` is not an endpoint.
    """

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name, self.budget = name, Budget(limits or Limits())
        open_endpoint(name, self.budget)

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Container[str], keep: Keep
    ) -> dict[str, str]:
        left = [question for batch in batches for question in batch if question.id not in done]
        failures: dict[str, str] = {}

        def note(replies: Mapping[int, ChatReply]) -> None:
            for i, reply in replies.items():
                if reply.said is not None or reply.raw:
                    served = {name: portable(said) for name, said in reply.served.items()}
                    keep({left[i].id: line(reply) | {"sent": reply.sent, "served": served}})
                else:
                    failures[left[i].id] = str(reply.failure)

        chat = open_endpoint(
            self.name, self.budget, temperature=generation.temperature, seed=generation.seed,
            max_tokens=generation.max_new_tokens, discreet=asked.marked,
        )  # fmt: skip
        self.budget.ask(chat, _Requests(left, asked.open_image, generation, 2 * chat.concurrency), note)
        return failures

    def record(self, question: str) -> dict[str, Any]:
        return {
            "model": portable(self.name), "revision": None, "adapter": None, "adapter_revision": None,
            "adapter_sha256": None, "adapter_checked_by": None, "model_fingerprint": None, "generation": None,
            "dtype": None, "hardware": None,
            "prompt": {"example": question, "chat_template_sha256": None},
        }  # fmt: skip


class _Requests(Sequence[ChatRequest]):
    """Requests, one per question; an image is opened shortly before its request."""

    def __init__(
        self, questions: Sequence[Question], open_image: Callable[[Any], Image], generation: Generation, depth: int
    ) -> None:
        self.questions, self.open_image, self.generation, self.depth = questions, open_image, generation, depth

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return _Requests(self.questions[place], self.open_image, self.generation, self.depth)
        return self._request(self.questions[place])

    def __iter__(self) -> Iterator[ChatRequest]:
        return ahead(self._request, self.questions, self.depth)

    def _request(self, question: Question) -> ChatRequest:
        # Only pixels are sent: headers of the file may name the patient.
        images = tuple(png(np.asarray(self.open_image(one)), "image")["bytes"] for one in question.images)
        return ChatRequest(PROMPT, {}, question.prompt, images, max_tokens=self.generation.longest(question.task))


def ahead(make: Callable[[Given], Made], given: Iterable[Given], depth: int = READERS) -> Iterator[Made]:
    """Yield `map(make, given)`; threads compute up to `depth` results ahead."""
    pool = ThreadPoolExecutor(READERS)
    waiting: deque[Future[Made]] = deque()
    try:
        for item in given:
            waiting.append(pool.submit(make, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
