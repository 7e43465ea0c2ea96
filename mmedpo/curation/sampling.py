"""Sample candidates for rejected responses from the target model."""

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

Found = dict[str, Any]  # of one sample: {"texts": [..], "left_out": {reason: count}}


class Sampler:
    """Target model of the settings with their sampling options.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.model = settings, VisionLanguageModel(str(settings.model))
        self.revision = self.model.revision

    def sample(self, batch: Sequence[Sample]) -> list[Found]:
        """Return the candidates of each sample of a batch, whose samples share a task.

        Answers that are empty, cut off or end inside a thought are counted and left out; as rejected responses they
        would teach where to stop.
        """
        settings = self.settings
        # The seed depends on the whole batch; batches are recorded whole, so a resumed run draws the same.
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
    """Split each block by task, since a report may be longer than an answer."""
    return [[sample for sample in block if sample.task == task] for block in blocks for task in schema.TASKS]


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
