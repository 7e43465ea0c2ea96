"""Visual reliance on the questions of a source, without preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmedpo.data import changes
from mmedpo.data.samples import Sample
from mmedpo.errors import InputError
from mmedpo.evaluation.pairs import VisualReliance, other_patients, seen_in
from mmedpo.evaluation.questions import QuestionSet
from mmedpo.evaluation.score import Row
from mmedpo.schema import TASKS

Noised = Callable[[Sample], Any]  # returns images for `images.open_rgb`, or None where no lesion is marked


class SourceReliance(VisualReliance):
    """Visual reliance: the questions of a source, asked on each of `visual_reliance.VIEWS`.

    "lesion_noise" is left out where the source marks no lesion; the other views are as in `VisualReliance`.

    Args:
        asked: questions of a source, which the model's processor accepts.
        noised: function that returns a sample's images with their lesions noised.
        batch_size, seed, max_new_tokens: as in `VisualReliance`.
        noise: settings of `noised`, for the record.

    Raises:
        InputError: questions of a dataset, or all of one patient.
    """

    accepted = True

    def __init__(
        self, asked: QuestionSet, noised: Noised, batch_size: int = 16, seed: int = 0, max_new_tokens: int = 64,
        noise: Row | None = None,
    ) -> None:  # fmt: skip
        self.asked, self.noised, self.noise = asked, noised, noise
        self.batch_size, self.seed, self.max_new_tokens = batch_size, seed, max_new_tokens
        self.samples: dict[str, Sample] = {one.id: one.sample for one in asked.questions if one.sample}
        if len(self.samples) < len(asked.questions):
            raise InputError("These questions are not a source's, whose lesions could be noised.")
        self.rows = [
            {
                "id": one.id, "task": TASKS.index(one.task),
                "prompt": [{"role": "user", "content": one.prompt}],
                "chosen": [{"role": "assistant", "content": one.reference}],
            }
            for one in asked.questions
        ]  # fmt: skip
        self.questions = [
            one.row() | {"pair_digest": changes.digest_of(changes.of_samples([self.samples[one.id]]))}
            for one in asked.questions
        ]
        self.partners = dict(zip(self.samples, other_patients(self.questions, seed), strict=True))

    def views(self, row: Row) -> Row:
        sample, other = self.samples[row["id"]], self.asked.questions[self.partners[row["id"]]]
        return seen_in(sample.files, self.noised(sample), other.images)

    def results(self, predictions: Any, scores: Any) -> Row:
        found = super().results(predictions, scores)
        return found | {"settings": {**found["settings"], "noise": self.noise}}
