"""Who answers questions: a vision-language model in this process, or one behind an endpoint."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from mmedpo.data.images import png
from mmedpo.data.text import unit_interval
from mmedpo.errors import Stopped
from mmedpo.evaluation.predictions import Line, line
from mmedpo.evaluation.questions import READERS, Question, QuestionSet
from mmedpo.models.chat import Budget, ChatReply, ChatRequest, Limits
from mmedpo.models.chat.names import open_endpoint
from mmedpo.models.chat.parameters import Parameters
from mmedpo.models.generation import MAX_NEW_TOKENS, MAX_NEW_TOKENS_REPORT, Sampling, longest
from mmedpo.models.vision_language import VisionLanguageModel, hardware, render
from mmedpo.runs.ledger import Ledger
from mmedpo.runs.run_folder import portable

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "evaluate@1"  # the question as it is
Batch = Sequence[Question]
Keep = Callable[[Mapping[str, Line]], None]
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Generation:
    """How answers are generated: at most so many tokens, at a temperature (0 is greedy), so many questions at once."""

    max_new_tokens: int = MAX_NEW_TOKENS
    max_new_tokens_report: int = MAX_NEW_TOKENS_REPORT
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16

    def longest(self, task: str) -> int:
        """The longest answer to a question of the task, in tokens."""
        return longest(task, self.max_new_tokens, self.max_new_tokens_report)

    def sampling(self, batch: Batch) -> Sampling:
        """Of a batch of one task. Its chance is its own: a resumed run samples what an uninterrupted one would have."""
        seed = int(unit_interval("evaluate", self.seed, *(question.id for question in batch)) * 2**32)
        return Sampling(self.longest(batch[0].task), self.temperature, seed=seed)


class Answering(Protocol):
    """Anything that answers the questions of batches, each of one task."""

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Ledger, keep: Keep
    ) -> dict[str, str]:
        """Answer the questions whose ids are not in `done`, and hand lines of predictions.jsonl by id to `keep` as they
        come: also of a question to which the model gave no answer, such as a thought that was not finished.

        Returns:
            Why a question has no line, by id: nothing came, and another try may bring it.

        Raises:
            InputError, Stopped: nothing more can be answered.
        """

    def record(self, question: str) -> dict[str, Any]:
        """What results.json says of it; `question` shows what a prompt looks like."""


class LocalModel:
    """A model in this process; images of the next batches are read while it answers one."""

    def __init__(self, model: VisionLanguageModel) -> None:
        self.model = model

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Ledger, keep: Keep
    ) -> dict[str, str]:
        # A batch is kept whole, and answered whole or not at all.
        left = [batch for batch in batches if any(question.id not in done for question in batch)]

        def read(batch: Batch) -> Any:
            return self.model.encode([(asked.open_image(question.image), question.text) for question in batch])

        for batch, inputs in zip(left, ahead(read, left), strict=True):
            answers = self.model.generate(inputs, generation.sampling(batch))
            keep({question.id: line(answer) for question, (answer,) in zip(batch, answers, strict=True)})
        return {}

    def record(self, question: str) -> dict[str, Any]:
        model, template = self.model, str(self.model.processor.chat_template)
        return {
            "model": portable(model.name), "revision": model.revision,
            "adapter": model.adapter and portable(model.adapter), "adapter_revision": model.adapter_revision,
            "adapter_sha256": model.adapter_sha256, "adapter_checked_by": model.adapter_checked_by,
            "model_fingerprint": model.fingerprint, "generation": self._generation(),
            "dtype": str(model.model.dtype).removeprefix("torch."), "hardware": hardware(),
            "prompt": {
                "example": render(model.processor, question),
                "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
            },
        }  # fmt: skip

    def _generation(self) -> dict[str, Any]:
        """What decides answers beside the settings; what is not named is off."""
        config = self.model.model.generation_config.to_diff_dict()
        return {name: value for name, value in config.items() if name != "transformers_version"} | {
            "top_p": Sampling.top_p, "top_k": 0,
        }  # fmt: skip


class EndpointModel:
    """A model behind an endpoint (`llm.names`): questions go there as they are, with the pixels of their images.

    Args:
        limits: on what is asked by this process.

    Raises:
        InputError: `name` is no endpoint's.
    """

    def __init__(self, name: str, limits: Limits | None = None) -> None:
        self.name, self.budget, self.parameters = name, Budget(limits or Limits()), Parameters()
        open_endpoint(name, self.budget)

    def answer(
        self, batches: Sequence[Batch], asked: QuestionSet, generation: Generation, done: Ledger, keep: Keep
    ) -> dict[str, str]:
        left = [question for batch in batches for question in batch if question.id not in done]
        failures: dict[str, str] = {}
        for most, group in groupby(left, key=lambda question: generation.longest(question.task)):
            sampling = {"temperature": generation.temperature, "seed": generation.seed, "max_tokens": most,
                        "discreet": asked.marked, "parameters": self.parameters}  # fmt: skip
            self._ask(list(group), asked.open_image, sampling, keep, failures)
        return failures

    def _ask(
        self, questions: Sequence[Question], open_image: Callable[[Any], Image], sampling: Mapping[str, Any],
        keep: Keep, failures: dict[str, str],
    ) -> None:  # fmt: skip
        chat = open_endpoint(self.name, self.budget, **sampling)
        answered = 0

        def note(replies: Mapping[int, ChatReply]) -> None:
            nonlocal answered
            for i, reply in replies.items():
                if reply.said is not None or reply.raw:
                    served = {name: portable(said) for name, said in reply.served.items()}
                    keep({questions[i].id: line(reply) | {"sent": reply.sent, "served": served}})
                else:
                    failures[questions[i].id] = str(reply.failure)
            answered += len(replies)
            self.budget.charge(replies.values(), chat.name)
            if answered < len(questions):
                self.budget.left()

        allowed = questions[: self.budget.left()]
        try:
            chat.complete(_Requests(allowed, open_image, 2 * chat.concurrency), note)
        except Stopped:
            if answered < len(questions):  # or else the last ones were in flight already
                raise

    def record(self, question: str) -> dict[str, Any]:
        return {
            "model": portable(self.name), "revision": None, "adapter": None, "adapter_revision": None,
            "adapter_sha256": None, "adapter_checked_by": None, "model_fingerprint": None, "generation": None,
            "dtype": None, "hardware": None,
            "prompt": {"example": question, "chat_template_sha256": None},
        }  # fmt: skip


class _Requests(Sequence[ChatRequest]):
    """One request a question, whose image is opened shortly before its turn."""

    def __init__(self, questions: Sequence[Question], open_image: Callable[[Any], Image], depth: int) -> None:
        self.questions, self.open_image, self.depth = questions, open_image, depth

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, place: Any) -> Any:
        return self._request(self.questions[place])

    def __iter__(self) -> Iterator[ChatRequest]:
        return ahead(self._request, self.questions, self.depth)

    def _request(self, question: Question) -> ChatRequest:
        # Pixels alone: a file's own header may name the patient.
        image: bytes = png(np.asarray(self.open_image(question.image)), "image")["bytes"]
        return ChatRequest(PROMPT, {}, question.text, image)


def ahead(make: Callable[[Given], Made], given: Sequence[Given], depth: int = READERS) -> Iterator[Made]:
    """`map(make, given)`, of which other threads make up to `depth` results before they are asked for."""
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
