"""Sample candidates for rejected responses from the target model, in this process or behind an endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mmedpo import schema
from mmedpo.curation import hallucinate
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.data.text import unit_interval
from mmedpo.models.adapters import adapter_digest
from mmedpo.models.chat import ChatModel, ChatRequest
from mmedpo.models.generation import Sampling, longest
from mmedpo.models.thoughts import Answer
from mmedpo.models.vision_language import VisionLanguageModel, configured
from mmedpo.runs.formats import STANDIN_KEY
from mmedpo.runs.provenance import portable

FEW = 10  # questions with several samples, below which equal samples may be by chance
PROMPT = "sample@1"  # version of the prompt of endpoints: the question unchanged, with its options
# Of one sample: {"texts": [..], "left_out": {reason: count}}; "reason" where it is not to be recorded.
Found = dict[str, Any]


class Target(Protocol):
    """Interface of target models, in this process and behind endpoints."""

    @property
    def name(self) -> str:
        """Name of the model, as `--model` names it."""

    @property
    def recorded(self) -> str:
        """Name of the model, with its adapter, in the provenance of rows."""

    def record(self) -> dict[str, Any]:
        """Return name, commit and adapter; "standin", its name as one; "client", its name in the counts of calls."""

    def load(self) -> Any:
        """Return the model, which has a `revision`. Raises InputError if it cannot be loaded."""

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Return the samples of a block in the batches that are sampled and recorded together."""

    def sample(self, model: Any, batch: Sequence[Sample]) -> list[Found]:
        """Return the candidates of each sample of a batch.

        Answers that are empty, cut off or end inside a thought are counted and left out; as rejected responses they
        would teach where to stop.
        """


@dataclass(frozen=True)
class Sampler:
    """Target model, a Hub id or folder, with the options of its samples (`curate --help`).

    `weights` are given where a chat model of this run has loaded them; not with an adapter, which would change both.
    """

    name: str
    samples: int
    temperature: float
    max_new_tokens: int
    max_new_tokens_report: int
    batch_size: int
    seed: int
    weights: Any = None
    adapter: str | None = None

    @property
    def recorded(self) -> str:
        return portable(self.name) + (f" with {portable(self.adapter)}" if self.adapter else "")

    def record(self) -> dict[str, Any]:
        standin = configured(self.name, STANDIN_KEY)
        revision = configured(self.name, "_commit_hash")
        adapted = (
            {"adapter": portable(self.adapter), "adapter_sha256": adapter_digest(self.adapter)} if self.adapter else {}
        )
        return {
            "name": portable(self.name), "revision": revision, **adapted, **({"standin": standin} if standin else {}),
        }  # fmt: skip

    def load(self) -> VisionLanguageModel:
        return VisionLanguageModel(self.name, self.adapter, weights=self.weights)

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Return batches of one task, since a report may be longer; questions about an image are together."""
        alike = (by_image([one for one in samples if one.task == task]) for task in schema.TASKS)
        size = self.batch_size
        return [those[start : start + size] for those in alike for start in range(0, len(those), size)]

    def sample(self, model: VisionLanguageModel, batch: Sequence[Sample]) -> list[Found]:
        """Return the candidates of each sample of a batch, whose samples share a task."""
        # The seed depends on the whole batch; batches are recorded whole, so a resumed run draws the same.
        seed = int(unit_interval("sample", self.seed, *(sample.id for sample in batch)) * 2**32)
        most = longest(batch[0].task, self.max_new_tokens, self.max_new_tokens_report)
        sampling = Sampling(most, self.temperature, samples=self.samples, seed=seed)
        shown = {file: images.open_rgb(file) for sample in batch for file in sample.files}
        prompts = model.prompts([([*map(shown.get, sample.files)], sample.prompt) for sample in batch], sampling)
        return list(map(_found, model.generate(prompts, sampling)))


@dataclass(frozen=True)
class EndpointSampler:
    """Target model behind an endpoint.

    A question is one request for `samples` answers. Where the endpoint gives fewer, each further one is a request of
    its own, with a seed of its own.

    Args:
        name: the endpoint, as `--model` names it.
        chat: its client, with temperature and seed; answers are cached.
    """

    name: str
    samples: int
    max_new_tokens: int
    max_new_tokens_report: int
    seed: int
    chat: ChatModel

    def record(self) -> dict[str, Any]:
        return {"name": portable(self.name), "revision": None, "client": self.chat.name}

    @property
    def recorded(self) -> str:
        return portable(self.name)

    def load(self) -> ChatModel:
        return self.chat

    def batches(self, samples: Sequence[Sample]) -> list[Sequence[Sample]]:
        """Return the samples as one batch: requests are concurrent, and may differ in length."""
        return [samples] if samples else []

    def sample(self, model: ChatModel, batch: Sequence[Sample]) -> list[Found]:
        """Return the candidates of each sample of a batch.

        Samples of failed requests are left out too; the question is asked again by a resumed run.
        """
        images = {file: sent(file) for file in {file for sample in batch for file in sample.files}}

        def request(sample: Sample, index: int, samples: int) -> ChatRequest:
            return ChatRequest(
                PROMPT, {"question": sample.prompt, "gold": sample.answer}, sample.prompt,
                tuple(images[file] for file in sample.files), readable=lambda text: True, samples=samples,
                max_tokens=longest(sample.task, self.max_new_tokens, self.max_new_tokens_report),
                seed=int(unit_interval("sample", self.seed, sample.id, index) * 2**31),  # some servers have 32 bits
            )  # fmt: skip

        first = model.complete([request(sample, 0, self.samples) for sample in batch])
        found = [list(reply.samples) or [Answer(failure=reply.failure)] * self.samples for reply in first]
        lacking = [(place, index) for place, those in enumerate(found) for index in range(len(those), self.samples)]
        further = model.complete([request(batch[place], index, 1) for place, index in lacking])
        failed = {place for place, reply in enumerate(first) if reply.text is None}
        for (place, _), reply in zip(lacking, further, strict=True):
            found[place] += reply.samples or [Answer(failure=reply.failure)]
            failed |= {place} if reply.text is None else set()
        return [
            _found(answers) | ({"reason": hallucinate.NO_ANSWER} if place in failed else {})
            for place, answers in enumerate(found)
        ]


def _found(answers: Iterable[Answer]) -> Found:
    texts, failures = [], Counter[str]()
    for answer in answers:
        if answer.text is None:
            failures[_reason(str(answer.failure))] += 1
        else:
            texts.append(answer.text)
    return {"texts": texts, "left_out": failures}


def _reason(failure: str) -> str:
    """Return a failure without its details, which a server may word anew each time."""
    return failure.partition(": ")[0].partition(" (")[0]


def sent(image: Path) -> bytes:
    """Return an image as chat models get it: encoded anew, since the file's own header may name the patient."""
    encoded: bytes = images.png(np.asarray(images.open_rgb(image)), image.stem)["bytes"]
    return encoded


def by_image(samples: Iterable[Sample]) -> list[Sample]:
    """Return samples with those about one image together, images in the order in which they occur first."""
    own: dict[tuple[Path, ...], list[Sample]] = {}
    for sample in samples:
        own.setdefault(sample.files, []).append(sample)
    return [sample for those in own.values() for sample in those]


def texts(found: Found | None) -> list[str]:
    """Return the candidates of a sample; none if the model was not asked."""
    return found["texts"] if found else []


def counted(found: Iterable[Found]) -> dict[str, Any]:
    """Return counts of all candidates for the manifest: {"sampled", "left_out": by reason}."""
    kept, left_out = 0, Counter[str]()
    for each in found:
        kept += len(each["texts"])
        left_out += Counter(each["left_out"])
    return {"sampled": kept + left_out.total(), "left_out": dict(left_out.most_common())}


def notes(found: Iterable[Found]) -> list[str]:
    """Return a note where the samples of no question differ, as from a server that ignores the temperature."""
    several = [each["texts"] for each in found if len(each["texts"]) > 1]
    if len(several) < FEW or any(len(set(texts)) > 1 for texts in several):
        return []
    return [
        f"The target's samples are equal for each of {len(several)} questions: it may ignore the temperature (a model "
        "served by transformers does, unless its generation_config.json has do_sample true)"
    ]
