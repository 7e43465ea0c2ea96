"""The metric's page as a Space."""

from pathlib import Path

from mmedpo.evaluation.metrics.space import launch

compute = launch(
    Path(__file__).parent,
    {"predictions": "No effusion.", "references": "No pleural effusion."},
)
