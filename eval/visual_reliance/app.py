"""The metric's page as a Space."""

from pathlib import Path

from mmedpo.evaluation.metrics.space import launch

compute = launch(
    Path(__file__).parent,
    {
        "correct_original": 1, "correct_lesion_noise": 0, "correct_blank": 0, "correct_swapped": 1,
        "logps_original": -0.5, "logps_lesion_noise": -2.0, "logps_blank": -2.5, "logps_swapped": -1.5,
    },
)  # fmt: skip
