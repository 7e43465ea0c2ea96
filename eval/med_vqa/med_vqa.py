"""`evaluate` module of the scores for medical visual question answering; the arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation.metrics import med_vqa
from mmedpo.evaluation.metrics.space import CITATION

_DESCRIPTION = """\
Scores of short answers to questions about medical images: one verdict for each closed question, read against its text
where it is given, clipped word overlap and exact match for each open one; and the two lenient protocols of published
work. All means lie in [0, 1]; higher is better.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the model's answers; "" where it gave none.
    references (list of str): the gold answers; each has at least one word.
    answer_types (list of str): "closed" (yes/no or a choice), "choice" (options given) or "open", in any case.
    protocol (str): "strict" (default), "strict@3" (without questions), "paper" (MMedPO's) or "llava_med" (LLaVA-Med's).
    questions (list of str, optional): the questions, against which "strict" reads the answers (strict@4).
    options (list of list of str or None, optional): the options that each question offered.
    groups (list of str, optional): a name a question (its organ, say); adds "by_group".
    return_scores (bool): add "scores", the scores of each answer.

Returns (a mean over no question is absent; all means in [0, 1]):
    overall_accuracy: share of closed answers that are correct and open answers that equal the gold one.
    closed_accuracy: share of closed answers that are correct.
    open_recall, open_precision, open_f1, open_exact_match: means over the open questions.
    n_closed, n_open: numbers of questions.
    n_closed_both, n_closed_neither (strict; with questions also n_closed_refused, n_closed_empty): closed answers that
        say both or neither, decline to answer, or have no words; they count as wrong.
    n_laterality_conflicts (strict with questions): open answers on the wrong side, which score 0.
    med_vqa_definition: the protocol and the number of its definition; compare equal ones only.

Examples:
    >>> import evaluate, mmedpo
    >>> metric = evaluate.load(mmedpo.metric("med_vqa"))
    >>> answers = {
    ...     "predictions": ["Yes, there is a nodule.", "abnormal", "left left lung"],
    ...     "references": ["yes", "no", "left lower lobe"],
    ...     "answer_types": ["closed", "closed", "open"],
    ... }
    >>> scores = metric.compute(**answers)
    >>> scores["closed_accuracy"], scores["n_closed_neither"], scores["med_vqa_definition"]
    (0.5, 1, 'strict@3')
    >>> round(scores["open_recall"], 4), scores["open_exact_match"]
    (0.3333, 0.0)
    >>> scores = metric.compute(**answers, questions=["Is there a nodule?", "Is the lung normal?", "Where is it?"])
    >>> scores["closed_accuracy"], scores["med_vqa_definition"]  # "abnormal" is a no to the second question
    (1.0, 'strict@4')
    >>> scores = metric.compute(**answers, protocol="paper", groups=["chest", "chest", "abdomen"])
    >>> scores["closed_accuracy"], scores["open_recall"]  # "no" is in "abnormal"; 2 x left, and 2 words missed
    (1.0, 0.5)
    >>> sorted(scores["by_group"]), scores["by_group"]["abdomen"]["n_open"]
    (['abdomen', 'chest'], 1)
"""


class MedVQA(evaluate.Metric):
    """Columns in, means and counts out; see `_KWARGS_DESCRIPTION`.

    `evaluate` looks at the columns first: nulls, numbers, missing or unequally long columns raise its ValueError
    or TypeError. All else that is wrong (references without words, options) raises `mmedpo.errors.InputError`.
    """

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references", "answer_types")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("string") for column in columns}),
        )

    def _compute(
        self, predictions: list[str], references: list[str], answer_types: list[str], **options: Any
    ) -> dict[str, Any]:
        return med_vqa.compute(predictions, references, answer_types, **options)
