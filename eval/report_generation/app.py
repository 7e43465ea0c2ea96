"""The metric's page as a Space: a table to fill in, the scores beside it."""

from pathlib import Path
from typing import Any

import evaluate
import gradio

FOLDER = Path(__file__).parent
COLUMNS = ["predictions", "references"]
# evaluate's own launch_gradio_widget needs gradio 3, whose gr.inputs later versions dropped.
metric = evaluate.load(str(FOLDER / "report_generation.py"))


def compute(rows: list[list[str]]) -> dict[str, Any]:
    filled = [row for row in rows if row[1]]
    return metric.compute(**{column: [row[i] for row in filled] for i, column in enumerate(COLUMNS)})


gradio.Interface(
    fn=compute,
    inputs=gradio.Dataframe([["No effusion.", "No pleural effusion."]], headers=COLUMNS, type="array"),
    outputs=gradio.JSON(),
    title="report_generation",
    article=(FOLDER / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
    analytics_enabled=False,
).launch()
