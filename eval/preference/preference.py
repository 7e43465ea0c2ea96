"""`evaluate` module of preference accuracy and margin; the arithmetic is in `mmedpo`."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from mmedpo.evaluation.metrics import preference
from mmedpo.evaluation.metrics.space import CITATION

_DESCRIPTION = """\
Preference accuracy: share of pairs whose chosen side a model finds likelier than the rejected one, over all, by kind of
pair and by clinical weight.
"""

_KWARGS_DESCRIPTION = """
Args:
    chosen_logps, rejected_logps (list of float): log-probabilities of the two answers of each pair in nats, summed over
        their tokens, under the model; at most 0.
    reference_chosen_logps, reference_rejected_logps (list of float, optional): the same under the reference model.
    dispreference (list of str, optional): the kind of each pair: "hallucinated_response", "lesion_noise",
        "image_noise" or "reversed_noise".
    weight (list of float, optional): clinical weights, 0 or more.
    protocol (str): "log_likelihood" (default): the margin is chosen - rejected; "implicit_reward": the difference of
        the rewards beta * (log-probability - reference log-probability), as TRL defines them.
    beta (float): of the rewards, 0.1.
    return_scores (bool): add "scores", the margin of each pair.

Returns (a value about no pair is absent):
    preference_accuracy: share of pairs with a margin above 0, in [0, 1]; a tie is not right.
    preference_margin: mean margin.
    n_pairs, n_ties: numbers of pairs, and of those with margin 0.
    the same four with "_KIND", and with "_weight_below_0.9", "_weight_0.9_to_1.1", "_weight_above_1.1".
    preference_definition: the protocol and the number of its definition.

Examples:
    >>> import evaluate, mmedpo
    >>> metric = evaluate.load(mmedpo.metric("preference"))
    >>> pairs = {"chosen_logps": [-1.0, -2.0, -3.0], "rejected_logps": [-4.0, -2.0, -1.0]}
    >>> scores = metric.compute(**pairs, weight=[1.25, 1.0, 0.75])  # the margins are 3, 0 and -2
    >>> scores["preference_accuracy"], scores["preference_margin"], scores["n_pairs"], scores["n_ties"]
    (0.3333333333333333, 0.3333333333333333, 3, 1)
    >>> scores["preference_accuracy_weight_above_1.1"], scores["n_ties_weight_0.9_to_1.1"]
    (1.0, 1)
"""


class Preference(evaluate.Metric):
    """Columns in, means and counts out; see `_KWARGS_DESCRIPTION`.

    `evaluate` looks at the columns first: texts, missing or unequally long columns raise its ValueError
    or TypeError. All else that is wrong (nulls, infinite numbers, options) raises `mmedpo.errors.InputError`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({column: datasets.Value("float64") for column in preference.LOGPS}),
        )

    def _compute(
        self,
        protocol: str = "log_likelihood",
        beta: float = preference.BETA,
        return_scores: bool = False,
        **columns: list[Any],
    ) -> dict[str, Any]:
        return preference.compute(columns, protocol, beta, return_scores)
