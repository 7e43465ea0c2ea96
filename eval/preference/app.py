"""The metric's page as a Space."""

from pathlib import Path

from mmedpo.evaluation.metrics.space import launch

compute = launch(Path(__file__).parent, {"chosen_logps": -2.0, "rejected_logps": -3.5})
