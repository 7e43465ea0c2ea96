"""Sample candidates for rejected responses from the target model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedpo import schema
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.data.text import unit_interval
from mmedpo.models.generation import Sampling, longest
from mmedpo.models.vision_language import VisionLanguageModel

Found = dict[str, Any]  # of one sample: {"texts": [..], "left_out": {reason: count}}


@dataclass(frozen=True)
class Sampler:
    """Target model, a Hub id or folder, with the options of its samples (`curate --help`).

    `weights` are given where a chat model of this run has loaded them.
    """

    name: str
    samples: int
    temperature: float
    max_new_tokens: int
    max_new_tokens_report: int
    batch_size: int
    seed: int
    weights: Any = None

    def load(self) -> VisionLanguageModel:
        """Return the model. Raises InputError if it cannot be loaded."""
        return VisionLanguageModel(self.name, weights=self.weights)

    def batches(self, blocks: Iterable[Sequence[Sample]]) -> list[Sequence[Sample]]:
        """Return batches of one task, since a report may be longer; questions about an image are together."""
        alike = (by_image([one for one in block if one.task == task]) for block in blocks for task in schema.TASKS)
        size = self.batch_size
        return [block[start : start + size] for block in alike for start in range(0, len(block), size)]

    def sample(self, model: VisionLanguageModel, batch: Sequence[Sample]) -> list[Found]:
        """Return the candidates of each sample of a batch, whose samples share a task.

        Answers that are empty, cut off or end inside a thought are counted and left out; as rejected responses they
        would teach where to stop.
        """
        # The seed depends on the whole batch; batches are recorded whole, so a resumed run draws the same.
        seed = int(unit_interval("sample", self.seed, *(sample.id for sample in batch)) * 2**32)
        most = longest(batch[0].task, self.max_new_tokens, self.max_new_tokens_report)
        sampling = Sampling(most, self.temperature, samples=self.samples, seed=seed)
        shown = {sample.image: images.open_rgb(sample.image) for sample in batch}
        prompts = model.prompts([(shown[sample.image], sample.prompt) for sample in batch], sampling)
        return [
            {
                "texts": [answer.text for answer in answers if answer.text is not None],
                "left_out": Counter(answer.failure for answer in answers if answer.text is None),
            }
            for answers in model.generate(prompts, sampling)
        ]


def by_image(samples: Iterable[Sample]) -> list[Sample]:
    """Return samples with those about one image together, images in the order in which they occur first."""
    own: dict[Path, list[Sample]] = {}
    for sample in samples:
        own.setdefault(sample.image, []).append(sample)
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
