"""`evaluate` module of the strict scores for medical visual question answering; the arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation import med_vqa

_DESCRIPTION = """\
Strict scores of short answers to questions about medical images: one whole-word verdict for each closed question,
clipped word overlap and exact match for each open one. All means lie in [0, 1]; higher is better.
"""

_CITATION = """\
@inproceedings{zhu2025mmedpo,
  title={{MMedPO}: Aligning Medical Vision-Language Models with Clinical-Aware Multimodal Preference Optimization},
  author={Zhu, Kangyu and Xia, Peng and Li, Yun and Zhu, Hongtu and Wang, Sheng and Yao, Huaxiu},
  booktitle={International Conference on Machine Learning},
  year={2025}
}
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the model's answers; "" where it gave none.
    references (list of str): the gold answers; each has at least one word.
    answer_types (list of str): "closed" (yes/no or a choice) or "open", one a question.
    protocol (str): "strict", the only one.

Returns (a mean over no question is absent; all means in [0, 1]):
    overall_accuracy: share of closed answers with the verdict "correct" and open answers with exact match.
    closed_accuracy: share of closed answers with the verdict "correct".
    open_recall, open_precision, open_f1, open_exact_match: means over the open questions.
    n_closed, n_open: numbers of questions.
    n_closed_both, n_closed_neither: yes/no answers that say both or neither; they count as wrong.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/med_vqa")
    >>> scores = metric.compute(
    ...     predictions=["Yes, there is a nodule.", "abnormal", "left left lung"],
    ...     references=["yes", "no", "left lower lobe"],
    ...     answer_types=["closed", "closed", "open"],
    ... )
    >>> scores["closed_accuracy"], scores["n_closed_neither"]
    (0.5, 1)
    >>> round(scores["open_recall"], 4), scores["open_exact_match"]
    (0.3333, 0.0)
"""


class MedVQA(evaluate.Metric):
    """Columns in, means and counts out; see `_KWARGS_DESCRIPTION`. Bad input raises `mmedpo.errors.InputError`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references", "answer_types")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("string") for column in columns}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], answer_types: list[str], protocol: str = "strict"
    ) -> dict[str, Any]:
        return med_vqa.compute(predictions, references, answer_types, protocol)
