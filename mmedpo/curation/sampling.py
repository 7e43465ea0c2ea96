"""Candidates for wrong answers: what the target model says when it is sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mmedpo import schema
from mmedpo.data import images
from mmedpo.data.samples import Sample
from mmedpo.data.text import unit_interval
from mmedpo.models.generation import Sampling, longest
from mmedpo.models.vision_language import VisionLanguageModel

if TYPE_CHECKING:
    from mmedpo.curation.settings import Settings

Found = dict[str, Any]  # {"texts": [..], "left_out": {reason: count}} of one question


class Sampler:
    """The target model that the settings name, sampled as they say.

    Raises:
        InputError: it cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.model = settings, VisionLanguageModel(str(settings.model))
        self.revision = self.model.revision

    def sample(self, batch: Sequence[Sample]) -> list[Found]:
        """The candidates of each question of a batch of one task.

        A sample that was cut off, is empty or did not finish its thought is left out, counted: set against a whole
        answer it would teach where to stop.
        """
        settings = self.settings
        # A batch is recorded whole, so that chance, which depends on the batch, is the same in a resumed run.
        seed = int(unit_interval("sample", settings.seed, *(sample.id for sample in batch)) * 2**32)
        most = longest(batch[0].task, settings.max_new_tokens, settings.max_new_tokens_report)
        sampling = Sampling(most, settings.temperature, samples=settings.samples, seed=seed)
        inputs = self.model.encode([(images.open_rgb(sample.image), sample.question) for sample in batch])
        return [
            {
                "texts": [answer.text for answer in answers if answer.text is not None],
                "left_out": Counter(answer.failure for answer in answers if answer.text is None),
            }
            for answers in self.model.generate(inputs, sampling)
        ]


def by_task(blocks: Iterable[Sequence[Sample]]) -> list[list[Sample]]:
    """Each block as blocks of one task, since a report may be longer than an answer."""
    return [[sample for sample in block if sample.task == task] for block in blocks for task in schema.TASKS]


def texts(found: Found | None) -> list[str]:
    """The candidates of a question; none where the model was not asked."""
    return found["texts"] if found else []


def counted(found: Iterable[Found]) -> dict[str, Any]:
    """What a manifest says of all candidates: {"sampled", "left_out": by reason}."""
    kept, left_out = 0, Counter[str]()
    for each in found:
        kept += len(each["texts"])
        left_out += Counter(each["left_out"])
    return {"sampled": kept + left_out.total(), "left_out": dict(left_out.most_common())}
