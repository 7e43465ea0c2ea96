"""The metric's page as a Space."""

from pathlib import Path

from mmedpo.evaluation.metrics.space import launch

compute = launch(
    Path(__file__).parent,
    {"predictions": "Yes, there is a nodule.", "references": "yes", "answer_types": "closed"},
)
