"""`evaluate` module of visual reliance: does the model look at the image? The arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation.metrics import visual_reliance
from mmedpo.evaluation.metrics.space import CITATION

_DESCRIPTION = """\
How far accuracy and the log-probability of the gold answer fall when a model is shown the image with its lesion noised,
a blank one, or another patient's. A model that does not look at the image falls by 0.
"""

_KWARGS_DESCRIPTION = """
Args, one entry a question, for each VIEW of "original", "lesion_noise", "blank" and "swapped":
    correct_VIEW (list of 0, 1 or None): whether the answer given at this view is correct; None (in all four) where
        there is no right or wrong, as for a report.
    logps_VIEW (list of float): log-probability of the gold answer in nats, summed over its tokens; at most 0. Where no
        lesion is marked, it and the correctness are None at "lesion_noise".
    protocol (str): "strict", by which answers were found correct.
    return_scores (bool): add "scores", the scores of each question.

Returns (a mean over no question is absent):
    accuracy_VIEW in [0, 1], logps_VIEW at most 0: means of each view.
    accuracy_drop_VIEW in [-1, 1], logps_drop_VIEW: original minus view, for the three changed views.
    n_samples, n_answers: numbers of questions, and of those that have a right and a wrong; n_lesion_noise: of those
        with that view, where some lack it.
    visual_reliance_definition: the protocol and the number of its definition.

Examples:
    >>> import evaluate, mmedpo
    >>> metric = evaluate.load(mmedpo.metric("visual_reliance"))
    >>> seen = {"correct_original": [1, 1], "logps_original": [-0.5, -0.5]}
    >>> noised = {"correct_lesion_noise": [0, 1], "logps_lesion_noise": [-2.5, -1.5]}
    >>> blank = {"correct_blank": [0, 0], "logps_blank": [-4.0, -4.0]}
    >>> swapped = {"correct_swapped": [0, 1], "logps_swapped": [-3.0, -1.0]}
    >>> scores = metric.compute(**seen, **noised, **blank, **swapped)
    >>> scores["accuracy_drop_lesion_noise"], scores["accuracy_drop_blank"], scores["logps_drop_swapped"]
    (0.5, 1.0, 1.5)
"""


class VisualReliance(evaluate.Metric):
    """Columns in, means and counts out; see `_KWARGS_DESCRIPTION`.

    `evaluate` looks at the columns first: texts, missing or unequally long columns raise its ValueError
    or TypeError. All else that is wrong (nulls, infinite numbers, options) raises `mmedpo.errors.InputError`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("float64") for column in visual_reliance.COLUMNS}),
        )

    def _compute(self, protocol: str = "strict", return_scores: bool = False, **columns: list[Any]) -> dict[str, Any]:
        return visual_reliance.compute(columns, protocol, return_scores)
