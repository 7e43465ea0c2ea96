"""Shared code of the metric folders of eval/: the citation, and a metric's page as a Space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CITATION = """\
@inproceedings{zhu2025mmedpo,
  title={{MMedPO}: Aligning Medical Vision-Language Models with Clinical-Aware Multimodal Preference Optimization},
  author={Zhu, Kangyu and Xia, Peng and Li, Yun and Zhu, Hongtu and Wang, Sheng and Yao, Huaxiu},
  booktitle={International Conference on Machine Learning},
  year={2025}
}
"""


def launch(folder: Path, example: Mapping[str, Any]) -> Callable[[list[list[Any]]], dict[str, Any]]:
    """Show the page of a metric: a table to fill in, the scores beside it, the card below.

    Args:
        folder: metric folder with its module and card.
        example: columns of the table with the cells of its first row; number columns hold numbers.

    Returns:
        The page's function from rows of cells to scores; empty rows are ignored.
    """
    import evaluate
    import gradio

    # evaluate's launch_gradio_widget needs gradio 3.
    metric = evaluate.load(str(folder / f"{folder.name}.py"))
    kinds = {name: float if isinstance(cell, int | float) else str for name, cell in example.items()}

    def compute(rows: list[list[Any]]) -> dict[str, Any]:
        filled = [row for row in rows if any(cell not in ("", None) for cell in row)]
        return metric.compute(
            **{name: [kind(row[i]) for row in filled] for i, (name, kind) in enumerate(kinds.items())}
        )

    gradio.Interface(
        fn=compute,
        inputs=gradio.Dataframe([list(example.values())], headers=list(example), type="array"),
        outputs=gradio.JSON(),
        title=folder.name,
        article=(folder / "README.md").read_text(encoding="utf-8").split("---", 2)[2],
        analytics_enabled=False,
    ).launch()
    return compute
